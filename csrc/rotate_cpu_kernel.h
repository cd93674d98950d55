// The CPU kernel of one instruction set. Included once per set with ROPE_ISA (its namespace) and ROPE_VECTOR (bytes).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "rotate.h"

namespace rope::ROPE_ISA {
namespace {

#include "cpu_vectors.h"

constexpr int kPrefetchBytes = 2048;
constexpr int kPad = ROPE_VECTOR / 4;  // a masked vector reads so far past the last cosine

/// Cosines and sines of one token, in natural or split order.
struct Turns {
  alignas(64) float cosine[kMaxPairs + kPad];
  alignas(64) float sine[kMaxPairs + kPad];
};

struct Flags {
  bool split;        // word path: two neighbours of a half at a time
  bool read_pairs;   // members of a pair are neighbours as read
  bool write_pairs;  // and as written
};

/// Lanes [i, n) of a pair of rows, W bytes at a time, then ever narrower. Returns nothing left to do.
template <class D, int W, bool READ, bool WRITE, bool STREAM>
ROPE_INLINE void rotate_lanes(const typename D::T* x1, const typename D::T* x2, typename D::T* y1, typename D::T* y2,
                              const float* cosine, const float* sine, int i, int n) {
  constexpr int L = Vec<W>::L;
  for (; i + L <= n; i += L) {
    F<W> a, b;
    if constexpr (READ) {
      D::template load_pairs<W>(x1 + 2 * i, a, b);
    } else {
      a = D::template load<W>(x1 + i);
      b = D::template load<W>(x2 + i);
    }
    const F<W> c = load_as<F<W>>(cosine + i), s = load_as<F<W>>(sine + i);
    const F<W> p = a * c - b * s, q = b * c + a * s;
    if constexpr (WRITE) {
      D::template store_pairs<W, STREAM>(y1 + 2 * i, p, q);
    } else {
      D::template store<W, STREAM>(y1 + i, p);
      D::template store<W, STREAM>(y2 + i, q);
    }
  }
  if constexpr (W > 16) {
    rotate_lanes<D, W / 2, READ, WRITE, STREAM>(x1, x2, y1, y2, cosine, sine, i, n);
  } else {
    for (; i < n; ++i) {
      const float a = D::widen(READ ? x1[2 * i] : x1[i]), b = D::widen(READ ? x1[2 * i + 1] : x2[i]);
      (WRITE ? y1[2 * i] : y1[i]) = D::narrow(a * cosine[i] - b * sine[i]);
      (WRITE ? y1[2 * i + 1] : y2[i]) = D::narrow(b * cosine[i] + a * sine[i]);
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
template <class D, bool READ, bool WRITE, bool STREAM>
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
      rotate_lanes<D, ROPE_VECTOR, READ, WRITE, STREAM>(from + at, from + at + r.distance, to + at,
                                                        to + at + r.distance, turns.cosine + pair, turns.sine + pair, 0,
                                                        width);
    }
  }
}

template <class D, bool STREAM>
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
    heads_of_pairs<D, true, true, STREAM>(job, x, y, rows.heads, a, b, turns);
  } else if (flags.read_pairs) {
    heads_of_pairs<D, true, false, STREAM>(job, x, y, rows.heads, a, b, turns);
  } else if (flags.write_pairs) {
    heads_of_pairs<D, false, true, STREAM>(job, x, y, rows.heads, a, b, turns);
  } else {
    heads_of_pairs<D, false, false, STREAM>(job, x, y, rows.heads, a, b, turns);
  }
}

/// Copies channels of all heads of a token, where the output is another buffer.
void copy_channels(const Job& job, const Rows& rows, std::int64_t batch, std::int64_t token, const Span& span) {
  const std::size_t size = job.dtype == DType::kFloat32 ? 4 : 2;
  const auto bytes = static_cast<std::size_t>(span.last - span.first) * size;
  const std::int64_t from = batch * rows.from.batch + token * rows.from.token + span.first;
  const std::int64_t to = batch * rows.to.batch + token * rows.to.token + span.first;
  for (std::int64_t h = 0; h < rows.heads; ++h) {
    std::memcpy(static_cast<char*>(rows.out) + (to + h * rows.to.head) * static_cast<std::int64_t>(size),
                static_cast<const char*>(rows.in) + (from + h * rows.from.head) * static_cast<std::int64_t>(size),
                bytes);
  }
}

std::int64_t integer_position(const Positions& p, std::int64_t at) {
  return p.kind == Number::kInt32 ? static_cast<const std::int32_t*>(p.data)[at]
                                  : static_cast<const std::int64_t*>(p.data)[at];
}

