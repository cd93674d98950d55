// Converts elements of q, k and tables to fp32 and back, one by one and by vectors.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

/// Rounds fp32 bits to nearest even at 16 bits: the upper half is the bf16. Denormals stay, and so does a NaN: it comes
/// from a bf16 or is the CPU's default one, so its lower 16 bits are zeros and the rounding does not carry.
template <int W>
ROPE_INLINE U<W> round_bf16(F<W> value) {
  const U<W> bits = (U<W>)value;
  return bits + 0x7fffU + ((bits >> 16) & 1U);
}

/// Packs two vectors to words of two bf16. With instructions for 16-bit lanes it rounds up where the bits cut off are
/// more than a half, or are a half and those kept are odd.
template <int W>
ROPE_INLINE U<W> pack_bf16(F<W> first, F<W> second) {
  return (round_bf16<W>(first) >> 16) | (round_bf16<W>(second) & 0xffff0000U);
}
#if defined(__SSE2__)
template <>
inline __attribute__((always_inline)) U<16> pack_bf16<16>(F<16> first, F<16> second) {
  const auto kept = (__m128i)(((U<16>)first >> 16) | ((U<16>)second & 0xffff0000U));
  const auto cut = (__m128i)(((U<16>)first & 0xffffU) | ((U<16>)second << 16));
  const __m128i is_even = _mm_andnot_si128(kept, _mm_set1_epi16(1));
  return (U<16>)_mm_add_epi16(kept, _mm_srli_epi16(_mm_subs_epu16(cut, is_even), 15));
}
#endif
#if defined(__AVX2__)
template <>
inline __attribute__((always_inline)) U<32> pack_bf16<32>(F<32> first, F<32> second) {
  const auto a = (__m256i)first, b = (__m256i)second;
  const __m256i kept = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
  const __m256i cut = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
  const __m256i is_even = _mm256_andnot_si256(kept, _mm256_set1_epi16(1));
  return (U<32>)_mm256_add_epi16(kept, _mm256_srli_epi16(_mm256_subs_epu16(cut, is_even), 15));
}
#endif
#if defined(__AVX512BW__)
/// By five integer instructions.
ROPE_INLINE U<64> pack_by_integers(F<64> first, F<64> second) {
  const __m512i a = (__m512i)first, b = (__m512i)second;
  const __m512i swapped = _mm512_broadcast_i32x4(_mm_set_epi32(0x0d0c0f0e, 0x09080b0a, 0x05040706, 0x01000302));
  const __m512i kept = _mm512_mask_shuffle_epi8(b, 0x3333333333333333, a, swapped);
  const __m512i cut = _mm512_mask_shuffle_epi8(a, 0xcccccccccccccccc, b, swapped);
  constexpr int kOrNot = 0xae;  // (~kept & 1) | 0x8000
  const __m512i up_from =
      _mm512_ternarylogic_epi32(kept, _mm512_set1_epi16(1), _mm512_set1_epi16(static_cast<short>(0x8000)), kOrNot);
  return (U<64>)_mm512_mask_sub_epi16(kept, _mm512_cmpge_epu16_mask(cut, up_from), kept, _mm512_set1_epi16(-1));
}
template <>
inline __attribute__((always_inline)) U<64> pack_bf16<64>(F<64> first, F<64> second) {
#if defined(__AVX512BF16__)
  // The instruction makes denormals zeros: a vector with a zero is packed again, by integers.
  const auto packed = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  if (__builtin_expect(_mm512_testn_epi16_mask(packed, _mm512_set1_epi16(0x7fff)) == 0, 1)) {
    alignas(64) static constexpr std::uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                                  21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                                  11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (U<64>)_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), packed);
  }
#endif
  return pack_by_integers(first, second);
}
#endif

/// Loads and stores as fp32. The `pairs` functions split 2 L elements into those at 2 i and those at 2 i + 1.
struct Float32 {
  using T = float;

