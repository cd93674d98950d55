// The other inputs of a call: packed sequences, positions of other dtypes, several axes, tables, lengths.
#include "calls.h"

namespace {

using buffers::Shape, buffers::Tensor;
using calls::Call, calls::check_values, calls::spec_of;

TEST(packed_sequences_count_from_their_bounds) {
  std::mt19937 random(3);
  const std::int32_t narrow[] = {0, 2, 2, 5};
  const std::int64_t wide[] = {0, -9, 2, -9, 2, -9, 5};  // every other one, by its stride
  const std::int64_t offset[] = {10, 1000, 50};
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    for (const bool is_wide : {false, true}) {
      Call call(spec_of(24, 9, 9), rope::DType::kFloat32, {0, 1, 0, 0}, {1, 0, 3, 0}, random);
      call.job.batch = 1;
      call.job.tokens = 6;  // both batches' tokens, one after the other
      call.job.positions = {};
      call.job.packed = is_wide ? rope::Packed{wide, true, 3, 2} : rope::Packed{narrow, false, 3, 1};
      call.job.offset = {offset, 3, 1};
      rope::rotate_cpu(call.job, 0, 6);
      call.positions = {10, 11, 50, 51, 52, 0};  // the last token belongs to no sequence: copied, as at position 0
      check_values(call, call.q, call.q_out, isa + " packed");
      for (std::int64_t c = 0; c < 24; ++c) {
        CHECK(call.q.value(1, 2, 2, c) == call.q_out.value(1, 2, 2, c), isa, c, "the tail is not copied");
      }
    }
  }
  rope::force_isa("");
}

/// Checks that positions of dtype `kind` give what int64 gives, to the precision of a float64 product.
template <class T>
void check_positions(const std::string& isa, rope::Number kind, const std::vector<T>& given) {
  std::mt19937 random(4);
  Call call(spec_of(18, 9, 9), rope::DType::kFloat32, {0, 0, 0, 0}, {0, 0, 0, 0}, random);
  call.positions = {0, 1, 3, 100, 255, 16};
  call.job.positions = {given.data(), kind, 0, Call::kTokens, 1};
  rope::rotate_cpu(call.job, 0, 6);
  check_values(call, call.q, call.q_out, isa + " positions of kind " + std::to_string(static_cast<int>(kind)));
}

TEST(positions_of_every_kind) {
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    check_positions<std::int32_t>(isa, rope::Number::kInt32, {0, 1, 3, 100, 255, 16});
    check_positions<float>(isa, rope::Number::kFloat32, {0, 1, 3, 100, 255, 16});
    check_positions<double>(isa, rope::Number::kFloat64, {0, 1, 3, 100, 255, 16});
    check_positions<_Float16>(isa, rope::Number::kFloat16, {0, 1, 3, 100, 255, 16});
    check_positions<std::uint16_t>(isa, rope::Number::kBFloat16, {0, 0x3f80, 0x4040, 0x42c8, 0x437f, 0x4180});
  }
  rope::force_isa("");
}

TEST(axes_take_their_positions) {
  std::mt19937 random(5);
  const std::string axes = "axis=0,1,2,0,1,2,0,1,2", index = ";freq_index=0,0,0,1,1,1,2,2,2";
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    Call call(spec_of(18, 9, 9, axes + index), rope::DType::kFloat32, {0, 0, 0, 0}, {0, 0, 0, 0}, random);
    const std::vector<std::int64_t> positions = {5, 5, 5, 5, 5, 5, 7, 7, 7, 7, 7, 7, 900, 900, 900, 900, 900, 900};
    call.job.positions = {positions.data(), rope::Number::kInt64, 6, Call::kTokens, 1};
    rope::rotate_cpu(call.job, 0, 6);
    std::vector<double> angle, head;
    for (std::size_t i = 0; i < 9; ++i) angle.push_back(positions[6 * (i % 3)] * call.spec.initial.radians[i]);
    for (std::int64_t c = 0; c < 18; ++c) head.push_back(call.q.value(1, 1, 1, c));
    const std::vector<double> expected = buffers::rotated(call.spec, head, angle, false);
    for (std::int64_t c = 0; c < 18; ++c) {
      const double got = call.q_out.value(1, 1, 1, c);
      CHECK(std::fabs(got - expected[static_cast<std::size_t>(c)]) < 6e-7, isa, c, got);
    }
  }
  rope::force_isa("");
}

/// Runs a call by a table instead of positions and returns q_out in double, all heads of all tokens.
std::vector<double> by_table(Call& call, const Tensor& cosine, const Tensor& sine, rope::Number kind, bool inverse) {
  call.job.positions = {};
  call.job.table = {cosine.data(), sine.data(), kind, cosine.strides(), sine.strides()};
  call.job.table.cosine_strides.head = call.job.table.sine_strides.head = 1;  // of channels
  call.job.inverse = inverse;
  rope::rotate_cpu(call.job, 0, Call::kBatch * Call::kTokens);
  std::vector<double> out;
  call.q_out.for_each_head([&](std::byte* head, std::size_t) {
    for (std::int64_t c = 0; c < call.q_out.shape().head_dim; ++c) {
      out.push_back(buffers::value_of(call.q_out.dtype(), head + 4 * c));
    }
  });
  return out;
}

