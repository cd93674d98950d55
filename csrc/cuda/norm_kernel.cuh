// The kernel that norms the heads of q and k and rotates them. A row is in registers from its one read to its one
// write, so that it is rounded once; only channels that are not rotated are read twice.
#pragma once

#include "cuda/angles.cuh"
#include "cuda/norm.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"

namespace rope::cuda {

/// A thread of a kernel whose threads go through whole rows.
struct RowThread {
  std::uint32_t flat;  // its token among those of all sequences
  Place place;
  bool inside, rotated;  // its token is one of the call's, and one of a sequence
  int slot;
  Lane lane;
};

/// A thread's part of COUNT rows.
template <class T, int COUNT>
struct Rows {
  float a[COUNT][T::kPairs], b[COUNT][T::kPairs];  // members of the pairs
  float squares[COUNT];
};

/// Adds the squares of channels that are not rotated.
template <class T, int COUNT>
__device__ inline void add_rest(const Settings& at, const Tensor& tensor, const Rest& rest, const Heads& heads,
                                int lane, float* squares) {
  using C = ChannelsOf<T>;
  for_each_rest<typename T::Unit>(at, rest, lane, [&](int place) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (heads.count <= i * at.head_slots) continue;
      float v[C::kCount];
      C::unpack(*reinterpret_cast<const typename T::Unit*>(heads.x + i * tensor.from.step + place), v);
      squares[i] += dot<C::kCount>(v, v);
    }
  });
}

/// Gives `out` the channels that are not rotated, normed by the inverse rms of each row, or as they are.
template <class T, int COUNT, class OUT>
__device__ inline void put_rest(const Settings& at, const Tensor& tensor, const Rest& rest, const RowNorm& norm,
                                const Heads& heads, int lane, const float* inverse, const OUT& out) {
  using C = ChannelsOf<T>;
  using Unit = typename T::Unit;
  for_each_rest<Unit>(at, rest, lane, [&](int place) {
    float u[C::kCount];
    if (norm.is_given) rest_factors<C::kCount>(norm, place / static_cast<int>(sizeof(typename T::Format::Element)), u);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (heads.count <= i * at.head_slots) continue;
      const Unit unit = *reinterpret_cast<const Unit*>(heads.x + i * tensor.from.step + place);
      if (!norm.is_given) {
        out.put_unchanged(i, place, unit);
        continue;
      }
      float v[C::kCount];
      C::unpack(unit, v);
      scale<C::kCount>(v, inverse[i]);
      scale<C::kCount>(v, u);
      out.put_rest(heads, i, place, v);
    }
  });
}

/// Where a thread's rows go: to the tensor's output.
template <class T>
struct ToTensor {
  using C = ChannelsOf<T>;
  static constexpr bool kTakesUnchanged = false;  // they are there, or have been copied: see copy_unchanged
  const Settings& at;
  const Tensor& tensor;
  int written;  // of the thread's first pair, in bytes from a head's first channel

  __device__ void put_pairs(const Heads& heads, int i, const float* a, const float* b) const {
    T tile;
    tile.pack(a, b);
    tile.store(heads.y + i * tensor.to.step + written, at.write.apart);
  }
  __device__ void put_rest(const Heads& heads, int i, int place, const float* v) const {
    store_unit(heads.y + i * tensor.to.step + place, C::pack(v));
  }
  __device__ void put_unchanged(int, int, const typename T::Unit&) const {}
  __device__ void advance(int) {}
};

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
template <class T, int COUNT, class P, class C, class OUT>
__device__ inline void norm_rows(const P& p, const Tensor& tensor, const RowNorm& norm, const Lane& lane,
                                 const Heads& heads, const char* x, const Factors<T::kPairs>& u, const C& cos_sin,
                                 const OUT& out) {
  const Settings& at = p.angles.at;
  const Rest rest = rest_of(at);
  Rows<T, COUNT> rows;
  read_rows<T, COUNT>(at, tensor, norm, lane, heads, x, u, cos_sin, rows);
  float inverse[COUNT];
  for (int i = 0; i < COUNT; ++i) inverse[i] = 1.0F;
  if (norm.is_given) {
    add_rest<T, COUNT>(at, tensor, rest, heads, lane.lane, rows.squares);
    sum_over_row<T, COUNT>(at, lane, rows.squares);
    for (int i = 0; i < COUNT; ++i) inverse[i] = inverse_rms(norm, rows.squares[i], p.per_channel);
  }
  if (T::kExchanges && at.exchanges) __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    scale<T::kPairs>(rows.a[i], inverse[i]);
    scale<T::kPairs>(rows.b[i], inverse[i]);
    if (lane.has_pairs && heads.count > i * at.head_slots) out.put_pairs(heads, i, rows.a[i], rows.b[i]);
  }
  if (norm.is_given || OUT::kTakesUnchanged) {
    put_rest<T, COUNT>(at, tensor, rest, norm, heads, lane.lane, inverse, out);
  }
}

