// A call of the CUDA launcher as an array of integers, which Python passes or writes to a file.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/launcher.h"

namespace standin {

using Int = std::int64_t;

struct Norm {
  Int is_given, after_rope, eps, weight, kind, stride, offset;  // numbers by their bits in float32
  Int x, x_strides[3], weight_grad;
};

/// The fields of rope::Job, and of rope::Append, addresses and flags as integers. calls.py lists them in this order.
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
  Norm norms[2];
  Int parts;  // of a backward call, else 0
  // a call that stores in a cache; k_out is operands[1].out, or 0
  Int stores;
  struct {
    Int data, page, entry, head, stored, scale, scale_stride;
  } caches[2];
  struct {
    Int data, wide, stride, count, pages, page_size;
  } slots;
  struct {
    Int data, heads, width, strides[3];
  } v;
  Norm v_norm;
};
constexpr Int kFields = sizeof(Call) / sizeof(Int);

template <class T>
T* pointer(Int address) {
  return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

inline float number(Int bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits)); }

inline rope::Strides strides_of(const Int (&s)[3]) { return {s[0], s[1], s[2]}; }

inline rope::HeadNorm norm_of(const Norm& given) {
  rope::HeadNorm norm;
  norm.is_given = given.is_given != 0;
  norm.after_rope = given.after_rope != 0;
  norm.eps = number(given.eps);
  norm.weight = pointer<const void>(given.weight);
  norm.weight_kind = static_cast<rope::Number>(given.kind);
  norm.weight_stride = given.stride;
  norm.weight_offset = number(given.offset);
  norm.x = pointer<const void>(given.x);
  norm.x_strides = strides_of(given.x_strides);
  norm.weight_grad = pointer<float>(given.weight_grad);
  return norm;
}

/// The job of a call, for `spec`.
inline rope::Job job_of(const Call& call, const rope::Spec& spec) {
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
                       strides_of(operand.from), strides_of(operand.to)};
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
               strides_of(t.cosine_strides),  strides_of(t.sine_strides),  t.rows};
  for (int i = 0; i < 2; ++i) job.norms[i] = norm_of(call.norms[i]);
  job.backward = call.parts > 0;
  job.parts = call.parts;
  return job;
}

inline rope::PagedCache cache_of(const Call& call, int i) {
  const auto& c = call.caches[i];
  return {pointer<void>(c.data),         c.page,        c.entry, c.head, static_cast<rope::Stored>(c.stored),
          pointer<const float>(c.scale), c.scale_stride};
}

/// Launches a call for `spec`; nullptr, or what went wrong.
inline const char* launch(const Call& call, const rope::Spec& spec) {
  const rope::Job job = job_of(call, spec);
  if (call.stores == 0) return rope_launch_cuda(&job, nullptr);
  rope::Append append;
  append.job = job;
  append.k_cache = cache_of(call, 0);
  append.v_cache = cache_of(call, 1);
  const auto& s = call.slots;
  append.slots = {pointer<const void>(s.data), s.wide != 0, s.stride, s.count, s.pages, s.page_size};
  append.v = pointer<const void>(call.v.data);
  append.v_heads = call.v.heads;
  append.v_width = call.v.width;
  append.v_strides = strides_of(call.v.strides);
  append.v_norm = norm_of(call.v_norm);
  return rope_launch_append_cuda(&append, nullptr);
}

}  // namespace standin
