// The kernel that norms and rotates q and k and stores k and v in a paged KV cache. The rows of q and k are those of
// norm_kernel; a row of v is one whose channels are not rotated.
#pragma once

#include <cstdint>

#include "core/append.h"
#include "core/spec.h"
#include "cuda/angles.cuh"
#include "cuda/norm.cuh"
#include "cuda/norm_kernel.cuh"
#include "cuda/params.cuh"
#include "cuda/quantise.cuh"
#include "cuda/rows.cuh"

namespace rope::cuda {

/// The cache of k's or v's heads. Strides in bytes; `step` leads from a head of a thread to its next one.
struct CacheSide {
  char* data;
  std::int64_t page, entry, head, step;
  const float* scale;
  std::int64_t scale_head;  // from the scale of a head to that of the next one
  Stored stored;
};

struct SlotTable {
  const void* data;
  std::int64_t stride, count;
  std::int64_t end;  // slots of the cache
  std::int64_t page_size;
  std::uint64_t pages_per_slot;  // ceil(2^64 / page_size), too large for 1
  bool wide;                     // int64, else int32
};

/// The parameters of the kernel that stores in a cache. P: those of the angles.
template <class P>
struct AppendParams {
  NormParams<P> rows;
  CacheSide k_cache, v_cache;
  SlotTable slots;
  Tensor v;     // only read
  Span v_span;  // all bytes of a head
  RowNorm v_norm;
  float v_per_channel;  // 1 / width
  bool has_k_out;
};

/// Where a token is stored.
struct CachePlace {
  std::int64_t page, entry;
  bool is_stored;
};

/// A token without a slot, with one that is negative or past the cache, or outside all sequences is not stored.
__device__ inline CachePlace cache_place_of(const SlotTable& slots, const RowThread& thread) {
  if (!thread.rotated || thread.flat >= slots.count) return {0, 0, false};
  const std::int64_t at = thread.flat * slots.stride;
  const std::int64_t slot =
      slots.wide ? static_cast<const std::int64_t*>(slots.data)[at] : static_cast<const std::int32_t*>(slots.data)[at];
  if (slot < 0 || slot >= slots.end) return {0, 0, false};
  std::int64_t page = slot;
  if (slots.page_size > 1) {
    page = static_cast<std::int64_t>(__umul64hi(static_cast<std::uint64_t>(slot), slots.pages_per_slot));
  }
  return {page, slot - page * slots.page_size, true};
}

/// Where a thread's rows go: to a cache, and to the tensor's output where there is one.
template <class T>
struct ToCache {
  using C = ChannelsOf<T>;
  static constexpr bool kTakesUnchanged = true;
  static constexpr int kItem = static_cast<int>(sizeof(typename T::Format::Element));
  ToTensor<T> output;
  bool has_output;
  const CacheSide& cache;
  std::int64_t scale_step;  // from the scale of a head of a thread to that of its next one
  char* row;                // of the thread's first head; nullptr if its token is not stored
  const float* scale;

  __device__ void put_pairs(const Heads& heads, int i, const float* a, const float* b) const {
    if (has_output) output.put_pairs(heads, i, a, b);
    if (row == nullptr) return;
    const std::int64_t apart = output.at.write.apart;
    if (cache.stored == Stored::kAsIs) {
      T tile;
      tile.pack(a, b);
      tile.store(row + i * cache.step + output.written, apart);
      return;
    }
    float w[2 * T::kPairs];
    T::arrange(a, b, w);
    char* const to = row + i * cache.step + output.written / kItem;
    const float divisor = scale[i * scale_step];
    store_quantised<T::kPairs>(cache.stored, w, divisor, to);
    store_quantised<T::kPairs>(cache.stored, w + T::kPairs, divisor, to + apart / kItem);
  }

  __device__ void put_rest(const Heads& heads, int i, int place, const float* v) const {
    if (has_output) output.put_rest(heads, i, place, v);
    if (row == nullptr) return;
    if (cache.stored == Stored::kAsIs) {
      store_unit(row + i * cache.step + place, C::pack(v));
    } else {
      store_quantised<C::kCount>(cache.stored, v, scale[i * scale_step], row + i * cache.step + place / kItem);
    }
  }

