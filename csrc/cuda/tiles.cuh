// The part of a head that a thread has: how it is loaded, widened to fp32, rotated and stored.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/spec.h"
#include "cuda/angles.cuh"
#include "cuda/launcher.h"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"

namespace rope::cuda {

/// Elements in memory and in words of 32 bits, to and from fp32. Unpacking takes one instruction per element.
struct Float32 {
  using Element = std::uint32_t;
  static constexpr int kPerWord = 1;
  __device__ static void unpack(std::uint32_t word, float* v) { v[0] = __uint_as_float(word); }
  __device__ static std::uint32_t pack(const float* v) { return __float_as_uint(v[0]); }
  __device__ static float widen(Element x) { return __uint_as_float(x); }
  __device__ static Element narrow(float x) { return __float_as_uint(x); }
};

struct BFloat16 {
  using Element = std::uint16_t;
  static constexpr int kPerWord = 2;
  __device__ static void unpack(std::uint32_t word, float* v) {
    v[0] = __uint_as_float(word << 16);
    v[1] = __uint_as_float(word & 0xFFFF0000U);
  }
  __device__ static std::uint32_t pack(const float* v) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(v[0], v[1]);
    std::uint32_t word;
    memcpy(&word, &both, sizeof word);
    return word;
  }
  __device__ static float widen(Element x) { return __uint_as_float(static_cast<std::uint32_t>(x) << 16); }
  __device__ static Element narrow(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
};

struct Float16 {
  using Element = std::uint16_t;
  static constexpr int kPerWord = 2;
  __device__ static void unpack(std::uint32_t word, float* v) {
    v[0] = widen(static_cast<Element>(word));
    v[1] = widen(static_cast<Element>(word >> 16));
  }
  __device__ static std::uint32_t pack(const float* v) {
    const __half2 both = __floats2half2_rn(v[0], v[1]);
    std::uint32_t word;
    memcpy(&word, &both, sizeof word);
    return word;
  }
  __device__ static float widen(Element x) { return __half2float(__ushort_as_half(x)); }
  __device__ static Element narrow(float x) { return __half_as_ushort(__float2half_rn(x)); }
};

/// The members of a pair, rotated. By fma, so that compilers have no choice of rounding.
template <class C>
__device__ inline float first_of(float a, float b, const C& cos_sin, int i) {
  return fmaf(-cos_sin.sine[i], b, a * cos_sin.cosine[i]);
}

template <int N>
__device__ inline float second_of(float a, float b, const CosSin<N>& cos_sin, int i) {
  return fmaf(cos_sin.sine[i], a, b * cos_sin.cosine[i]);
}

template <int N>
__device__ inline float second_of(float a, float b, const PairCosSin<N>& cos_sin, int i) {
  return fmaf(cos_sin.second_sine[i], a, b * cos_sin.second_cosine[i]);
}

/// A lane's part of a head: two chunks, `APART` elements (0: known at run time) from each other.
///
/// READ_PAIRS, WRITE_PAIRS: the members of a pair are neighbours, as read and as written; else each chunk has one
/// member of all pairs.
template <class D, class Chunk, bool READ_PAIRS, bool WRITE_PAIRS, int APART>
struct Tile {
  using Format = D;
  using Back = Tile<D, Chunk, WRITE_PAIRS, READ_PAIRS, APART>;  // reads where this one writes, and the reverse
  using Unit = Chunk;
  static constexpr int kWords = static_cast<int>(sizeof(Chunk)) / 4;
  static constexpr int kElements = 2 * kWords * D::kPerWord;
  static constexpr int kPairs = kElements / 2;
  static constexpr bool kSplit = READ_PAIRS && WRITE_PAIRS;      // see Settings::jump
  static constexpr bool kExchanges = READ_PAIRS != WRITE_PAIRS;  // threads of a head may write where others read
  static constexpr int kBatch = kElements > 8 ? 2 : 4;           // heads whose loads come before their stores
  static constexpr int kMaxThreads = 256;
  static constexpr int kMostLanes = 256 / kPairs;

  Chunk chunk[2];

  __device__ static std::int64_t distance(std::int64_t apart) {
    return APART > 0 ? APART * static_cast<int>(sizeof(typename D::Element)) : apart;
  }

  __device__ void load(const char* x, std::int64_t apart) {
    chunk[0] = *reinterpret_cast<const Chunk*>(x);
    chunk[1] = *reinterpret_cast<const Chunk*>(x + distance(apart));
  }

  __device__ void store(char* y, std::int64_t apart) const {
    *reinterpret_cast<Chunk*>(y) = chunk[0];
    *reinterpret_cast<Chunk*>(y + distance(apart)) = chunk[1];
  }