  template <int W>
  ROPE_INLINE F<W> load(const T* x) {
    return load_as<F<W>>(x);
  }
  template <int W, bool STREAM>
  ROPE_INLINE void store(T* y, F<W> v) {
    store_as<STREAM>(y, v);
  }
  template <int W>
  ROPE_INLINE void load_pairs(const T* x, F<W>& first, F<W>& second) {
    const F<W> a = load<W>(x), b = load<W>(x + Vec<W>::L);
    if constexpr (W == 16) {
      first = __builtin_shufflevector(a, b, 0, 2, 4, 6);
      second = __builtin_shufflevector(a, b, 1, 3, 5, 7);
    } else if constexpr (W == 32) {
      first = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
      second = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    } else {
      first = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      second = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
  }
  template <int W, bool STREAM>
  ROPE_INLINE void store_pairs(T* y, F<W> a, F<W> b) {
    F<W> low, high;
    if constexpr (W == 16) {
      low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else if constexpr (W == 32) {
      low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
      low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    store_as<STREAM>(y, low);
    store_as<STREAM>(y + Vec<W>::L, high);
  }
  ROPE_INLINE float widen(T x) { return x; }
  ROPE_INLINE T narrow(float x) { return x; }
};

struct BFloat16 {
  using T = std::uint16_t;

  template <int W>
  ROPE_INLINE F<W> load(const T* x) {
    return (F<W>)(__builtin_convertvector(load_as<H<W>>(x), U<W>) << 16);
  }
  template <int W, bool STREAM>
  ROPE_INLINE void store(T* y, F<W> v) {
    store_as<false>(y, __builtin_convertvector(round_bf16<W>(v) >> 16, H<W>));
  }
  /// A word holds the first element of a pair in its lower half, the second in its upper.
  template <int W>
  ROPE_INLINE void unpack(U<W> words, F<W>& first, F<W>& second) {
    first = (F<W>)(words << 16);
    second = (F<W>)(words & 0xffff0000U);
  }
  template <int W>
  ROPE_INLINE void load_pairs(const T* x, F<W>& first, F<W>& second) {
    unpack<W>(load_as<U<W>>(x), first, second);
  }
  template <int W, bool STREAM>
  ROPE_INLINE void store_pairs(T* y, F<W> first, F<W> second) {
    store_as<STREAM>(y, pack_bf16<W>(first, second));
  }
  ROPE_INLINE float widen(T x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  ROPE_INLINE T narrow(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<T>((bits | 0x00400000U) >> 16);
    return static_cast<T>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
  }
};

/// Widens fp16 bits by integers and one product with 2^112, the difference of the exponents: right for denormals too.
template <int W>
ROPE_INLINE F<W> widen_fp16(U<W> half) {
  const U<W> magnitude = half & 0x7fffU, sign = (half & 0x8000U) << 16;
  const U<W> finite = (U<W>)((F<W>)(magnitude << 13) * 5.192296858534828e+33F);
  const U<W> special = (U<W>)((I<W>)magnitude >= 0x7c00) & 0x7f800000U;
  const U<W> quiet = (U<W>)((I<W>)magnitude > 0x7c00) & 0x00400000U;
  return (F<W>)(finite | special | quiet | sign);
}

/// Rounds fp32 to fp16 bits, to nearest even.
template <int W>
ROPE_INLINE U<W> narrow_fp16(F<W> value) {
  const U<W> bits = (U<W>)value, magnitude = bits & 0x7fffffffU, sign = (bits >> 16) & 0x8000U;
  const U<W> normal = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  // the last place of 0.5 is fp16's smallest denormal
  const U<W> denormal = (U<W>)((F<W>)magnitude + 0.5F) - 0x3f000000U;
  const U<W> infinity = (magnitude & 0) + 0x7c00U, nan = ((magnitude >> 13) & 0x3ffU) | 0x7e00U;
  const U<W> finite = ((I<W>)magnitude >= 0x38800000) ? normal : denormal;
  const U<W> large = ((I<W>)magnitude > 0x7f800000) ? nan : infinity;
  return (((I<W>)magnitude >= 0x477ff000) ? large : finite) | sign;
}

struct Float16 {
  using T = std::uint16_t;

  template <int W>
  ROPE_INLINE F<W> load(const T* x) {
#if defined(__AVX512F__)
    if constexpr (W == 64) return (F<W>)_mm512_cvtph_ps((__m256i)load_as<H<W>>(x));
#endif
#if defined(__F16C__)
    if constexpr (W == 32) return (F<W>)_mm256_cvtph_ps((__m128i)load_as<H<W>>(x));
#endif
    return widen_fp16<W>(__builtin_convertvector(load_as<H<W>>(x), U<W>));
  }
  template <int W, bool STREAM>
  ROPE_INLINE void store(T* y, F<W> v) {
#if defined(__AVX512F__)
    if constexpr (W == 64) {
      store_as<false>(y, (H<W>)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#endif
#if defined(__F16C__)
    if constexpr (W == 32) {
      store_as<false>(y, (H<W>)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#endif
    store_as<false>(y, __builtin_convertvector(narrow_fp16<W>(v), H<W>));
  }
  template <int W>
  ROPE_INLINE void load_pairs(const T* x, F<W>& first, F<W>& second) {
    alignas(64) float both[2 * Vec<W>::L];
    store_as<false>(both, load<W>(x));
    store_as<false>(both + Vec<W>::L, load<W>(x + Vec<W>::L));
    Float32::load_pairs<W>(both, first, second);
  }
  template <int W, bool STREAM>
  ROPE_INLINE void store_pairs(T* y, F<W> first, F<W> second) {
    alignas(64) float both[2 * Vec<W>::L];
    Float32::store_pairs<W, false>(both, first, second);
    store<W, STREAM>(y, load_as<F<W>>(both));
    store<W, STREAM>(y + Vec<W>::L, load_as<F<W>>(both + Vec<W>::L));
  }
  ROPE_INLINE float widen(T x) { return widen_fp16<16>(U<16>{x})[0]; }
  ROPE_INLINE T narrow(float x) { return static_cast<T>(narrow_fp16<16>(F<16>{x})[0]); }
};

/// Loads and stores L pairs from the i-th on: neighbours if READ or WRITE, else from or to two halves.
template <class D, int W, bool READ>
ROPE_INLINE void load_members(const typename D::T* x1, const typename D::T* x2, int i, F<W>& a, F<W>& b) {
  if constexpr (READ) {
    D::template load_pairs<W>(x1 + 2 * i, a, b);
  } else {
    a = D::template load<W>(x1 + i);
    b = D::template load<W>(x2 + i);
  }
}
template <class D, int W, bool WRITE, bool STREAM>
ROPE_INLINE void store_members(typename D::T* y1, typename D::T* y2, int i, F<W> p, F<W> q) {
  if constexpr (WRITE) {
    D::template store_pairs<W, STREAM>(y1 + 2 * i, p, q);
  } else {
    D::template store<W, STREAM>(y1 + i, p);
    D::template store<W, STREAM>(y2 + i, q);
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
