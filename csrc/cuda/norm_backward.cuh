// The kernel for the gradients of norm_kernel: of q, of k, and parts of those of the weights.
//
// With z the normed row, u the weight's factors and h = u times the gradient of u z, the gradient of the row is
// (h - z mean(h z)) / rms, and that of the weight is the sum over all rows of z times the gradient of u z.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/angles.cuh"
#include "cuda/norm.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"

namespace rope::cuda {

/// What the gradients of q or of k need besides those of the results.
struct RowGradients {
  Side x;           // the heads that were normed
  float* partials;  // (parts, head_dim) sums for the weight's gradient; nullptr without a weight
};

/// The parameters of the kernel. The operands of `rows` lead from the results' gradients to those of the inputs.
template <class P>
struct NormBackwardParams {
  NormParams<P> rows;
  RowGradients q, k;
  std::uint32_t parts;  // tokens i, i + parts, ... are part i, which one row of lanes goes through
  std::int32_t head_dim;
};

/// A head: the gradient of its result, the head as it was, and where its gradient goes.
struct HeadGradient {
  const char *grad, *x;
  char* to;
  bool is_live;     // else zeros, and nothing is written
  float* partials;  // of the head's part; nullptr without a weight
};

/// Rotates pairs of members back, by the adjoint.
template <int N>
__device__ inline void turn_back(float* a, float* b, const CosSin<N>& cos_sin) {
  for (int i = 0; i < N; ++i) {
    const float first = fmaf(cos_sin.sine[i], b[i], a[i] * cos_sin.cosine[i]);
    b[i] = fmaf(-cos_sin.sine[i], a[i], b[i] * cos_sin.cosine[i]);
    a[i] = first;
  }
}

template <int N>
__device__ inline void add_products(float* sums, const float* x, const float* y) {
  for (int i = 0; i < N; ++i) sums[i] = fmaf(x[i], y[i], sums[i]);
}

/// Replaces gradients h of normed channels z by those of the channels before the norm.
template <int N>
__device__ inline void through_norm(float* h, const float* z, float mean, float inverse) {
  for (int i = 0; i < N; ++i) h[i] = fmaf(-z[i], mean, h[i]) * inverse;
}

/// What a lane reads at once of the channels that are not rotated: less than of pairs, which are in registers
/// meanwhile.
template <class T>
using RestUnit =
    std::conditional_t<T::Format::kPerWord == 2 && sizeof(typename T::Unit) == sizeof(uint4), uint2, typename T::Unit>;

template <class T>
using RestOf = Channels<typename T::Format, RestUnit<T>>;

/// Calls `body(z, h, factors, channel, place)` for each unit of a live head that is not rotated: its normed channels
/// and the gradients of their products with the factors.
template <class T, class BODY>
__device__ inline void for_each_rest_gradient(const Settings& at, const RowNorm& norm, const HeadGradient& head,
                                              int lane, float inverse, const BODY& body) {
  using C = RestOf<T>;
  using Unit = RestUnit<T>;
  if (!head.is_live) return;
  for_each_rest<Unit>(at, rest_of(at), lane, [&](int place) {
    const int channel = place / static_cast<int>(sizeof(typename T::Format::Element));
    float z[C::kCount], h[C::kCount], u[C::kCount];
    C::unpack(*reinterpret_cast<const Unit*>(head.x + place), z);
    C::unpack(*reinterpret_cast<const Unit*>(head.grad + place), h);
    rest_factors<C::kCount>(norm, channel, u);
    scale<C::kCount>(z, inverse);
    body(z, h, u, channel, place);
  });
}

/// The sum of h z over channels that are not rotated; adds to their weights' gradients.
template <class T>
__device__ inline float rest_products(const Settings& at, const RowNorm& norm, const HeadGradient& head, int lane,
                                      float inverse) {
  constexpr int N = RestOf<T>::kCount;
  float sum = 0.0F;
  for_each_rest_gradient<T>(at, norm, head, lane, inverse, [&](float* z, float* h, float* u, int channel, int) {
    if (norm.has_weight && head.partials != nullptr) add_products<N>(head.partials + channel, h, z);
    scale<N>(h, u);
    sum += dot<N>(h, z);
  });
  return sum;
}

template <class T>
__device__ inline void write_rest_gradient(const Settings& at, const RowNorm& norm, const HeadGradient& head, int lane,
                                           float inverse, float mean) {
  using C = RestOf<T>;
  for_each_rest_gradient<T>(at, norm, head, lane, inverse, [&](float* z, float* h, float* u, int, int place) {
    scale<C::kCount>(h, u);
    through_norm<C::kCount>(h, z, mean, inverse);
    store_unit(head.to + place, C::pack(h));
  });
}

template <class T>
__device__ inline float rest_squares(const Settings& at, const HeadGradient& head, int lane) {
  using C = RestOf<T>;
  float sum = 0.0F;
  if (!head.is_live) return sum;
  for_each_rest<RestUnit<T>>(at, rest_of(at), lane, [&](int place) {
    float v[C::kCount];
    C::unpack(*reinterpret_cast<const RestUnit<T>*>(head.x + place), v);
    sum += dot<C::kCount>(v, v);
  });
  return sum;
}

/// Where a lane's pairs are in a head, in bytes.
struct Places {
  int read, written;
};

/// The gradient of a head with a norm: a and b are that of its result and become that of the head; v and w are the
/// head, both by members of pairs. All threads of a block come here together.
template <class T, class P>
__device__ inline void norm_gradient(const NormParams<P>& p, const RowNorm& norm, const Lane& lane,
                                     const HeadGradient& head, const Factors<T::kPairs>& u,
                                     const CosSin<T::kPairs>& cos_sin, float* a, float* b, float* v, float* w,
                                     Factors<T::kPairs>& sums) {
  constexpr int N = T::kPairs;
  const Settings& at = p.angles.at;
  if (norm.after_rope) {
    turn<N>(v, w, cos_sin);
  } else {
    turn_back<N>(a, b, cos_sin);
  }
  float squares = dot<N>(w, w, dot<N>(v, v)) + rest_squares<T>(at, head, lane.lane);
  sum_over_row<T, 1>(at, lane, &squares);
  const float inverse = head.is_live ? inverse_rms(norm, squares, p.per_channel) : 0.0F;
  scale<N>(v, inverse);
  scale<N>(w, inverse);
  add_products<N>(sums.first, a, v);
  add_products<N>(sums.second, b, w);
  scale<N>(a, u.first);
  scale<N>(b, u.second);
  float products = dot<N>(b, w, dot<N>(a, v)) + rest_products<T>(at, norm, head, lane.lane, inverse);
  sum_over_row<T, 1>(at, lane, &products);
  const float mean = products * p.per_channel;
  through_norm<N>(a, v, mean, inverse);
  through_norm<N>(b, w, mean, inverse);
  if (norm.after_rope) turn_back<N>(a, b, cos_sin);
  write_rest_gradient<T>(at, norm, head, lane.lane, inverse, mean);
}

/// The gradient of one head.
template <class T, class P>
__device__ inline void head_gradient(const NormParams<P>& p, const RowNorm& norm, const Lane& lane,
                                     const Places& places, const HeadGradient& head, const Factors<T::kPairs>& u,
                                     const CosSin<T::kPairs>& cos_sin, Factors<T::kPairs>& sums) {
  using Back = typename T::Back;
  const Settings& at = p.angles.at;
  const bool has_pairs = lane.has_pairs && head.is_live;
  Back grad{};
  T x{};
  if (has_pairs) grad.load(head.grad + places.written, at.write.apart);
  if (has_pairs && norm.is_given) x.load(head.x + places.read, at.read.apart);
  float a[T::kPairs], b[T::kPairs], v[T::kPairs], w[T::kPairs];
  grad.unpack(a, b);
  x.unpack(v, w);
  if (norm.is_given) {
    norm_gradient<T>(p, norm, lane, head, u, cos_sin, a, b, v, w, sums);
  } else {
    turn_back<T::kPairs>(a, b, cos_sin);
  }
  grad.pack(a, b);
  if (has_pairs) grad.store(head.to + places.read, at.read.apart);
}

/// Stores a part's sums for the weights of a thread's pairs.
template <class T>
__device__ inline void store_sums(const Settings& at, const RowNorm& norm, const Lane& lane, float* partials,
                                  const Factors<T::kPairs>& sums) {
  const int item = static_cast<int>(sizeof(typename T::Format::Element));
  const Chunks& chunks = norm.after_rope ? at.write : at.read;
  const int channel = offset_of(chunks, 0, at.block_pairs.quotient(lane.pair)) / item;
#pragma unroll
  for (int i = 0; i < T::kPairs; ++i) {
    float* first = partials + channel + pair_of<T::kPairs, T::kSplit>(at, lane.pair, i) * norm.weights.step;
    first[0] = sums.first[i];
    first[norm.weights.second] = sums.second[i];
  }
}

/// The gradients of q's or k's heads at the tokens of a part.
template <class T, bool GENERAL, class P>
__device__ inline void tensor_gradients(const NormBackwardParams<P>& p, const Tensor& tensor, const RowNorm& norm,
                                        const RowGradients& gradients, std::uint32_t part, const Lane& lane) {
  const NormParams<P>& rows = p.rows;
  const Settings& at = rows.angles.at;
  const int block = at.block_pairs.quotient(lane.pair);
  const Places places{offset_of(at.read, lane.pair, block), offset_of(at.write, lane.pair, block)};
  const bool is_summed = norm.has_weight && part < p.parts;
  float* partials = is_summed ? gradients.partials + std::int64_t{part} * p.head_dim : nullptr;
  Factors<T::kPairs> sums{};
#pragma unroll 1
  for (std::uint32_t first = 0; first < at.count; first += p.parts) {
    const bool inside = part < p.parts && first + part < at.count;
    const Place place = place_of(at, inside ? first + part : at.count - 1);
    const bool rotated = inside && place.rotated;
    if (inside && !(rotated && norm.is_given)) copy_tensor<typename T::Unit>(tensor, at, place, 0, lane.lane);
    CosSin<T::kPairs> cos_sin{};
    if (rotated && lane.has_pairs) {
      cos_sin = cos_sin_of<T::kPairs, T::kSplit, GENERAL>(rows.angles, place, lane.pair);
    }
    const Factors<T::kPairs> u = factors_of<T>(at, norm, lane);
    const Heads heads = heads_of(tensor, at, place, 0);
    HeadGradient head{heads.x, head_of(gradients.x, at, place, 0), heads.y, rotated, partials};
#pragma unroll 1
    for (int i = 0; i < tensor.heads; ++i) {
      head_gradient<T>(rows, norm, lane, places, head, u, cos_sin, sums);
      head.grad += tensor.from.step;
      head.x += gradients.x.step;
      head.to += tensor.to.step;
    }
  }
  if (partials != nullptr && lane.has_pairs) store_sums<T>(at, norm, lane, partials, sums);
}

/// Blocks are of 128 threads, unless a row has more lanes. Three of them on a multiprocessor: more would spill.
template <class T>
constexpr int kBackwardThreads = T::kMostLanes > 128 ? T::kMostLanes : 128;

/// The gradients of q and k. A row of lanes goes through the tokens of one part, all of a block together.
template <class T, bool GENERAL, class P>
__global__ void __launch_bounds__(kBackwardThreads<T>, kBackwardThreads<T> > 128 ? 1 : 3)
    norm_backward_kernel(const __grid_constant__ NormBackwardParams<P> p) {
  __shared__ float sums[T::kMostLanes > kWarp ? kWarp : 1];
  const Settings& at = p.rows.angles.at;
  const int row = at.lanes.quotient(threadIdx.x), lane = threadIdx.x - row * at.lanes.by;
  const bool has_pairs = lane < p.rows.tiles;
  const int pair = has_pairs ? lane * (T::kSplit ? T::kPairs / 2 : T::kPairs) : 0;
  const Lane mine{lane, pair, has_pairs, sums};
  const std::uint32_t part = blockIdx.x * at.token_slots + row;
  tensor_gradients<T, GENERAL>(p, at.q, p.rows.q, p.q, part, mine);
  if (at.k.heads > 0) tensor_gradients<T, GENERAL>(p, at.k, p.rows.k, p.k, part, mine);
}

}  // namespace rope::cuda
