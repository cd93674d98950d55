// A call of the CUDA launcher as an array of integers, which Python passes or writes to a file.
#pragma once

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
    Int cosine, sine, kind, cosine_strides[3], sine_strides[3];
  } table;
};
constexpr Int kFields = sizeof(Call) / sizeof(Int);

template <class T>
T* pointer(Int address) {
  return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

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
               strides(t.cosine_strides), strides(t.sine_strides)};
  return job;
}

}  // namespace standin