/// Norms and rotates all heads of q or k, COUNT rows of a thread at a time.
template <class T, int COUNT, class P, class C, class OUT>
__device__ inline void norm_tensor(const P& p, const Tensor& tensor, const RowNorm& norm, const RowThread& thread,
                                   const C& cos_sin, OUT out) {
  const Settings& at = p.angles.at;
  const Lane& lane = thread.lane;
  const int read = offset_of(at.read, lane.pair, at.block_pairs.quotient(lane.pair));
  const Factors<T::kPairs> u = factors_of<T>(at, norm, lane);
  Heads heads = heads_of(tensor, at, thread.place, thread.slot);
  if (!thread.rotated) heads.count = 0;
#pragma unroll 1
  for (int first = 0; first < tensor.heads; first += COUNT * at.head_slots) {
    norm_rows<T, COUNT>(p, tensor, norm, lane, heads, heads.x + read, u, cos_sin, out);
    advance(at, tensor, heads, COUNT);
    out.advance(COUNT);
  }
}

/// The output of q or k itself.
template <class T>
__device__ inline ToTensor<T> to_tensor(const Settings& at, const Tensor& tensor, const Lane& lane) {
  return {at, tensor, offset_of(at.write, lane.pair, at.block_pairs.quotient(lane.pair))};
}

/// Out of place, copies what no norm and no rotation changes.
template <class T>
__device__ inline void copy_unchanged(const Settings& at, const Tensor& tensor, const RowNorm& norm,
                                      const RowThread& thread) {
  const Place& place = thread.place;
  if (!thread.inside || tensor.heads == 0 || tensor.from.data == tensor.to.data) return;
  if (place.rotated && norm.is_given) return;
  copy_tensor<typename T::Unit>(tensor, at, place, thread.slot, thread.lane.lane);
}

/// The running thread. `sums`: shared memory, see Lane.
template <class T, class P>
__device__ inline RowThread thread_of(const P& p, float* sums) {
  const Settings& at = p.angles.at;
  const int head = at.lanes.quotient(threadIdx.x), lane = threadIdx.x - head * at.lanes.by;
  RowThread thread;
  thread.flat = blockIdx.x * at.token_slots + (head >> at.head_slots_log2);
  thread.inside = thread.flat < at.count;
  if (!thread.inside) thread.flat = at.count - 1;
  thread.slot = head & (at.head_slots - 1);
  thread.place = place_of(at, thread.flat);
  thread.rotated = thread.inside && thread.place.rotated;
  const bool has_pairs = lane < p.tiles;
  thread.lane = {lane, has_pairs ? lane * (T::kSplit ? T::kPairs / 2 : T::kPairs) : 0, has_pairs, sums};
  return thread;
}

/// The cosines and sines of a thread's pairs, if it has any.
template <class T, bool GENERAL, class P>
__device__ inline CosSin<T::kPairs> row_cos_sin_of(const P& p, const RowThread& thread) {
  if (!thread.rotated || !thread.lane.has_pairs) return {};
  return cos_sin_of<T::kPairs, T::kSplit, GENERAL>(p.angles, thread.place, thread.lane.pair);
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
  const RowThread thread = thread_of<T>(p, sums);
  copy_unchanged<T>(at, at.q, p.q, thread);
  copy_unchanged<T>(at, at.k, p.k, thread);
  const CosSin<T::kPairs> cos_sin = row_cos_sin_of<T, GENERAL>(p, thread);
  norm_tensor<T, T::kBatch>(p, at.q, p.q, thread, cos_sin, to_tensor<T>(at, at.q, thread.lane));
  if (at.k.heads > 0) norm_tensor<T, T::kBatch>(p, at.k, p.k, thread, cos_sin, to_tensor<T>(at, at.k, thread.lane));
}

}  // namespace rope::cuda
