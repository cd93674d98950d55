// All heads of a block of tokens: rows in, rows out, by cosines and sines that are there. Included like cpu_vectors.h.
#include "cpu_words.h"

struct Flags {
  bool split;        // word path: two neighbours of a half at a time
  bool read_pairs;   // members of a pair are neighbours as read
  bool write_pairs;  // and as written
  Ahead ahead;
};

/// L pairs from the i-th on, as read and as written: neighbours, or in two halves.
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

/// Pairs [i, n) of a block, W bytes at a time, then ever narrower; `first` is the block's first pair.
template <class D, int W, bool READ, bool WRITE, bool STREAM, bool TABLE>
ROPE_INLINE void rotate_lanes(const typename D::T* x1, const typename D::T* x2, typename D::T* y1, typename D::T* y2,
                              const Turns& turns, int first, int i, int n) {
  constexpr int L = Vec<W>::L;
  const float *cosine = turns.cosine + first, *sine = turns.sine() + first;
  const float* cosine2 = TABLE ? turns.second_cosine() + first : cosine;
  const float* sine2 = TABLE ? turns.second_sine() + first : sine;
  for (; i + L <= n; i += L) {
    F<W> a, b;
    load_members<D, W, READ>(x1, x2, i, a, b);
    const F<W> p = a * load_as<F<W>>(cosine + i) - b * load_as<F<W>>(sine + i);
    const F<W> q = b * load_as<F<W>>(cosine2 + i) + a * load_as<F<W>>(sine2 + i);
    store_members<D, W, WRITE, STREAM>(y1, y2, i, p, q);
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

/// All heads of a block, for PAIRS pairs known at compile time: cosines stay in registers, for q and for k.
template <class D, int PAIRS, bool READ, bool WRITE, bool STREAM>
ROPE_INLINE void heads_of_usual(const Job& job, const Block& block, Ahead ahead) {
  using T = typename D::T;
  constexpr int W = vector_for(PAIRS), L = Vec<W>::L, N = PAIRS / L;
  // Neighbours that are written apart, or the other way, are all read before any is written. So are others, if the
  // registers hold them, or take long to convert.
  constexpr bool kWhole = READ != WRITE || 4 * N < kRegisters || std::is_same_v<D, Float16>;
  const int distance = job.plan->rotation.distance;
  F<W> cosine[N], sine[N], p[N], q[N];
  const auto take = [&](const Turns& turns) {
    for (int j = 0; j < N; ++j) {
      cosine[j] = load_as<F<W>>(turns.cosine + j * L);
      sine[j] = load_as<F<W>>(turns.sine() + j * L);
    }
  };
  for_each_head<T>(job, block, take, [&](const T* x, T* y, const Turns&) {
    ask_for<2 * PAIRS* static_cast<int>(sizeof(T))>(x, ahead);
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

/// All heads of a block, any geometry.
template <class D, bool READ, bool WRITE, bool STREAM, bool TABLE>
void heads_of_pairs(const Job& job, const Block& block, Ahead ahead) {
  using T = typename D::T;
  const Rotation& r = job.plan->rotation;
  const int width = r.num_pairs / r.blocks;
  if constexpr (!TABLE) {
    const auto usual = [&](auto pairs) { heads_of_usual<D, pairs(), READ, WRITE, STREAM>(job, block, ahead); };
    if (r.blocks == 1 && with_usual_pairs(r.num_pairs, usual)) return;
  }
  // A pair that is read as neighbours and written apart would, in place, write what later pairs read.
  alignas(64) T copy[2 * kMaxPairs];
  const bool aside = READ != WRITE && job.in_place;
  const auto take = [](const Turns&) {};
  for_each_head<T>(job, block, take, [&](const T* from, T* to, const Turns& turns) {
    const int bytes = 2 * r.num_pairs * static_cast<int>(sizeof(T));
    ask_for<0>(from, ahead);
    if (aside) {
      std::memcpy(copy, from, static_cast<std::size_t>(bytes));
      from = copy;
    }
    for (int part = 0; part < r.blocks; ++part) {
      const int start = 2 * part * r.distance, pair = part * width;
      rotate_lanes<D, ROPE_VECTOR, READ, WRITE, STREAM, TABLE>(from + start, from + start + r.distance, to + start,
                                                               to + start + r.distance, turns, pair, 0, width);
    }
  });
}

template <class D, bool STREAM, bool TABLE>
void rotate_block(const Job& job, const Flags& flags, const Block& block) {
  if constexpr (std::is_same_v<D, BFloat16> && !TABLE) {
    if (flags.split) return heads_of_split<STREAM>(job, block, flags.ahead);
  }
  if (flags.read_pairs && flags.write_pairs) {
    heads_of_pairs<D, true, true, STREAM, TABLE>(job, block, flags.ahead);
  } else if (flags.read_pairs) {
    heads_of_pairs<D, true, false, STREAM, TABLE>(job, block, flags.ahead);
  } else if (flags.write_pairs) {
    heads_of_pairs<D, false, true, STREAM, TABLE>(job, block, flags.ahead);
  } else {
    heads_of_pairs<D, false, false, STREAM, TABLE>(job, block, flags.ahead);
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

/// Copies what a token's heads keep to other buffers: all of it, of a token outside all sequences.
void copy_others(const Job& job, const Place& at, bool outside) {
  for (int i = 0; !job.in_place && i < job.num_rows; ++i) {
    if (outside) {
      copy_channels(job, job.rows[i], at.batch, at.token, {0, job.plan->rotation.head_dim});
    } else {
      copy_untouched(job, job.rows[i], at.batch, at.token);
    }
  }
}
