// The heads that a thread goes through: where they are, and copies of what is not rotated.
#pragma once

#include <cstdint>

#include "core/spec.h"
#include "cuda/angles.cuh"
#include "cuda/params.cuh"

namespace rope::cuda {

/// A thread's heads of one tensor at one token: every `head_slots`-th.
struct Heads {
  const char* x;
  char* y;
  int count;  // heads from the thread's first one to the last
};

__device__ inline void advance(const Settings& at, const Tensor& tensor, Heads& heads, int steps) {
  heads.x += steps * tensor.from.step;
  heads.y += steps * tensor.to.step;
  heads.count -= steps * at.head_slots;
}

/// Where a thread's first head is, as read or as written.
__device__ inline char* head_of(const Side& side, const Settings& at, const Place& place, int slot) {
  char* head = side.data + place.token * side.token + slot * side.head;
  return at.batched ? head + place.batch * side.batch : head;
}

__device__ inline Heads heads_of(const Tensor& tensor, const Settings& at, const Place& place, int slot) {
  return {head_of(tensor.from, at, place, slot), head_of(tensor.to, at, place, slot), tensor.heads - slot};
}

__device__ inline int offset_of(const Chunks& chunks, int pair, int block) {
  return chunks.first + pair * chunks.per_pair + block * chunks.block;
}

template <class Unit>
__device__ inline void store_unit(char* y, const Unit& unit) {
  *reinterpret_cast<Unit*>(y) = unit;
}

/// Copies bytes [span.first, span.last) of heads in units of `Unit`, by all lanes of a head.
template <class Unit>
__device__ inline void copy_heads(const Settings& at, const Tensor& tensor, Heads heads, const Span& span, int lane) {
  constexpr int kBatch = 4, kSize = static_cast<int>(sizeof(Unit));
  const int step = static_cast<int>(at.lanes.by) * kSize;
#pragma unroll 1
  for (; heads.count > 0; advance(at, tensor, heads, 1)) {
#pragma unroll 1
    for (int begin = span.first + lane * kSize; begin < span.last; begin += kBatch * step) {
      Unit unit[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i * step < span.last) unit[i] = *reinterpret_cast<const Unit*>(heads.x + begin + i * step);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (begin + i * step < span.last) store_unit(heads.y + begin + i * step, unit[i]);
      }
    }
  }
}

/// Copies the channels that are not rotated; whole heads of a token past all sequences.
template <class Unit>
__device__ inline void copy_tensor(const Tensor& tensor, const Settings& at, const Place& place, int slot, int lane) {
  const Heads heads = heads_of(tensor, at, place, slot);
  if (!place.rotated) {
    copy_heads<Unit>(at, tensor, heads, {0, at.head_bytes}, lane);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < at.num_copied; ++i) copy_heads<Unit>(at, tensor, heads, at.copied[i], lane);
}

}  // namespace rope::cuda
