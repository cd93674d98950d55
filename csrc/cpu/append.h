// Rotates q and k and stores k and v in a paged KV cache, a few tokens at a time: k is rotated to scratch memory that
// stays in the cache, and copied from there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/append.h"
#include "core/job.h"
#include "cpu/floats.h"
#include "cpu/norm.h"
#include "cpu/quantise.h"
#include "cpu/scratch.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {

void rotate(const Job& job, std::int64_t first, std::int64_t last, ThreadState& thread);

namespace {

constexpr std::int64_t kRowBytes = 64 << 10;  // of the scratch memory for rotated k

/// The heads of consecutive tokens, on their way to a cache.
template <class D>
struct Rows {
  const typename D::T* first;
  Strides strides;  // of the flattened tokens' batch and token, and of a head
  std::int64_t heads;
  int width;
  std::int64_t tokens;  // of a batch entry

  [[nodiscard]] const typename D::T* at(std::int64_t flat) const {
    return first + flat / tokens * strides.batch + flat % tokens * strides.token;
  }
};

/// Copies bytes; a streaming copy needs whole, aligned cache lines at `to`.
template <bool STREAM>
ROPE_INLINE void copy_bytes(void* to, const void* from, std::size_t size) {
  if constexpr (!STREAM) {
    std::memcpy(to, from, size);
  } else {
    using V = typename Vec<ROPE_VECTOR>::U;
    auto* const bytes = static_cast<char*>(to);
    for (std::size_t i = 0; i < size; i += sizeof(V)) {
      store_as<true>(bytes + i, load_as<V>(static_cast<const char*>(from) + i));
    }
  }
}

/// Stores one token's heads as they are.
template <bool STREAM, class T>
ROPE_INLINE void copy_heads(const T* from, std::int64_t stride, std::int64_t heads, int width, T* to,
                            std::int64_t to_stride) {
  const auto size = static_cast<std::size_t>(width) * sizeof(T);
  if (stride == width && to_stride == width) {
    copy_bytes<STREAM>(to, from, size * static_cast<std::size_t>(heads));
    return;
  }
  for (std::int64_t h = 0; h < heads; ++h) copy_bytes<STREAM>(to + h * to_stride, from + h * stride, size);
}

/// Stores one token's heads after a norm, or in 8 bits.
template <class D>
void convert_heads(const typename D::T* from, std::int64_t stride, std::int64_t heads, const HeadNorm& norm,
                   const PagedCache& cache, std::int64_t to, const HeadCopies& copies) {
  const int n = copies.head_dim;
  for (std::int64_t h = 0; h < heads; ++h) {
    widen<D>(from + h * stride, copies.a, n);
    if (norm.is_given) scale(norm, copies.a, inverse_rms(norm, dot(copies.a, copies.a, n), n), n);
    const std::int64_t at = to + h * cache.head;
    if (cache.stored == Stored::kAsIs) {
      narrow<D>(copies.a, static_cast<typename D::T*>(cache.data) + at, n);
    } else {
      quantise(cache.stored, copies.a, cache.scale[h * cache.scale_stride], static_cast<std::uint8_t*>(cache.data) + at,
               n);
    }
  }
}

/// Stores tokens [first, last) that have a slot.
template <class D>
void store_rows(const Append& append, const Rows<D>& rows, const HeadNorm& norm, const PagedCache& cache,
                bool streaming, std::int64_t first, std::int64_t last, ThreadState& thread) {
  const Slots& slots = append.slots;
  const Packed& packed = append.job.packed;
  last = std::min(last, slots.count);
  if (packed.bounds != nullptr) last = std::min(last, packed.bound(packed.sequences));
  const bool as_is = cache.stored == Stored::kAsIs && !norm.is_given;
  const HeadCopies copies(thread, rows.width);
  for (std::int64_t flat = first; flat < last; ++flat) {
    const std::int64_t slot = slots[flat];
    if (slot < 0) continue;
    const std::int64_t to = slot / slots.page_size * cache.page + slot % slots.page_size * cache.entry;
    if (as_is) {
      auto* data = static_cast<typename D::T*>(cache.data);
      const auto copy = streaming ? copy_heads<true, typename D::T> : copy_heads<false, typename D::T>;
      copy(rows.at(flat), rows.strides.head, rows.heads, rows.width, data + to, cache.head);
    } else {
      convert_heads<D>(rows.at(flat), rows.strides.head, rows.heads, norm, cache, to, copies);
    }
  }
}

/// The scratch memory of tokens [first, ...) as an output of a job, or as rows.
Strides scratch_strides(const Job& job) {
  const std::int64_t row = job.operands[1].heads * job.spec->rotation.head_dim;
  return {job.tokens * row, row, job.spec->rotation.head_dim};
}

template <class T>
T* scratch_of(const Job& job, std::int64_t first, ThreadState& thread) {
  const std::int64_t row = scratch_strides(job).token;
  return static_cast<T*>(static_cast<void*>(thread.rows.data())) - first * row;
}

/// Rotates k in fp32, from k as it was given, and stores it in 8 bits: the cache's numbers are rounded once.
template <class D>
void store_quantised_k(const Append& append, std::int64_t first, std::int64_t last, ThreadState& thread) {
  const Job& job = append.job;
  const Operand& k = job.operands[1];
  const int head_dim = job.spec->rotation.head_dim;
  auto* const wide = scratch_of<float>(job, first, thread);
  const Strides to = scratch_strides(job);
  const Rows<D> rows{static_cast<const typename D::T*>(k.in), k.from, k.heads, head_dim, job.tokens};
  for (std::int64_t flat = first; flat < last; ++flat) {
    for (std::int64_t h = 0; h < k.heads; ++h) {
      widen<D>(rows.at(flat) + h * k.from.head, wide + flat * to.token + h * to.head, head_dim);
    }
  }
  Job of_k = job;
  of_k.operands[0] = {wide, wide, k.heads, to, to};
  of_k.norms[0] = append.job.norms[1];
  of_k.norms[1] = {};
  of_k.num_operands = 1;
  of_k.dtype = DType::kFloat32;
  of_k.in_place = true;
  rotate(of_k, first, last, thread);
  store_rows<Float32>(append, {wide, to, k.heads, head_dim, job.tokens}, {}, append.k_cache, false, first, last,
                      thread);
}

/// Rotates q, and k to where it is stored from.
template <class D>
void append_chunk(const Append& append, std::int64_t first, std::int64_t last, ThreadState& thread) {
  using T = typename D::T;
  Job job = append.job;
  const bool has_k = append.k_cache.data != nullptr, quantised = append.k_cache.stored != Stored::kAsIs;
  Operand& k = job.operands[1];
  if (has_k && quantised) store_quantised_k<D>(append, first, last, thread);  // first: k may be rotated in place
  if (has_k && k.out == nullptr) {
    if (quantised) {
      job.num_operands = 1;
    } else {
      k.out = scratch_of<T>(job, first, thread);
      k.to = scratch_strides(job);
    }
  }
  rotate(job, first, last, thread);
  if (has_k && !quantised) {
    const Rows<D> rows{static_cast<const T*>(k.out), k.to, k.heads, job.spec->rotation.head_dim, job.tokens};
    store_rows<D>(append, rows, {}, append.k_cache, append.k_streaming, first, last, thread);
  }
  if (append.v_cache.data != nullptr) {
    const Rows<D> rows{static_cast<const T*>(append.v), append.v_strides, append.v_heads,
                       static_cast<int>(append.v_width), job.tokens};
    store_rows<D>(append, rows, append.v_norm, append.v_cache, append.v_streaming, first, last, thread);
  }
}

template <class D>
void append_range(const Append& append, std::int64_t first, std::int64_t last, ThreadState& thread) {
  std::int64_t chunk = last - first;
  if (append.k_cache.data != nullptr) {
    const std::int64_t row = scratch_strides(append.job).token * 4;
    chunk = std::max<std::int64_t>(kRowBytes / std::max<std::int64_t>(row, 1), 1);
    const auto bytes = static_cast<std::size_t>(chunk * row);
    if (thread.rows.size() * sizeof(float) < bytes) thread.rows.resize(bytes / sizeof(float));
  }
  for (; first < last; first += chunk) append_chunk<D>(append, first, std::min(first + chunk, last), thread);
#if defined(__x86_64__)
  if (append.k_streaming || append.v_streaming) _mm_sfence();
#endif
}

}  // namespace

/// Rotates and stores tokens [first, last) of the flattened (batch, tokens).
void append(const Append& append, std::int64_t first, std::int64_t last, ThreadState& thread) {
  switch (append.job.dtype) {
    case DType::kFloat32:
      return append_range<Float32>(append, first, last, thread);
    case DType::kBFloat16:
      return append_range<BFloat16>(append, first, last, thread);
    case DType::kFloat16:
      return append_range<Float16>(append, first, last, thread);
  }
}

}  // namespace rope::ROPE_ISA
