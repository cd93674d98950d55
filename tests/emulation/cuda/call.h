// A call of the CUDA launcher as an array of integers, which Python passes or writes to a file.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/launcher.h"

namespace standin {

using Int = std::int64_t;

/// The fields of rope::Job, addresses and flags as integers. calls.py lists them in this order.
struct Call {
  Int num_operands, dtype, batch, tokens, inverse, unscaled, in_place;
  struct {
    Int in, out, heads, from[3], to[3];
  } operands[2];
  struct {
    Int data, kind, axis, batch, token;
  } positions;
  struct {
    Int data, count, stride, is_number;
  } offset, seq_len, from_seq_len;
  struct {
    Int bounds, wide, sequences, stride;
  } packed;
  struct {
    Int cosine, sine, kind, cosine_strides[3], sine_strides[3], rows;
  } table;
  struct {
    Int is_given, after_rope, eps, weight, kind, stride, offset;  // numbers by their bits in float32
    Int x, x_strides[3], weight_grad;
  } norms[2];
  Int parts;  // of a backward call, else 0
};
constexpr Int kFields = sizeof(Call) / sizeof(Int);

template <class T>
T* pointer(Int address) {
  return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

inline float number(Int bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits)); }

/// The job of a call, for `spec`.
inline rope::Job job_of(const Call& call, const rope::Spec& spec) {
  const auto strides = [](const Int(&s)[3]) { return rope::Strides{s[0], s[1], s[2]}; };
  const auto per_group = [](const auto& g) {
    return rope::PerGroup{pointer<const std::int64_t>(g.data), g.count, g.stride, g.is_number != 0};
  };
  rope::Job job;
  job.spec = &spec;
  job.num_operands = static_cast<std::int32_t>(call.num_operands);
  job.dtype = static_cast<rope::DType>(call.dtype);
  job.batch = call.batch;
  job.tokens = call.tokens;
  job.inverse = call.inverse != 0;
  job.unscaled = call.unscaled != 0;
  job.in_place = call.in_place != 0;
  for (int i = 0; i < 2; ++i) {
    const auto& operand = call.operands[i];
    job.operands[i] = {pointer<const void>(operand.in), pointer<void>(operand.out), operand.heads,
                       strides(operand.from), strides(operand.to)};
  }
  const auto& p = call.positions;
  job.positions = {pointer<const void>(p.data), static_cast<rope::Number>(p.kind), p.axis, p.batch, p.token};
  job.offset = per_group(call.offset);
  job.seq_len = per_group(call.seq_len);
  job.from_seq_len = per_group(call.from_seq_len);
  job.packed = {pointer<const void>(call.packed.bounds), call.packed.wide != 0, call.packed.sequences,
                call.packed.stride};
  const auto& t = call.table;
  job.table = {pointer<const void>(t.cosine), pointer<const void>(t.sine), static_cast<rope::Number>(t.kind),
               strides(t.cosine_strides),     strides(t.sine_strides),     t.rows};
  for (int i = 0; i < 2; ++i) {
    const auto& given = call.norms[i];
    rope::HeadNorm& norm = job.norms[i];
    norm.is_given = given.is_given != 0;
    norm.after_rope = given.after_rope != 0;
    norm.eps = number(given.eps);
    norm.weight = pointer<const void>(given.weight);
    norm.weight_kind = static_cast<rope::Number>(given.kind);
    norm.weight_stride = given.stride;
    norm.weight_offset = number(given.offset);
    norm.x = pointer<const void>(given.x);
    norm.x_strides = strides(given.x_strides);
    norm.weight_grad = pointer<float>(given.weight_grad);
  }
  job.backward = call.parts > 0;
  job.parts = call.parts;
  return job;
}

}  // namespace standin