  __device__ void put_unchanged(int i, int place, const typename T::Unit& unit) const {
    if (row == nullptr) return;
    if (cache.stored == Stored::kAsIs) {
      store_unit(row + i * cache.step + place, unit);
    } else {
      float v[C::kCount];
      C::unpack(unit, v);
      store_quantised<C::kCount>(cache.stored, v, scale[i * scale_step], row + i * cache.step + place / kItem);
    }
  }

  __device__ void advance(int steps) {
    if (row == nullptr) return;
    row += steps * cache.step;
    if (cache.stored != Stored::kAsIs) scale += steps * scale_step;
  }
};

template <class T>
__device__ inline ToCache<T> to_cache(const ToTensor<T>& output, bool has_output, const CacheSide& cache,
                                      const CachePlace& place, const RowThread& thread) {
  // in one piece: of two, a compiler would take the parameters' addresses
  char* const row = cache.data + place.page * cache.page + place.entry * cache.entry + thread.slot * cache.head;
  const bool is_quantised = place.is_stored && cache.stored != Stored::kAsIs;
  return {output,
          has_output,
          cache,
          cache.scale_head * output.at.head_slots,
          place.is_stored ? row : nullptr,
          is_quantised ? cache.scale + thread.slot * cache.scale_head : nullptr};
}

/// Rows that a thread stores in a cache at a time: as many as its registers hold beside the addresses.
template <class T>
constexpr int kStoredBatch = T::kMaxThreads > 512 ? 2 : T::kBatch;

/// Stores v's heads of a token, normed or as they are. All threads of a block come here together.
template <class T, class P>
__device__ inline void store_values(const P& p, const RowThread& thread, ToCache<T> out) {
  constexpr int kCount = kStoredBatch<T>;
  const Settings& at = p.rows.angles.at;
  const Rest rest{&p.v_span, 1};
  Heads heads{head_of(p.v.from, at, thread.place, thread.slot), nullptr, p.v.heads - thread.slot};
  if (out.row == nullptr) heads.count = 0;
#pragma unroll 1
  for (int first = 0; first < p.v.heads; first += kCount * at.head_slots) {
    float inverse[kCount];
    if (p.v_norm.is_given) {
      float squares[kCount] = {};
      add_rest<T, kCount>(at, p.v, rest, heads, thread.lane.lane, squares);
      sum_over_row<T, kCount>(at, thread.lane, squares);
      for (int i = 0; i < kCount; ++i) inverse[i] = inverse_rms(p.v_norm, squares[i], p.v_per_channel);
    }
    put_rest<T, kCount>(at, p.v, rest, p.v_norm, heads, thread.lane.lane, inverse, out);
    advance(at, p.v, heads, kCount);
    out.advance(kCount);
  }
}

/// Norms and rotates q and k, and stores k and v. Threads are laid out as in norm_kernel.
template <class T, bool GENERAL, class P>
__global__ void __launch_bounds__(T::kMaxThreads, kLeastNormBlocks<T>)
    append_kernel(const __grid_constant__ AppendParams<P> p) {
  __shared__ float sums[T::kMostLanes > kWarp ? T::kBatch * kWarp : 1];
  const Settings& at = p.rows.angles.at;
  const RowThread thread = thread_of<T>(p.rows, sums);
  const CachePlace place = cache_place_of(p.slots, thread);
  copy_unchanged<T>(at, at.q, p.rows.q, thread);
  copy_unchanged<T>(at, at.k, p.rows.k, thread);
  const CosSin<T::kPairs> cos_sin = row_cos_sin_of<T, GENERAL>(p.rows, thread);
  norm_tensor<T, kStoredBatch<T>>(p.rows, at.q, p.rows.q, thread, cos_sin, to_tensor<T>(at, at.q, thread.lane));
  if (at.k.heads > 0) {
    const ToTensor<T> output = to_tensor<T>(at, at.k, thread.lane);
    norm_tensor<T, kStoredBatch<T>>(p.rows, at.k, p.rows.k, thread, cos_sin,
                                    to_cache<T>(output, p.has_k_out, p.k_cache, place, thread));
  }
  if (p.v.heads > 0) {
    store_values<T>(p, thread, to_cache<T>({at, p.v, 0}, false, p.v_cache, place, thread));
  }
}

}  // namespace rope::cuda
