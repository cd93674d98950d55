// The kernel that norms the heads of q and k and rotates them. A row is in registers from its one read to its one
// write, so that it is rounded once; only channels that are not rotated are read twice.
#pragma once

#include "cuda/angles.cuh"
#include "cuda/norm.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"

namespace rope::cuda {

/// A thread's part of COUNT rows.
template <class T, int COUNT>
struct Rows {
  float a[COUNT][T::kPairs], b[COUNT][T::kPairs];  // members of the pairs
  float squares[COUNT];
};

/// Adds the squares of channels that are not rotated.
template <class T, int COUNT>
__device__ inline void add_rest(const Settings& at, const Tensor& tensor, const Heads& heads, int lane,
                                float* squares) {
  using C = ChannelsOf<T>;
  for_each_rest<typename T::Unit>(at, lane, [&](int place) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (heads.count <= i * at.head_slots) continue;
      float v[C::kCount];
      C::unpack(*reinterpret_cast<const typename T::Unit*>(heads.x + i * tensor.from.step + place), v);
      squares[i] += dot<C::kCount>(v, v);
    }
  });
}

/// Norms channels that are not rotated, by the inverse rms of each row.
template <class T, int COUNT>
__device__ inline void norm_rest(const Settings& at, const Tensor& tensor, const RowNorm& norm, const Heads& heads,
                                 int lane, const float* inverse) {
  using C = ChannelsOf<T>;
  using Unit = typename T::Unit;
  for_each_rest<Unit>(at, lane, [&](int place) {
    float u[C::kCount];
    rest_factors<C::kCount>(norm, place / static_cast<int>(sizeof(typename T::Format::Element)), u);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (heads.count <= i * at.head_slots) continue;
      float v[C::kCount];
      C::unpack(*reinterpret_cast<const Unit*>(heads.x + i * tensor.from.step + place), v);
      scale<C::kCount>(v, inverse[i]);
      scale<C::kCount>(v, u);
      store_unit(heads.y + i * tensor.to.step + place, C::pack(v));
    }
  });
}

/// Loads COUNT rows, and norms and rotates them up to the factor of each row. Rows that are not there are zeros.
template <class T, int COUNT, class C>
__device__ inline void read_rows(const Settings& at, const Tensor& tensor, const RowNorm& norm, const Lane& lane,
                                 const Heads& heads, const char* x, const Factors<T::kPairs>& u, const C& cos_sin,
                                 Rows<T, COUNT>& rows) {
  constexpr int N = T::kPairs;
  T tile[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    tile[i] = {};
    if (lane.has_pairs && heads.count > i * at.head_slots) tile[i].load(x + i * tensor.from.step, at.read.apart);
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    float *a = rows.a[i], *b = rows.b[i];
    tile[i].unpack(a, b);
    if (!norm.after_rope) {
      rows.squares[i] = dot<N>(b, b, dot<N>(a, a));
      scale<N>(a, u.first);
      scale<N>(b, u.second);
    }
    turn<N>(a, b, cos_sin);
    if (norm.after_rope) {
      rows.squares[i] = dot<N>(b, b, dot<N>(a, a));
      scale<N>(a, u.first);
      scale<N>(b, u.second);
    }
  }
}

/// Norms and rotates COUNT rows. All threads of a block come here together.
template <class T, int COUNT, class P, class C>
__device__ inline void norm_rows(const P& p, const Tensor& tensor, const RowNorm& norm, const Lane& lane,
                                 const Heads& heads, const char* x, char* y, const Factors<T::kPairs>& u,
                                 const C& cos_sin) {
  const Settings& at = p.angles.at;
  Rows<T, COUNT> rows;
  read_rows<T, COUNT>(at, tensor, norm, lane, heads, x, u, cos_sin, rows);
  float inverse[COUNT];
  for (int i = 0; i < COUNT; ++i) inverse[i] = 1.0F;
  if (norm.is_given) {
    add_rest<T, COUNT>(at, tensor, heads, lane.lane, rows.squares);
    sum_over_row<T, COUNT>(at, lane, rows.squares);
    for (int i = 0; i < COUNT; ++i) inverse[i] = inverse_rms(norm, rows.squares[i], p.per_channel);
  }
  if (T::kExchanges && at.exchanges) __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    scale<T::kPairs>(rows.a[i], inverse[i]);
    scale<T::kPairs>(rows.b[i], inverse[i]);
    T tile;
    tile.pack(rows.a[i], rows.b[i]);
    if (lane.has_pairs && heads.count > i * at.head_slots) tile.store(y + i * tensor.to.step, at.write.apart);
  }
  if (norm.is_given) norm_rest<T, COUNT>(at, tensor, norm, heads, lane.lane, inverse);
}

