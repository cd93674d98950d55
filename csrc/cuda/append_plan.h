// Plans the launch of a call that stores in a KV cache, and fills its parameters: host code, of kernel.cu only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "core/append.h"
#include "core/job.h"
#include "core/spec.h"
#include "cuda/append_kernel.cuh"
#include "cuda/norm.cuh"
#include "cuda/norm_plan.h"
#include "cuda/params.cuh"
#include "cuda/plan.h"
#include "cuda/rows.cuh"

namespace rope::cuda {
namespace {

/// The job of q and k. Where k has no output, k itself stands for it and is not written.
Job job_of_rows(const Append& append) {
  Job job = append.job;
  Operand& k = job.operands[1];
  if (job.num_operands > 1 && k.out == nullptr) {
    k.out = const_cast<void*>(k.in);
    k.to = k.from;
  }
  return job;
}

bool is_empty(const Append& append) {
  const Job& job = append.job;
  return job.batch * job.tokens == 0 || heads_of(job) + append.v_heads == 0;
}

const char* refuse(const Append& append) {
  const Slots& slots = append.slots;
  const auto size = static_cast<std::uint64_t>(slots.page_size), pages = static_cast<std::uint64_t>(slots.pages);
  // see SlotTable::pages_per_slot
  const bool has_quotients = size <= 1 || pages <= std::numeric_limits<std::uint64_t>::max() / size / size;
  return has_quotients ? refuse(append.job) : "a cache of 2^64 slots times page size or more";
}

/// Whether rows of a cache are aligned as units of 16 bytes of q's dtype need it.
bool is_wide(const PagedCache& cache, std::int64_t item) {
  if (cache.data == nullptr) return true;
  const std::int64_t bytes = cache.stored == Stored::kAsIs ? item : 1, needed = 16 / item * bytes;
  const std::int64_t places = (cache.page | cache.entry | cache.head) * bytes;
  return (places | reinterpret_cast<std::intptr_t>(cache.data)) % needed == 0;
}

bool is_wide(const Append& append, std::int64_t item) {
  std::int64_t places = append.v_width;
  const Job& job = append.job;
  if (job.batch > 1) places |= append.v_strides.batch;
  if (job.tokens > 1) places |= append.v_strides.token;
  if (append.v_heads > 1) places |= append.v_strides.head;
  return (places * item | reinterpret_cast<std::intptr_t>(append.v)) % 16 == 0 && is_wide(append.k_cache, item) &&
         is_wide(append.v_cache, item);
}

/// Normed rows have the lanes that norm_kernel gives them, and so the same bits; others may have more for wide rows of
/// v.
Shape append_shape_of(const Append& append, std::int64_t multiprocessors) {
  const Job job = job_of_rows(append);
  Shape shape = heads_shape_of(job);
  if (shape.chunk < 16 || !is_wide(append, shape.item)) shape.chunk = 0;
  shape.lanes = lanes_of(job, shape);
  if (!job.is_normed()) {
    const std::int64_t units = append.v_width * shape.item / std::max(shape.chunk, shape.item);
    const std::int64_t for_v = std::min<std::int64_t>(kWarp, units / kRestUnitsPerLane);
    shape.lanes = std::max<std::int64_t>(shape.lanes, std::bit_floor(static_cast<std::uint64_t>(for_v)));
  }
  fill_block(job, multiprocessors, shape);
  return shape;
}

CacheSide cache_side_of(const PagedCache& cache, const Shape& shape) {
  const std::int64_t bytes = cache.stored == Stored::kAsIs ? shape.item : 1, head = cache.head * bytes;
  return {static_cast<char*>(cache.data), cache.page * bytes, cache.entry * bytes, head,
          head * shape.head_slots,        cache.scale,        cache.scale_stride,  cache.stored};
}

SlotTable slot_table_of(const Slots& slots) {
  const std::int64_t size = std::max<std::int64_t>(slots.page_size, 1);
  const std::uint64_t reciprocal = ~std::uint64_t{0} / static_cast<std::uint64_t>(size) + 1;
  return {slots.data, slots.stride, slots.count, slots.pages * slots.page_size, size, reciprocal, slots.wide};
}

template <class P>
void fill(const Append& append, const Shape& shape, AppendParams<P>& params) {
  const Job job = job_of_rows(append);
  fill(job, shape, params.rows);
  Settings& at = params.rows.angles.at;
  const Strides& v = append.v_strides;
  at.batched = at.batched || (job.batch > 1 && append.v_heads > 0 && v.batch != job.tokens * v.token);
  params.k_cache = cache_side_of(append.k_cache, shape);
  params.v_cache = cache_side_of(append.v_cache, shape);
  params.slots = slot_table_of(append.slots);
  params.v = {side_of(append.v, v, shape), {}, static_cast<std::int32_t>(append.v_heads)};
  params.v_span = {0, static_cast<std::int32_t>(append.v_width * shape.item)};
  params.v_norm = row_norm_of(job, append.v_norm, shape);
  params.v_per_channel = 1.0F / static_cast<float>(std::max<std::int64_t>(append.v_width, 1));
  params.has_k_out = append.job.operands[1].out != nullptr;
}

}  // namespace
}  // namespace rope::cuda
