// What the kernels that norm heads have in common: parameters, weights, sums over a row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/spec.h"
#include "cuda/angles.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/table.cuh"

namespace rope::cuda {

/// The norm of q's or of k's heads.
struct RowNorm {
  const char* weight;
  std::int64_t channel;  // bytes from the weight of a channel to that of the next
  float offset;          // what is added to the weight
  float eps;
  bool is_given;
  bool has_weight;
  bool after_rope;
  bool wide;            // the weights lie side by side, the first one aligned to 16 bytes
  PairEntries weights;  // of pairs, as the norm sees them: as read if it comes before the rotation, else as written
};

/// The parameters of a kernel that norms. P: those of the angles.
template <class P>
struct NormParams {
  P angles;
  RowNorm q, k;
  std::int32_t tiles;  // lanes of a head that have pairs; there may be more lanes
  float per_channel;   // 1 / head_dim
};

/// A thread's part of the rows that it goes through.
struct Lane {
  int lane, pair;
  bool has_pairs;
  float* sums;  // of the warps, where a row has several; in shared memory
};

constexpr int kWarp = 32;

/// Neighbouring channels that are not rotated.
template <class D, class Unit>
struct Channels {
  static constexpr int kCount = static_cast<int>(sizeof(Unit) / sizeof(typename D::Element));
  static constexpr int kWords = kCount / D::kPerWord;

  __device__ static void unpack(const Unit& unit, float* v) {
    if constexpr (kCount == 1) {
      v[0] = D::widen(unit);
    } else {
      std::uint32_t words[kWords];
      memcpy(words, &unit, sizeof words);
      for (int i = 0; i < kWords; ++i) D::unpack(words[i], v + i * D::kPerWord);
    }
  }

