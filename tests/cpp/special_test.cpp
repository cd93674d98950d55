// NaN, infinities, denormals and the largest numbers, on every instruction set and every path to a 16-bit store.
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "core/job.h"
#include "cpu/rotate.h"
#include "harness.h"

namespace {

using Half = std::uint16_t;

/// Heads of `dim` 16-bit channels at position 0, where only attention scaling acts.
std::vector<Half> scaled(rope::DType dtype, std::vector<Half> x, int dim, const std::string& pairing, double scaling,
                         bool words) {
  const std::string d = std::to_string(dim), pairs = std::to_string(dim / 2);
  const rope::Spec spec = rope::parse_spec("theta=10000.0;freq_dim=" + d + ";num_frequencies=" + pairs +
                                           ";head_dim=" + d + ";num_pairs=" + pairs + ";distance=" + pairs +
                                           ";pairing=" + pairing + ";attention_scaling=" + std::to_string(scaling));
  const std::int64_t heads = static_cast<std::int64_t>(x.size()) / dim;
  rope::Job job;
  job.spec = &spec;
  job.operands[0] = {x.data(), x.data(), heads, {0, 0, dim}, {0, 0, dim}};
  job.num_operands = 1;
  job.dtype = dtype;
  job.batch = job.tokens = 1;
  job.in_place = true;
  job.words = words;
  rope::rotate_cpu(job, 0, 1);
  return x;
}

float widen(rope::DType dtype, Half x) {
  if (dtype == rope::DType::kBFloat16) return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16);
  return static_cast<float>(std::bit_cast<_Float16>(x));
}

/// Round to nearest even, as torch does; NaN is the quiet one.
Half narrow(rope::DType dtype, float x) {
  if (dtype == rope::DType::kFloat16) return std::bit_cast<Half>(static_cast<_Float16>(x));
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<Half>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

/// Checks every 16-bit number: its partner is zero, so that each result is its product with the scaling.
void check_all_numbers(const std::string& isa, rope::DType dtype, int dim, const std::string& pairing, double scaling,
                       bool words) {
  std::vector<Half> x;
  const std::size_t pairs = static_cast<std::size_t>(dim) / 2;
  const bool half = pairing == "half";
  for (std::uint32_t number = 0; number < 0x10000 || x.size() % static_cast<std::size_t>(dim) != 0; ++number) {
    const std::size_t inside = x.size() % static_cast<std::size_t>(dim);
    if (half && inside == pairs) x.insert(x.end(), pairs, 0);
    x.push_back(static_cast<Half>(number));
    if (!half) x.push_back(0);
    if (half && x.size() % static_cast<std::size_t>(dim) == pairs) x.insert(x.end(), pairs, 0);
  }
  const std::vector<Half> y = scaled(dtype, x, dim, pairing, scaling, words);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float in = widen(dtype, x[i]), out = widen(dtype, y[i]);
    const std::size_t partner = half ? (i % (2 * pairs) < pairs ? i + pairs : i - pairs) : i ^ 1U;
    if (std::isnan(in) || !std::isfinite(widen(dtype, x[partner]))) {
      CHECK(std::isnan(out), isa, pairing, dim, words, i, x[i], y[i]);  // its own NaN, or 0 times infinity
    } else {
      const Half expected = narrow(dtype, in * static_cast<float>(scaling));
      CHECK(y[i] == expected, isa, pairing, dim, words, i, x[i], y[i], expected);
    }
  }
}

TEST(every_number_is_rounded_once_and_kept) {
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    for (const rope::DType dtype : {rope::DType::kBFloat16, rope::DType::kFloat16}) {
      for (const double scaling : {1.0, 0.75, 1.375}) {
        for (const int dim : {128, 64, 80, 14}) {
          check_all_numbers(isa, dtype, dim, "half", scaling, dtype == rope::DType::kBFloat16);
          check_all_numbers(isa, dtype, dim, "half", scaling, false);
          check_all_numbers(isa, dtype, dim, "interleaved", scaling, false);
        }
      }
    }
  }
  rope::force_isa("");
}

TEST(floats_keep_denormals_and_nan) {
  const rope::Spec spec =
      rope::parse_spec("theta=1.0;freq_dim=64;num_frequencies=32;head_dim=64;num_pairs=32;distance=32");
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    std::vector<float> x(64, 0.0F);
    x[3] = 1e-45F;
    x[20] = -1e-39F;
    x[31] = std::numeric_limits<float>::quiet_NaN();
    x[40] = std::numeric_limits<float>::max();
    const std::vector<float> before = x;
    rope::Job job;
    job.spec = &spec;
    job.operands[0] = {x.data(), x.data(), 1, {0, 0, 64}, {0, 0, 64}};
    job.num_operands = 1;
    job.batch = job.tokens = 1;
    job.in_place = true;
    rope::rotate_cpu(job, 0, 1);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool nan = i == 31 || i == 63;
      CHECK(nan ? std::isnan(x[i]) : x[i] == before[i], isa, i, x[i], before[i]);
    }
  }
  rope::force_isa("");
}

}  // namespace