/// Norms and rotates all heads of q or k.
template <class T, class P, class C>
__device__ inline void norm_tensor(const P& p, const Tensor& tensor, const RowNorm& norm, const Place& place, int slot,
                                   const Lane& lane, bool rotated, const C& cos_sin) {
  const Settings& at = p.angles.at;
  const int block = at.block_pairs.quotient(lane.pair);
  const int read = offset_of(at.read, lane.pair, block), written = offset_of(at.write, lane.pair, block);
  const Factors<T::kPairs> u = factors_of<T>(at, norm, lane);
  Heads heads = heads_of(tensor, at, place, slot);
  if (!rotated) heads.count = 0;
#pragma unroll 1
  for (int first = 0; first < tensor.heads; first += T::kBatch * at.head_slots) {
    norm_rows<T, T::kBatch>(p, tensor, norm, lane, heads, heads.x + read, heads.y + written, u, cos_sin);
    advance(at, tensor, heads, T::kBatch);
  }
}

/// Copies what no norm and no rotation changes.
template <class T>
__device__ inline void copy_unchanged(const Settings& at, const Tensor& tensor, const RowNorm& norm, const Place& place,
                                      int slot, int lane) {
  if (tensor.heads == 0 || (place.rotated && norm.is_given)) return;
  copy_tensor<typename T::Unit>(tensor, at, place, slot, lane);
}

/// Thread blocks that a multiprocessor shall hold at least: see kLeastBlocks.
template <class T>
constexpr int kLeastNormBlocks = T::kMaxThreads > 512 ? 1 : 512 / T::kMaxThreads;

/// Norms and rotates q and k. Threads are laid out as in rotate_kernel, but all of a block go through the rows
/// together, since a row's lanes exchange their sums.
template <class T, bool GENERAL, class P>
__global__ void __launch_bounds__(T::kMaxThreads, kLeastNormBlocks<T>)
    norm_kernel(const __grid_constant__ NormParams<P> p) {
  __shared__ float sums[T::kMostLanes > kWarp ? T::kBatch * kWarp : 1];
  const Settings& at = p.angles.at;
  const int head = at.lanes.quotient(threadIdx.x);
  const int slot = head & (at.head_slots - 1), lane = threadIdx.x - head * at.lanes.by;
  std::uint32_t flat = blockIdx.x * at.token_slots + (head >> at.head_slots_log2);
  const bool inside = flat < at.count;
  if (!inside) flat = at.count - 1;
  const Place place = place_of(at, flat);
  const bool rotated = inside && place.rotated, has_pairs = lane < p.tiles;
  const int pair = has_pairs ? lane * (T::kSplit ? T::kPairs / 2 : T::kPairs) : 0;
  if (!at.in_place && inside) {
    copy_unchanged<T>(at, at.q, p.q, place, slot, lane);
    copy_unchanged<T>(at, at.k, p.k, place, slot, lane);
  }
  CosSin<T::kPairs> cos_sin{};
  if (rotated && has_pairs) cos_sin = cos_sin_of<T::kPairs, T::kSplit, GENERAL>(p.angles, place, pair);
  const Lane mine{lane, pair, has_pairs, sums};
  norm_tensor<T>(p, at.q, p.q, place, slot, mine, rotated, cos_sin);
  if (at.k.heads > 0) norm_tensor<T>(p, at.k, p.k, place, slot, mine, rotated, cos_sin);
}

}  // namespace rope::cuda