double any_position(const Positions& p, std::int64_t at) {
  switch (p.kind) {
    case Number::kFloat16:
      return Float16::widen(static_cast<const std::uint16_t*>(p.data)[at]);
    case Number::kBFloat16:
      return BFloat16::widen(static_cast<const std::uint16_t*>(p.data)[at]);
    case Number::kFloat32:
      return static_cast<const float*>(p.data)[at];
    case Number::kFloat64:
      return static_cast<const double*>(p.data)[at];
    default:
      return static_cast<double>(integer_position(p, at));
  }
}

/// fp32 product of a position and a frequency, as transformers rounds both.
double float32_angle(double position, std::int64_t integer, bool is_integer, double radians) {
  const float where = is_integer ? static_cast<float>(integer) : static_cast<float>(position);
  return static_cast<double>(where * static_cast<float>(radians));
}

/// What a range of tokens needs on the way: one per thread.
struct Work {
  FrequencyCache* now;
  FrequencyCache* before;
  Turns turns;
  alignas(64) std::uint32_t phase[kMaxPairs];
  std::int64_t group = -2;
  const Frequencies* frequencies = nullptr;
  const Frequencies* from = nullptr;
  float scaling = 1.0F;
};

/// Where a token is: its sequence, and its place in it if positions are counted.
struct Place {
  std::int64_t batch, token, group, counted;
};