  __device__ static Unit pack(const float* v) {
    if constexpr (kCount == 1) {
      return D::narrow(v[0]);
    } else {
      std::uint32_t words[kWords];
      for (int i = 0; i < kWords; ++i) words[i] = D::pack(v + i * D::kPerWord);
      Unit unit;
      memcpy(&unit, words, sizeof unit);
      return unit;
    }
  }
};

template <class T>
using ChannelsOf = Channels<typename T::Format, typename T::Unit>;

/// Spans of a head's bytes that are not rotated.
struct Rest {
  const Span* spans;
  int count;
};

__device__ inline Rest rest_of(const Settings& at) { return {at.copied, at.num_copied}; }

/// Calls `body(place)` for each of a lane's units that are not rotated; `place` is in bytes from the head's first.
template <class Unit, class BODY>
__device__ inline void for_each_rest(const Settings& at, const Rest& rest, int lane, const BODY& body) {
  constexpr int kSize = static_cast<int>(sizeof(Unit));
#pragma unroll 1
  for (int i = 0; i < rest.count; ++i) {
#pragma unroll 1
    for (int place = rest.spans[i].first + lane * kSize; place < rest.spans[i].last;
         place += static_cast<int>(at.lanes.by) * kSize) {
      body(place);
    }
  }
}

/// What a norm multiplies the members of a thread's pairs by.
template <int N>
struct Factors {
  float first[N];
  float second[N];
};

template <int N>
__device__ inline void add_offset(const RowNorm& norm, float* factors) {
  for (int i = 0; i < N; ++i) factors[i] += norm.offset;
}

template <class Entry, class T>
__device__ inline void read_factors(const Settings& at, const RowNorm& norm, const Chunks& chunks, int pair,
                                    Factors<T::kPairs>& factors) {
  const int item = static_cast<int>(sizeof(typename T::Format::Element));
  const int channel = offset_of(chunks, 0, at.block_pairs.quotient(pair)) / item;
  read_entries<Entry, T::kPairs, T::kSplit>(at, norm.weights, norm.weight + channel * norm.channel, norm.channel, pair,
                                            factors.first, factors.second);
}

/// The factors of a thread's pairs; 1 without a weight.
template <class T>
__device__ inline Factors<T::kPairs> factors_of(const Settings& at, const RowNorm& norm, const Lane& lane) {
  Factors<T::kPairs> factors;
  for (int i = 0; i < T::kPairs; ++i) factors.first[i] = factors.second[i] = 1.0F;
  if (!norm.has_weight || !lane.has_pairs) return factors;
  const Chunks& chunks = norm.after_rope ? at.write : at.read;
  switch (norm.weights.kind) {
    case Number::kBFloat16:
      read_factors<__nv_bfloat16, T>(at, norm, chunks, lane.pair, factors);
      break;
    case Number::kFloat16:
      read_factors<__half, T>(at, norm, chunks, lane.pair, factors);
      break;
    default:
      read_factors<float, T>(at, norm, chunks, lane.pair, factors);
  }
  add_offset<T::kPairs>(norm, factors.first);
  add_offset<T::kPairs>(norm, factors.second);
  return factors;
}

template <class Entry, int N>
__device__ inline void read_neighbours(const RowNorm& norm, int channel, float* factors) {
  const char* data = norm.weight + channel * norm.channel;
  Entry entries[N];
  if constexpr (N > 1) {
    if (norm.wide) {
      load_side_by_side<Entry, N>(data, entries);
      for (int i = 0; i < N; ++i) factors[i] = widened(entries[i]);
      return;
    }
  }
  for (int i = 0; i < N; ++i) factors[i] = widened(*reinterpret_cast<const Entry*>(data + i * norm.channel));
}

/// The factors of N neighbouring channels.
template <int N>
__device__ inline void rest_factors(const RowNorm& norm, int channel, float* factors) {
  if (!norm.has_weight) {
    for (int i = 0; i < N; ++i) factors[i] = 1.0F;
    return;
  }
  switch (norm.weights.kind) {
    case Number::kBFloat16:
      read_neighbours<__nv_bfloat16, N>(norm, channel, factors);
      break;
    case Number::kFloat16:
      read_neighbours<__half, N>(norm, channel, factors);
      break;
    default:
      read_neighbours<float, N>(norm, channel, factors);
  }
  add_offset<N>(norm, factors);
}

/// The sum of products, in an order of its own.
template <int N>
__device__ inline float dot(const float* x, const float* y, float sum = 0.0F) {
  for (int i = 0; i < N; ++i) sum = fmaf(x[i], y[i], sum);
  return sum;
}

template <int N>
__device__ inline void scale(float* x, const float* factors) {
  for (int i = 0; i < N; ++i) x[i] *= factors[i];
}

template <int N>
__device__ inline void scale(float* x, float factor) {
  for (int i = 0; i < N; ++i) x[i] *= factor;
}

/// Replaces each of COUNT values by its sum over the lanes of a row, which all of them get. All threads of a block come
/// here together. The order is that of the lanes, whatever other rows the block has.
template <class T, int COUNT>
__device__ inline void sum_over_row(const Settings& at, const Lane& lane, float* values) {
  const int lanes = static_cast<int>(at.lanes.by);
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    if (step < lanes) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) values[i] += __shfl_xor_sync(0xFFFFFFFFU, values[i], step);
    }
  }
  if constexpr (T::kMostLanes > kWarp) {
    if (lanes <= kWarp) return;
    const int warps = lanes / kWarp, warp = static_cast<int>(threadIdx.x) / kWarp, first = warp & ~(warps - 1);
    if (threadIdx.x % kWarp == 0) {
      for (int i = 0; i < COUNT; ++i) lane.sums[i * kWarp + warp] = values[i];
    }
    __syncthreads();
    for (int i = 0; i < COUNT; ++i) {
      values[i] = 0.0F;
#pragma unroll 1
      for (int j = 0; j < warps; ++j) values[i] += lane.sums[i * kWarp + first + j];
    }
    __syncthreads();
  }
}

/// 1 / the root of the mean of a row's squares and eps.
__device__ inline float inverse_rms(const RowNorm& norm, float squares, float per_channel) {
  return rsqrtf(fmaf(squares, per_channel, norm.eps));
}

}  // namespace rope::cuda
