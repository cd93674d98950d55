// Rotates all heads of a block of tokens, in any pairing, by the block's cosines and sines.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/cos_sin.h"
#include "cpu/floats.h"
#include "cpu/prefetch.h"
#include "cpu/traversal.h"
#include "cpu/vectors.h"
#include "cpu/words.h"

namespace rope::ROPE_ISA {
namespace {

struct Flags {
  bool split;        // bf16 half pairs as words: two neighbours of a half at a time
  bool read_pairs;   // members of a pair are neighbours as read
  bool write_pairs;  // and as written
  Prefetch prefetch;
};

/// Rotates pairs [i, n) of a block of channels, W bytes at a time, the rest by ever narrower vectors; `first` is the
/// block's first pair.
template <class D, int W, bool READ, bool WRITE, bool STREAM, bool TABLE>
ROPE_INLINE void rotate_lanes(const typename D::T* x1, const typename D::T* x2, typename D::T* y1, typename D::T* y2,
                              const CosSin& cos_sin, int first, int i, int n) {
  constexpr int L = Vec<W>::L;
  const float *cosine = cos_sin.cosine + first, *sine = cos_sin.sine() + first;
  const float* cosine2 = TABLE ? cos_sin.second_cosine() + first : cosine;
  const float* sine2 = TABLE ? cos_sin.second_sine() + first : sine;
  for (; i + L <= n; i += L) {
    F<W> a, b;
    load_members<D, W, READ>(x1, x2, i, a, b);
    const F<W> p = a * load_as<F<W>>(cosine + i) - b * load_as<F<W>>(sine + i);
    const F<W> q = b * load_as<F<W>>(cosine2 + i) + a * load_as<F<W>>(sine2 + i);
    store_members<D, W, WRITE, STREAM>(y1, y2, i, p, q);
  }
  if constexpr (W > 16) {
    rotate_lanes<D, W / 2, READ, WRITE, STREAM, TABLE>(x1, x2, y1, y2, cos_sin, first, i, n);
  } else {
    for (; i < n; ++i) {
      const float a = D::widen(READ ? x1[2 * i] : x1[i]), b = D::widen(READ ? x1[2 * i + 1] : x2[i]);
      (WRITE ? y1[2 * i] : y1[i]) = D::narrow(a * cosine[i] - b * sine[i]);
      (WRITE ? y1[2 * i + 1] : y2[i]) = D::narrow(b * cosine2[i] + a * sine2[i]);
    }
  }
}

/// Rotates all heads of a block of tokens, for a constant number of pairs: cosines stay in registers, for q and for k.
template <class D, int PAIRS, bool READ, bool WRITE, bool STREAM>
ROPE_INLINE void heads_of_usual(const Job& job, const Block& block, Prefetch prefetch) {
  using T = typename D::T;
  constexpr int W = vector_for(PAIRS), L = Vec<W>::L, N = PAIRS / L;
  // Whether a head is read whole before any of it is written: it must be if the pairing changes. Otherwise this is
  // faster if the registers hold the head, or if conversions take long.
  constexpr bool kWhole = READ != WRITE || 4 * N < kRegisters || std::is_same_v<D, Float16>;
  const int distance = job.spec->rotation.distance;
  F<W> cosine[N], sine[N], p[N], q[N];
  const auto take = [&](const CosSin& cos_sin) {
    for (int j = 0; j < N; ++j) {
      cosine[j] = load_as<F<W>>(cos_sin.cosine + j * L);
      sine[j] = load_as<F<W>>(cos_sin.sine() + j * L);
    }
  };
  for_each_head<T>(job, block, take, [&](const T* x, T* y, const CosSin&) {
    prefetch_head<2 * PAIRS* static_cast<int>(sizeof(T))>(x, prefetch);
    const auto store = [&](int j) { store_members<D, W, WRITE, STREAM>(y, y + distance, j * L, p[j], q[j]); };
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      F<W> a, b;
      load_members<D, W, READ>(x, x + distance, j * L, a, b);
      p[j] = a * cosine[j] - b * sine[j];
      q[j] = b * cosine[j] + a * sine[j];
      if (!kWhole) store(j);
    }
#pragma GCC unroll 16
    for (int j = 0; kWhole && j < N; ++j) store(j);
  });
}

/// Rotates all heads of a block of tokens, for any geometry.
template <class D, bool READ, bool WRITE, bool STREAM, bool TABLE>
void heads_of_pairs(const Job& job, const Block& block, Prefetch prefetch) {
  using T = typename D::T;
  const Rotation& r = job.spec->rotation;
  const int width = r.num_pairs / r.blocks;
  if constexpr (!TABLE) {
    const auto usual = [&](auto pairs) { heads_of_usual<D, pairs(), READ, WRITE, STREAM>(job, block, prefetch); };
    if (r.blocks == 1 && with_usual_pairs(r.num_pairs, usual)) return;
  }
  // In place, a pair that is read as neighbours and written as halves would overwrite what later pairs read.
  alignas(64) T copy[2 * kMaxPairs];
  const bool aside = READ != WRITE && job.in_place;
  const auto take = [](const CosSin&) {};
  for_each_head<T>(job, block, take, [&](const T* from, T* to, const CosSin& cos_sin) {
    const int bytes = 2 * r.num_pairs * static_cast<int>(sizeof(T));
    prefetch_head<0>(from, prefetch);
    if (aside) {
      std::memcpy(copy, from, static_cast<std::size_t>(bytes));
      from = copy;
    }
    for (int part = 0; part < r.blocks; ++part) {
      const int start = 2 * part * r.distance, pair = part * width;
      rotate_lanes<D, ROPE_VECTOR, READ, WRITE, STREAM, TABLE>(from + start, from + start + r.distance, to + start,
                                                               to + start + r.distance, cos_sin, pair, 0, width);
    }
  });
}

template <class D, bool STREAM, bool TABLE>
void rotate_block(const Job& job, const Flags& flags, const Block& block) {
  if constexpr (std::is_same_v<D, BFloat16> && !TABLE) {
    if (flags.split) return heads_of_split<STREAM>(job, block, flags.prefetch);
  }
  if (flags.read_pairs && flags.write_pairs) {
    heads_of_pairs<D, true, true, STREAM, TABLE>(job, block, flags.prefetch);
  } else if (flags.read_pairs) {
    heads_of_pairs<D, true, false, STREAM, TABLE>(job, block, flags.prefetch);
  } else if (flags.write_pairs) {
    heads_of_pairs<D, false, true, STREAM, TABLE>(job, block, flags.prefetch);
  } else {
    heads_of_pairs<D, false, false, STREAM, TABLE>(job, block, flags.prefetch);
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
