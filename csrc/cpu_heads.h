// All heads of one token: rows in, rows out, by cosines and sines that are there. Included like cpu_vectors.h.
#include "cpu_vectors.h"

/// Cosines and sines of one token, in natural or split order; a caller's table has its own for second members.
struct Turns {
  alignas(64) float cosine[kMaxPairs + kPad];
  alignas(64) float sine[kMaxPairs + kPad];
  alignas(64) float second_cosine[kMaxPairs];
  alignas(64) float second_sine[kMaxPairs];
};

struct Flags {
  bool split;        // word path: two neighbours of a half at a time
  bool read_pairs;   // members of a pair are neighbours as read
  bool write_pairs;  // and as written
};

/// Pairs [i, n) of a block, W bytes at a time, then ever narrower; `first` is the block's first pair.
template <class D, int W, bool READ, bool WRITE, bool STREAM, bool TABLE>
ROPE_INLINE void rotate_lanes(const typename D::T* x1, const typename D::T* x2, typename D::T* y1, typename D::T* y2,
                              const Turns& turns, int first, int i, int n) {
  constexpr int L = Vec<W>::L;
  const float *cosine = turns.cosine + first, *sine = turns.sine + first;
  const float* cosine2 = TABLE ? turns.second_cosine + first : cosine;
  const float* sine2 = TABLE ? turns.second_sine + first : sine;
  for (; i + L <= n; i += L) {
    F<W> a, b;
    if constexpr (READ) {
      D::template load_pairs<W>(x1 + 2 * i, a, b);
    } else {
      a = D::template load<W>(x1 + i);
      b = D::template load<W>(x2 + i);
    }
    const F<W> p = a * load_as<F<W>>(cosine + i) - b * load_as<F<W>>(sine + i);
    const F<W> q = b * load_as<F<W>>(cosine2 + i) + a * load_as<F<W>>(sine2 + i);
    if constexpr (WRITE) {
      D::template store_pairs<W, STREAM>(y1 + 2 * i, p, q);
    } else {
      D::template store<W, STREAM>(y1 + i, p);
      D::template store<W, STREAM>(y2 + i, q);
    }
  }
  if constexpr (W > 16) {
    rotate_lanes<D, W / 2, READ, WRITE, STREAM, TABLE>(x1, x2, y1, y2, turns, first, i, n);
  } else {
    for (; i < n; ++i) {
      const float a = D::widen(READ ? x1[2 * i] : x1[i]), b = D::widen(READ ? x1[2 * i + 1] : x2[i]);
      (WRITE ? y1[2 * i] : y1[i]) = D::narrow(a * cosine[i] - b * sine[i]);
      (WRITE ? y1[2 * i + 1] : y2[i]) = D::narrow(b * cosine2[i] + a * sine2[i]);
    }
  }
}

/// The rotation of both elements of words of two halves, first elements and second ones.
template <int W>
ROPE_INLINE void turn_words(U<W>& a, U<W>& b, F<W> c0, F<W> c1, F<W> s0, F<W> s1) {
  F<W> a0, a1, b0, b1;
  BFloat16::unpack<W>(a, a0, a1);
  BFloat16::unpack<W>(b, b0, b1);
  a = BFloat16::pack<W>(a0 * c0 - b0 * s0, a1 * c1 - b1 * s1);
  b = BFloat16::pack<W>(b0 * c0 + a0 * s0, b1 * c1 + a1 * s1);
}

/// One vector of words of both halves. MASKED: only the first `count` of it.
template <int W, bool STREAM, bool MASKED = false>
ROPE_INLINE void rotate_vector(const std::uint16_t* x, std::uint16_t* y, int distance, const float* cosine,
                               const float* sine, int j, int words, int count = 0) {
  const auto turn = [&](U<W>& a, U<W>& b) {
    turn_words<W>(a, b, load_as<F<W>>(cosine + j), load_as<F<W>>(cosine + words + j), load_as<F<W>>(sine + j),
                  load_as<F<W>>(sine + words + j));
  };
  x += 2 * j;
  y += 2 * j;
#if defined(__AVX512F__)
  if constexpr (MASKED) {
    const auto mask = static_cast<__mmask16>((1U << count) - 1U);
    U<W> a = (U<W>)_mm512_maskz_loadu_epi32(mask, x), b = (U<W>)_mm512_maskz_loadu_epi32(mask, x + distance);
    turn(a, b);
    _mm512_mask_storeu_epi32(y, mask, (__m512i)a);
    _mm512_mask_storeu_epi32(y + distance, mask, (__m512i)b);
    return;
  }
#endif
  U<W> a = load_as<U<W>>(x), b = load_as<U<W>>(x + distance);
  turn(a, b);
  store_as<STREAM>(y, a);
  store_as<STREAM>(y + distance, b);
}

