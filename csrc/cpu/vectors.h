// Vectors of one instruction set: gcc vector extensions of W bytes, and how they are loaded and stored.
// Like all headers of the kernel it is compiled once per instruction set: ROPE_ISA names the namespace, ROPE_VECTOR is
// the width of a vector in bytes.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rope::ROPE_ISA {
namespace {

#define ROPE_INLINE static inline __attribute__((always_inline))

/// The vector types of W bytes: L lanes of fp32.
template <int W>
struct Vec {
  static constexpr int L = W / 4;
  typedef float F __attribute__((vector_size(W)));
  typedef std::uint32_t U __attribute__((vector_size(W)));
  typedef std::int32_t I __attribute__((vector_size(W)));  // for comparisons: SSE2 and AVX2 compare signed lanes only
  typedef std::uint16_t H __attribute__((vector_size(W / 2)));
  typedef std::uint8_t B __attribute__((vector_size(W / 4)));
};
template <int W>
using F = typename Vec<W>::F;
template <int W>
using U = typename Vec<W>::U;
template <int W>
using I = typename Vec<W>::I;
template <int W>
using H = typename Vec<W>::H;
template <int W>
using B = typename Vec<W>::B;

template <class V>
ROPE_INLINE V load_as(const void* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

/// Stores a whole vector; a streaming store needs an aligned address and bypasses the caches.
template <bool STREAM, class V>
ROPE_INLINE void store_as(void* to, V value) {
#if defined(__x86_64__)
  if constexpr (STREAM && sizeof(V) == 16) {
    _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)value);
    return;
  }
#if defined(__AVX2__)
  if constexpr (STREAM && sizeof(V) == 32) {
    _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)value);
    return;
  }
#endif
#if defined(__AVX512F__)
  if constexpr (STREAM && sizeof(V) == 64) {
    _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)value);
    return;
  }
#endif
#endif
  __builtin_memcpy(to, &value, sizeof value);
}

}  // namespace
}  // namespace rope::ROPE_ISA
