// Rotates all heads of a block of tokens in bf16 half pairs: two neighbours of a half are one word of 32 bits.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/job.h"
#include "cpu/cos_sin.h"
#include "cpu/floats.h"
#include "cpu/prefetch.h"
#include "cpu/traversal.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

/// Rotates words `a` of the first half and `b` of the second: their first elements by c0, s0, the second by c1, s1.
template <int W>
ROPE_INLINE void rotate_word_pairs(U<W>& a, U<W>& b, F<W> c0, F<W> c1, F<W> s0, F<W> s1) {
  F<W> a0, a1, b0, b1;
  BFloat16::unpack<W>(a, a0, a1);
  BFloat16::unpack<W>(b, b0, b1);
  a = pack_bf16<W>(a0 * c0 - b0 * s0, a1 * c1 - b1 * s1);
  b = pack_bf16<W>(b0 * c0 + a0 * s0, b1 * c1 + a1 * s1);
}

/// Rotates one vector of words of each half. MASKED: only its first `count` words.
template <int W, bool STREAM, bool MASKED = false>
ROPE_INLINE void rotate_vector(const std::uint16_t* x, std::uint16_t* y, int distance, const float* cosine,
                               const float* sine, int j, int words, int count = 0) {
  const auto rotate = [&](U<W>& a, U<W>& b) {
    rotate_word_pairs<W>(a, b, load_as<F<W>>(cosine + j), load_as<F<W>>(cosine + words + j), load_as<F<W>>(sine + j),
                         load_as<F<W>>(sine + words + j));
  };
  x += 2 * j;
  y += 2 * j;
#if defined(__AVX512F__)
  if constexpr (MASKED) {
    const auto mask = static_cast<__mmask16>((1U << count) - 1U);
    U<W> a = (U<W>)_mm512_maskz_loadu_epi32(mask, x), b = (U<W>)_mm512_maskz_loadu_epi32(mask, x + distance);
    rotate(a, b);
    _mm512_mask_storeu_epi32(y, mask, (__m512i)a);
    _mm512_mask_storeu_epi32(y + distance, mask, (__m512i)b);
    return;
  }
#endif
  U<W> a = load_as<U<W>>(x), b = load_as<U<W>>(x + distance);
  rotate(a, b);
  store_as<STREAM>(y, a);
  store_as<STREAM>(y + distance, b);
}

/// Rotates words [j, words) of both halves; cosines and sines are in split order.
template <int W, bool STREAM>
ROPE_INLINE void rotate_words(const std::uint16_t* x, std::uint16_t* y, int distance, const float* cosine,
                              const float* sine, int j, int words) {
  constexpr int L = Vec<W>::L;
#if defined(__AVX512F__)
  if constexpr (W == 64) {
    // Left-over words are masked, and come first: a masked load that overlaps bytes just stored waits for the store.
    const int left = words % L;
    if (left % 4 != 0) {
      rotate_vector<W, STREAM, true>(x, y, distance, cosine, sine, words - left, words, left);
      for (; j + L <= words; j += L) rotate_vector<W, STREAM>(x, y, distance, cosine, sine, j, words);
      return;
    }
  }
#endif
  for (; j + L <= words; j += L) rotate_vector<W, STREAM>(x, y, distance, cosine, sine, j, words);
  if constexpr (W > 16) {
    rotate_words<W / 2, STREAM>(x, y, distance, cosine, sine, j, words);
  } else {
    for (; j < words; ++j) {
      for (int odd = 0; odd < 2; ++odd) {
        const float c = cosine[odd * words + j], s = sine[odd * words + j];
        const float a = BFloat16::widen(x[2 * j + odd]), b = BFloat16::widen(x[distance + 2 * j + odd]);
        y[2 * j + odd] = BFloat16::narrow(a * c - b * s);
        y[distance + 2 * j + odd] = BFloat16::narrow(b * c + a * s);
      }
    }
  }
}

/// Rotates all heads of a block of tokens, for a constant number of words per half: cosines stay in registers, for q
/// and for k.
template <int WORDS, bool STREAM>
ROPE_INLINE void heads_of_words(const Job& job, const Block& block, Prefetch prefetch) {
  constexpr int W = vector_for(WORDS), L = Vec<W>::L, N = WORDS / L;
  const int distance = job.spec->rotation.distance;
  F<W> c0[N], c1[N], s0[N], s1[N];
  const auto take = [&](const CosSin& cos_sin) {
    for (int j = 0; j < N; ++j) {
      c0[j] = load_as<F<W>>(cos_sin.cosine + j * L);
      c1[j] = load_as<F<W>>(cos_sin.cosine + WORDS + j * L);
      s0[j] = load_as<F<W>>(cos_sin.sine() + j * L);
      s1[j] = load_as<F<W>>(cos_sin.sine() + WORDS + j * L);
    }
  };
  for_each_head<std::uint16_t>(job, block, take, [&](const std::uint16_t* x, std::uint16_t* y, const CosSin&) {
    prefetch_head<8 * WORDS>(x, prefetch);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      U<W> a = load_as<U<W>>(x + 2 * j * L), b = load_as<U<W>>(x + distance + 2 * j * L);
      rotate_word_pairs<W>(a, b, c0[j], c1[j], s0[j], s1[j]);
      store_as<STREAM>(y + 2 * j * L, a);
      store_as<STREAM>(y + distance + 2 * j * L, b);
    }
  });
}

/// Rotates all heads of a block of tokens as words.
template <bool STREAM>
void heads_of_split(const Job& job, const Block& block, Prefetch prefetch) {
  const int pairs = job.spec->rotation.num_pairs, distance = job.spec->rotation.distance;
  // For numbers of words that vectors do not divide, rotate_words is as fast.
  const auto usual = [&](auto number) {
    if constexpr (number() % 16 == 0) heads_of_words<number() / 2, STREAM>(job, block, prefetch);
  };
  if (pairs % 16 == 0 && with_usual_pairs(pairs, usual)) return;
  const auto take = [](const CosSin&) {};
  for_each_head<std::uint16_t>(job, block, take, [=](const std::uint16_t* x, std::uint16_t* y, const CosSin& cos_sin) {
    prefetch_head<0>(x, prefetch);
    rotate_words<ROPE_VECTOR, STREAM>(x, y, distance, cos_sin.cosine, cos_sin.sine(), 0, pairs / 2);
  });
}

}  // namespace
}  // namespace rope::ROPE_ISA