/// Words [j, words) of both halves; cosines of the first elements of words, then those of the second ones.
template <int W, bool STREAM>
ROPE_INLINE void rotate_words(const std::uint16_t* x, std::uint16_t* y, int distance, const float* cosine,
                              const float* sine, int j, int words) {
  constexpr int L = Vec<W>::L;
#if defined(__AVX512F__)
  if constexpr (W == 64) {
    // Few odd words are masked, and come first: a masked load that reaches into bytes just stored waits for them.
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

/// All heads of a token, for WORDS words per half known at compile time: cosines stay in registers.
template <int WORDS, bool STREAM>
ROPE_INLINE void heads_of_words(const std::uint16_t* x, std::uint16_t* y, std::int64_t heads, std::int64_t x_head,
                                std::int64_t y_head, const Turns& turns) {
  constexpr int W = ROPE_VECTOR < 4 * WORDS ? ROPE_VECTOR : 4 * WORDS, L = Vec<W>::L, N = WORDS / L;
  F<W> c0[N], c1[N], s0[N], s1[N];
  for (int j = 0; j < N; ++j) {
    c0[j] = load_as<F<W>>(turns.cosine + j * L);
    c1[j] = load_as<F<W>>(turns.cosine + WORDS + j * L);
    s0[j] = load_as<F<W>>(turns.sine + j * L);
    s1[j] = load_as<F<W>>(turns.sine + WORDS + j * L);
  }
  for (std::int64_t h = 0; h < heads; ++h, x += x_head, y += y_head) {
    for (int d = 0; d < 4 * WORDS; d += 32) __builtin_prefetch(reinterpret_cast<const char*>(x + d) + kPrefetchBytes);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      U<W> a = load_as<U<W>>(x + 2 * j * L), b = load_as<U<W>>(x + 2 * WORDS + 2 * j * L);
      turn_words<W>(a, b, c0[j], c1[j], s0[j], s1[j]);
      store_as<STREAM>(y + 2 * j * L, a);
      store_as<STREAM>(y + 2 * WORDS + 2 * j * L, b);
    }
  }
}

/// All heads of a token as words.
template <bool STREAM>
void heads_of_split(const Rotation& r, const Rows& rows, const std::uint16_t* x, std::uint16_t* y, const Turns& turns) {
  const std::int64_t a = rows.from.head, b = rows.to.head;
  if (r.rotary_offset == 0 && r.distance == r.num_pairs) {
    if (r.num_pairs == 64) return heads_of_words<32, STREAM>(x, y, rows.heads, a, b, turns);
    if (r.num_pairs == 32) return heads_of_words<16, STREAM>(x, y, rows.heads, a, b, turns);
    if (r.num_pairs == 128) return heads_of_words<64, STREAM>(x, y, rows.heads, a, b, turns);
  }
  x += r.rotary_offset;
  y += r.rotary_offset;
  for (std::int64_t h = 0; h < rows.heads; ++h, x += a, y += b) {
    for (int d = 0; d < 2 * r.num_pairs; d += 32) {
      __builtin_prefetch(reinterpret_cast<const char*>(x + d) + kPrefetchBytes);
    }
    rotate_words<ROPE_VECTOR, STREAM>(x, y, r.distance, turns.cosine, turns.sine, 0, r.num_pairs / 2);
  }
}

/// All heads of a token, any geometry.
template <class D, bool READ, bool WRITE, bool STREAM, bool TABLE>
void heads_of_pairs(const Job& job, const typename D::T* x, typename D::T* y, std::int64_t heads, std::int64_t x_head,
                    std::int64_t y_head, const Turns& turns) {
  const Rotation& r = job.plan->rotation;
  const int width = r.num_pairs / r.blocks;
  // A pair that is read as neighbours and written apart would, in place, write what later pairs read.
  alignas(64) typename D::T copy[2 * kMaxPairs];
  const bool aside = READ != WRITE && job.in_place;
  for (std::int64_t h = 0; h < heads; ++h, x += x_head, y += y_head) {
    const auto* ahead = reinterpret_cast<const char*>(x);
    const int bytes = 2 * r.num_pairs * static_cast<int>(sizeof(*x));
    for (int d = 0; d < bytes; d += 64) __builtin_prefetch(ahead + d + kPrefetchBytes);
    const typename D::T* from = x + r.rotary_offset;
    typename D::T* to = y + r.rotary_offset;
    if (aside) {
      std::memcpy(copy, from, static_cast<std::size_t>(bytes));
      from = copy;
    }
    for (int block = 0; block < r.blocks; ++block) {
      const int at = 2 * block * r.distance, pair = block * width;
      rotate_lanes<D, ROPE_VECTOR, READ, WRITE, STREAM, TABLE>(from + at, from + at + r.distance, to + at,
                                                               to + at + r.distance, turns, pair, 0, width);
    }
  }
}

template <class D, bool STREAM, bool TABLE>
void rotate_token(const Job& job, const Flags& flags, const Rows& rows, std::int64_t batch, std::int64_t token,
                  const Turns& turns) {
  using T = typename D::T;
  const T* x = static_cast<const T*>(rows.in) + batch * rows.from.batch + token * rows.from.token;
  T* y = static_cast<T*>(rows.out) + batch * rows.to.batch + token * rows.to.token;
  const Rotation& r = job.plan->rotation;
  const std::int64_t a = rows.from.head, b = rows.to.head;
  if constexpr (std::is_same_v<D, BFloat16>) {
    if (flags.split) return heads_of_split<STREAM>(r, rows, x, y, turns);
  }
  if (flags.read_pairs && flags.write_pairs) {
    heads_of_pairs<D, true, true, STREAM, TABLE>(job, x, y, rows.heads, a, b, turns);
  } else if (flags.read_pairs) {
    heads_of_pairs<D, true, false, STREAM, TABLE>(job, x, y, rows.heads, a, b, turns);
  } else if (flags.write_pairs) {
    heads_of_pairs<D, false, true, STREAM, TABLE>(job, x, y, rows.heads, a, b, turns);
  } else {
    heads_of_pairs<D, false, false, STREAM, TABLE>(job, x, y, rows.heads, a, b, turns);
  }
}

/// Copies channels of all heads of a token to another buffer: whole dense heads at once.
void copy_channels(const Job& job, const Rows& rows, std::int64_t batch, std::int64_t token, const Span& span) {
  const std::int64_t size = job.dtype == DType::kFloat32 ? 4 : 2;
  const char* from =
      static_cast<const char*>(rows.in) + (batch * rows.from.batch + token * rows.from.token + span.first) * size;
  char* to = static_cast<char*>(rows.out) + (batch * rows.to.batch + token * rows.to.token + span.first) * size;
  const std::int64_t width = span.last - span.first;
  if (rows.from.head == width && rows.to.head == width) {
    std::memcpy(to, from, static_cast<std::size_t>(rows.heads * width * size));
    return;
  }
  for (std::int64_t h = 0; h < rows.heads; ++h) {
    std::memcpy(to + h * rows.to.head * size, from + h * rows.from.head * size, static_cast<std::size_t>(width * size));
  }
}

/// Copies what does not turn. Of dense heads that is all of them: one copy beats many, and what turns is written over
/// it.
void copy_untouched(const Job& job, const Rows& rows, std::int64_t batch, std::int64_t token) {
  const std::int32_t head_dim = job.plan->rotation.head_dim;
  if (rows.from.head == head_dim && rows.to.head == head_dim && !job.plan->untouched.empty()) {
    copy_channels(job, rows, batch, token, {0, head_dim});
    return;
  }
  for (const Span& span : job.plan->untouched) copy_channels(job, rows, batch, token, span);
}