Place place_of(const Job& job, std::int64_t flat) {
  Place at{flat / job.tokens, flat % job.tokens, 0, 0};
  at.group = at.batch;
  at.counted = at.token;
  if (job.packed.bounds != nullptr) {
    std::int64_t low = 0, high = job.packed.sequences;
    while (low < high) {
      const std::int64_t middle = (low + high + 1) / 2;
      if (job.packed.bound(middle) <= at.token) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    at.group = low;
    if (low < job.packed.sequences) at.counted = at.token - job.packed.bound(low);
  }
  return at;
}

/// Frequencies and scaling of the token's sequence.
void enter_group(const Job& job, const Place& at, Work& work) {
  if (at.group == work.group) return;
  work.group = at.group;
  const Plan& plan = *job.plan;
  const std::int64_t length = job.seq_len.count ? job.seq_len[at.group] : 0;
  work.frequencies = &work.now->at(plan, length);
  if (job.from_seq_len.count) work.from = &work.before->at(plan, job.from_seq_len[at.group]);
  const double scaling = is_long(plan.params, length) ? plan.params.long_scaling : plan.params.scaling;
  work.scaling = job.unscaled ? 1.0F : static_cast<float>(scaling);
}

/// Phases of integer positions: a 64-bit product modulo one turn, from 32-bit halves, which vectorise everywhere.
ROPE_INLINE void multiply(std::uint64_t position, const std::uint32_t* low, const std::uint32_t* high, int n,
                          std::uint32_t* phase) {
  const auto p0 = static_cast<std::uint32_t>(position), p1 = static_cast<std::uint32_t>(position >> 32);
  for (int i = 0; i < n; ++i) {
    phase[i] = static_cast<std::uint32_t>((static_cast<std::uint64_t>(p0) * low[i]) >> 32) + p0 * high[i] + p1 * low[i];
  }
}

/// Phases of one token in natural order, one pair at a time: several axes, floating positions, fp32 phases,
/// differences.
void general_phases(const Job& job, const Place& at, Work& work) {
  const Rotation& r = job.plan->rotation;
  const Positions& p = job.positions;
  const bool integer = p.kind == Number::kNone || p.kind == Number::kInt32 || p.kind == Number::kInt64;
  const std::int64_t start = at.counted + (job.offset.count ? job.offset[at.group] : 0);
  for (int i = 0; i < r.num_pairs; ++i) {
    const auto pair = static_cast<std::size_t>(i);
    const std::int64_t row = r.axis.empty() ? 0 : r.axis[pair];
    const std::int64_t where = row * p.axis + at.batch * p.batch + at.token * p.token;
    const std::int64_t whole = p.kind == Number::kNone ? start : (integer ? integer_position(p, where) : 0);
    const double real = integer ? static_cast<double>(whole) : any_position(p, where);
    const auto phase = [&](const Frequencies& f) {
      constexpr double kTurn = 0.15915494309189535;
      if (r.phase == Phase::kFloat32)
        return phase_of_turns(float32_angle(real, whole, integer, f.radians[pair]) * kTurn);
      if (!integer) return phase_of_turns(real * (f.radians[pair] * kTurn));
      return phase_of(whole, static_cast<std::uint64_t>(f.high[pair]) << 32 | f.low[pair]);
    };
    work.phase[i] = phase(*work.frequencies) - (work.from != nullptr ? phase(*work.from) : 0U);
  }
}

void plain_phases(const Job& job, const Place& at, Work& work, bool split) {
  const Positions& p = job.positions;
  const std::int64_t position = p.kind == Number::kNone ? at.counted + (job.offset.count ? job.offset[at.group] : 0)
                                                        : integer_position(p, at.batch * p.batch + at.token * p.token);
  const Frequencies& f = *work.frequencies;
  multiply(static_cast<std::uint64_t>(position), split ? f.split_low.data() : f.low.data(),
           split ? f.split_high.data() : f.high.data(), job.plan->rotation.num_pairs, work.phase);
}

void turns_of(const Job& job, Work& work) {
  const Rotation& r = job.plan->rotation;
  const float c_scale = work.scaling, s_scale = job.inverse ? -work.scaling : work.scaling;
  Turns& turns = work.turns;
  for (int i = 0; i < r.num_pairs; ++i) {
    float s, c;
    sin_cos(work.phase[i], s, c);
    turns.sine[i] = s * s_scale;
    turns.cosine[i] = c * c_scale;
  }
  std::fill_n(turns.sine + r.num_pairs, kPad, 0.0F);
  std::fill_n(turns.cosine + r.num_pairs, kPad, 0.0F);
  if (r.table_dtype == Number::kNone) return;
  const bool bf16 = r.table_dtype == Number::kBFloat16;
  for (int i = 0; i < r.num_pairs; ++i) {
    for (float* value : {&turns.sine[i], &turns.cosine[i]}) {
      *value = bf16 ? BFloat16::widen(BFloat16::narrow(*value)) : Float16::widen(Float16::narrow(*value));
    }
  }
}

template <class D, bool STREAM>
void rotate_range(const Job& job, std::int64_t first, std::int64_t last, FrequencyCache (&caches)[2]) {
  const Rotation& r = job.plan->rotation;
  const Positions& p = job.positions;
  const bool integer = p.kind == Number::kNone || p.kind == Number::kInt32 || p.kind == Number::kInt64;
  const bool plain = integer && r.axis.empty() && r.phase == Phase::kExact && job.from_seq_len.count == 0;
  const bool mixed = r.pairing == Pairing::kInterleavedToHalf, pairs = r.pairing == Pairing::kInterleaved;
  const bool split = plain && job.words && job.plan->splits && job.dtype == DType::kBFloat16;
  const Flags flags{split, pairs || (mixed && !job.inverse), pairs || (mixed && job.inverse)};
  Work work;
  work.now = &caches[0];
  work.before = &caches[1];
  for (std::int64_t flat = first; flat < last; ++flat) {
    const Place at = place_of(job, flat);
    const bool outside = job.packed.bounds != nullptr && at.group == job.packed.sequences;
    if (!outside) {
      enter_group(job, at, work);
      if (plain) {
        plain_phases(job, at, work, split);
      } else {
        general_phases(job, at, work);
      }
      turns_of(job, work);
    }
    for (int i = 0; i < job.num_rows; ++i) {
      if (!outside) rotate_token<D, STREAM>(job, flags, job.rows[i], at.batch, at.token, work.turns);
      if (job.in_place) continue;
      if (outside) copy_channels(job, job.rows[i], at.batch, at.token, {0, r.head_dim});
      if (!outside) {
        for (const Span& span : job.plan->untouched) copy_channels(job, job.rows[i], at.batch, at.token, span);
      }
    }
  }
#if defined(__x86_64__)
  if (STREAM) _mm_sfence();
#endif
}

}  // namespace

void rotate(const Job& job, std::int64_t first, std::int64_t last, FrequencyCache (&caches)[2]) {
  switch (job.dtype) {
    case DType::kFloat32:
      return job.streaming ? rotate_range<Float32, true>(job, first, last, caches)
                           : rotate_range<Float32, false>(job, first, last, caches);
    case DType::kBFloat16:
      return job.streaming ? rotate_range<BFloat16, true>(job, first, last, caches)
                           : rotate_range<BFloat16, false>(job, first, last, caches);
    case DType::kFloat16:
      return rotate_range<Float16, false>(job, first, last, caches);
  }
}

}  // namespace rope::ROPE_ISA
