// One call of rotate_cpu over tensors of any layout, and the check of what it wrote.
#pragma once

#include <algorithm>
#include <string>

#include "buffers.h"
#include "core/job.h"
#include "cpu/rotate.h"
#include "harness.h"

namespace calls {

using buffers::Gaps, buffers::Shape, buffers::Tensor;

inline std::string spec_of(int head_dim, int pairs, int distance, const std::string& rest = "") {
  const std::string d = std::to_string(2 * pairs), n = std::to_string(pairs);
  return "theta=10000.0;freq_dim=" + d + ";num_frequencies=" + n + ";head_dim=" + std::to_string(head_dim) +
         ";num_pairs=" + n + ";distance=" + std::to_string(distance) + ";" + (rest.empty() ? "factor=1.0" : rest);
}

/// One call under test: q and k of different head counts, their outputs, positions per batch and token.
struct Call {
  static constexpr std::int64_t kBatch = 2, kTokens = 3;

  rope::Spec spec;
  Tensor q, k, q_out, k_out;
  std::vector<std::int64_t> positions;
  rope::Job job;

  Call(const std::string& text, rope::DType dtype, const Gaps& gaps, const Gaps& out_gaps, std::mt19937& random)
      : spec(rope::parse_spec(text)),
        q(dtype, {kBatch, kTokens, 3, spec.rotation.head_dim}, gaps, random),
        k(dtype, {kBatch, kTokens, 2, spec.rotation.head_dim}, gaps, random),
        q_out(dtype, q.shape(), out_gaps, random),
        k_out(dtype, k.shape(), out_gaps, random),
        positions{0, 131071, -1, 1 << 24, -4096, 77} {
    std::shuffle(positions.begin(), positions.end(), random);
    job.spec = &spec;
    job.dtype = dtype;
    job.num_operands = 2;
    job.batch = kBatch;
    job.tokens = kTokens;
    job.positions = {positions.data(), rope::Number::kInt64, 0, kTokens, 1};
    write_apart();
  }

  void write_apart() {
    job.operands[0] = {q.data(), q_out.data(), 3, q.strides(), q_out.strides()};
    job.operands[1] = {k.data(), k_out.data(), 2, k.strides(), k_out.strides()};
    job.in_place = false;
    job.words = q.aligned(4) && k.aligned(4) && q_out.aligned(4) && k_out.aligned(4);
  }
  void write_in_place() {
    job.operands[0] = {q.data(), q.data(), 3, q.strides(), q.strides()};
    job.operands[1] = {k.data(), k.data(), 2, k.strides(), k.strides()};
    job.in_place = true;
    job.words = q.aligned(4) && k.aligned(4);
  }
};

/// Angle of every pair at an integer position, multiplied in extended precision.
inline std::vector<double> angles(const rope::Spec& spec, std::int64_t position) {
  std::vector<double> out;
  for (const double radians : spec.initial.radians) {
    constexpr long double kTurn = 6.283185307179586476925286766559005768L;
    out.push_back(static_cast<double>(std::fmod(static_cast<long double>(position) * radians, kTurn)));
  }
  return out;
}

/// Checks `y` against the rotation of `x` in double, within the documented error and one rounding.
inline void check_values(const Call& call, const Tensor& x, const Tensor& y, const std::string& what) {
  const double absolute = 5e-7 * std::max(1.0, call.spec.params.scaling);
  const Shape& s = x.shape();
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      const auto position = call.positions[static_cast<std::size_t>(b * s.tokens + t)];
      const std::vector<double> angle = angles(call.spec, position);
      for (std::int64_t h = 0; h < s.heads; ++h) {
        std::vector<double> head;
        for (std::int64_t c = 0; c < s.head_dim; ++c) head.push_back(x.value(b, t, h, c));
        const std::vector<double> expected = buffers::rotated(call.spec, head, angle, call.job.inverse);
        for (std::int64_t c = 0; c < s.head_dim; ++c) {
          const double e = expected[static_cast<std::size_t>(c)], got = y.value(b, t, h, c);
          CHECK(std::fabs(got - e) <= absolute + buffers::half_unit(x.dtype(), e), what, position, h, c, got, e);
        }
      }
    }
  }
}

}  // namespace calls