/// Checks forward against the formula, with different halves of the table, and inverse as its adjoint:
/// <Rx, y> = <x, R'y>.
void check_table(const std::string& isa, const std::string& pairing, rope::DType dtype, rope::Number kind) {
  std::mt19937 random(6);
  constexpr int kPairs = 13, kDim = 2 * kPairs;
  const std::string text = spec_of(kDim + 3, kPairs, kPairs, "pairing=" + pairing);
  const Shape table{Call::kBatch, Call::kTokens, 1, kDim};
  const Tensor cosine(dtype, table, {0, 1, 2, 3}, random), sine(dtype, table, {0, 0, 0, 0}, random);
  Call forward(text, rope::DType::kFloat32, {0, 1, 0, 0}, {0, 0, 0, 2}, random);
  Call back(text, rope::DType::kFloat32, {0, 1, 0, 0}, {0, 0, 0, 2}, random);
  const std::vector<double> rx = by_table(forward, cosine, sine, kind, false);
  const std::vector<double> ry = by_table(back, cosine, sine, kind, true);
  const rope::Rotation& r = forward.spec.rotation;
  double left = 0, right = 0;
  std::size_t at = 0;
  for (std::int64_t head = 0; head < Call::kBatch * Call::kTokens * 3; ++head, at += kDim + 3) {
    const std::int64_t b = head / 9, t = head / 3 % 3, h = head % 3;
    for (std::int64_t c = 0; c < kDim + 3; ++c) {
      left += rx[at + static_cast<std::size_t>(c)] * back.q.value(b, t, h, c);
      right += ry[at + static_cast<std::size_t>(c)] * forward.q.value(b, t, h, c);
    }
    for (std::int32_t i = 0; i < kPairs; ++i) {
      const auto [r1, r2] = buffers::channels(r, i, true);
      const auto [w1, w2] = buffers::channels(r, i, false);
      const double x1 = forward.q.value(b, t, h, r1), x2 = forward.q.value(b, t, h, r2);
      const double y1 = x1 * cosine.value(b, t, 0, w1) - x2 * sine.value(b, t, 0, w1);
      const double y2 = x2 * cosine.value(b, t, 0, w2) + x1 * sine.value(b, t, 0, w2);
      const double got1 = rx[at + static_cast<std::size_t>(w1)], got2 = rx[at + static_cast<std::size_t>(w2)];
      CHECK(std::fabs(got1 - y1) < 2e-7 && std::fabs(got2 - y2) < 2e-7, isa, pairing, head, i, got1, y1, got2, y2);
    }
  }
  CHECK(std::fabs(left - right) < 1e-5, isa, pairing, left, right);
}

TEST(tables_rotate_and_their_adjoint_rotates_back) {
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    for (const char* pairing : {"half", "interleaved", "interleaved_to_half"}) {
      check_table(isa, pairing, rope::DType::kFloat32, rope::Number::kFloat32);
      check_table(isa, pairing, rope::DType::kFloat16, rope::Number::kFloat16);
      check_table(isa, pairing, rope::DType::kBFloat16, rope::Number::kBFloat16);
    }
  }
  rope::force_isa("");
}

TEST(each_sequence_has_its_length) {
  std::mt19937 random(8);
  const std::int64_t length[] = {4, 5}, narrow[] = {0, 1, 2, 3, 4, 5};
  const std::string text = spec_of(8, 4, 4, "multipliers=1,1,1,1|3,3,3,3;switch_length=4;long_attention_scaling=2.0");
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    Call call(text, rope::DType::kFloat32, {0, 0, 0, 0}, {0, 0, 0, 0}, random);
    call.job.positions = {narrow, rope::Number::kInt64, 0, Call::kTokens, 1};
    call.job.seq_len = {length, 2, 1};
    rope::rotate_cpu(call.job, 0, 6);
    for (std::int64_t b = 0; b < 2; ++b) {
      const double angle = static_cast<double>(narrow[b * 3 + 1]) * (b == 0 ? 1 : 3), scaling = b == 0 ? 1 : 2;
      const double x1 = call.q.value(b, 1, 0, 0), x2 = call.q.value(b, 1, 0, 4);
      const double expected = scaling * (x1 * std::cos(angle) - x2 * std::sin(angle));
      CHECK(std::fabs(call.q_out.value(b, 1, 0, 0) - expected) < 1e-6, isa, b, call.q_out.value(b, 1, 0, 0), expected);
    }
  }
  rope::force_isa("");
}

}  // namespace