  /// The first and second members of the pairs, as they are read.
  __device__ void unpack(float* a, float* b) const {
    std::uint32_t words[2 * kWords];
    memcpy(words, chunk, sizeof words);
    float v[kElements];
    for (int i = 0; i < 2 * kWords; ++i) D::unpack(words[i], v + i * D::kPerWord);
    for (int i = 0; i < kPairs; ++i) {
      a[i] = v[READ_PAIRS ? 2 * i : i];
      b[i] = v[READ_PAIRS ? 2 * i + 1 : kPairs + i];
    }
  }

  /// The members of the pairs as they are written: those of the first chunk, then those of the second.
  __device__ static void arrange(const float* a, const float* b, float* w) {
    for (int i = 0; i < kPairs; ++i) {
      w[WRITE_PAIRS ? 2 * i : i] = a[i];
      w[WRITE_PAIRS ? 2 * i + 1 : kPairs + i] = b[i];
    }
  }

  /// Rounds the members of the pairs.
  __device__ void pack(const float* a, const float* b) {
    std::uint32_t words[2 * kWords];
    float w[kElements];
    arrange(a, b, w);
    for (int i = 0; i < 2 * kWords; ++i) words[i] = D::pack(w + i * D::kPerWord);
    memcpy(chunk, words, sizeof words);
  }
};

/// One pair of any geometry and alignment.
template <class D>
struct Elements {
  using Format = D;
  using Back = Elements;
  using Unit = typename D::Element;
  static constexpr int kPairs = 1;
  static constexpr int kBatch = 4;
  static constexpr int kMaxThreads = kMaxCudaPairs;
  static constexpr int kMostLanes = kMaxCudaPairs;
  static constexpr bool kSplit = false;
  static constexpr bool kExchanges = true;

  Unit first, second;

  __device__ void load(const char* x, std::int64_t apart) {
    first = *reinterpret_cast<const Unit*>(x);
    second = *reinterpret_cast<const Unit*>(x + apart);
  }

  __device__ void store(char* y, std::int64_t apart) const {
    *reinterpret_cast<Unit*>(y) = first;
    *reinterpret_cast<Unit*>(y + apart) = second;
  }

  __device__ void unpack(float* a, float* b) const {
    *a = D::widen(first);
    *b = D::widen(second);
  }

  __device__ static void arrange(const float* a, const float* b, float* w) {
    w[0] = *a;
    w[1] = *b;
  }

  __device__ void pack(const float* a, const float* b) {
    first = D::narrow(*a);
    second = D::narrow(*b);
  }
};

/// Rotates pairs of members.
template <int N, class C>
__device__ inline void turn(float* a, float* b, const C& cos_sin) {
  for (int i = 0; i < N; ++i) {
    const float first = first_of(a[i], b[i], cos_sin, i);
    b[i] = second_of(a[i], b[i], cos_sin, i);
    a[i] = first;
  }
}

template <class T, class C>
__device__ inline void rotate_tile(T& tile, const C& cos_sin) {
  float a[T::kPairs], b[T::kPairs];
  tile.unpack(a, b);
  turn<T::kPairs>(a, b, cos_sin);
  tile.pack(a, b);
}

/// Rotates the first `COUNT` heads: all loads before all stores, which a compiler could not reorder.
template <class T, int COUNT, class C>
__device__ inline void rotate_heads(const Settings& at, const Tensor& tensor, const Heads& heads, const C& cos_sin) {
  T tile[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) tile[i].load(heads.x + i * tensor.from.step, at.read.apart);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    rotate_tile(tile[i], cos_sin);
    tile[i].store(heads.y + i * tensor.to.step, at.write.apart);
  }
}

/// Rotates all heads where no thread writes what another reads.
template <class T, class C>
__device__ inline void rotate_apart(const Settings& at, const Tensor& tensor, Heads heads, const C& cos_sin) {
#pragma unroll 1
  for (; heads.count > (T::kBatch - 1) * at.head_slots; advance(at, tensor, heads, T::kBatch)) {
    rotate_heads<T, T::kBatch>(at, tensor, heads, cos_sin);
  }
#pragma unroll 1
  for (; heads.count > 0; advance(at, tensor, heads, 1)) rotate_heads<T, 1>(at, tensor, heads, cos_sin);
}

/// Rotates all heads where a thread may write what another reads: every thread of a block reaches the barriers.
template <class T, class C>
__device__ inline void rotate_together(const Settings& at, const Tensor& tensor, Heads heads, const C& cos_sin) {
#pragma unroll 1
  for (int first = 0; first < tensor.heads; first += at.head_slots) {
    T tile;
    if (heads.count > 0) tile.load(heads.x, at.read.apart);
    if (at.exchanges) __syncthreads();
    if (heads.count > 0) {
      rotate_tile(tile, cos_sin);
      tile.store(heads.y, at.write.apart);
    }
    advance(at, tensor, heads, 1);
  }
}

}  // namespace rope::cuda
