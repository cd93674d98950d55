// Norms the heads of a block of tokens and rotates them; and the gradients of both. A head is held in fp32 from its one
// read to its one write, so that it is rounded once.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/cos_sin.h"
#include "cpu/floats.h"
#include "cpu/heads.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/traversal.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

/// fp32 copies of one head, and of what becomes of it.
struct HeadCopies {
  float *a, *b, *c;
  int head_dim;

  HeadCopies(ThreadState& thread, int head_dim) : head_dim(head_dim) {
    const std::size_t step = (static_cast<std::size_t>(head_dim) + kPad + 15) / 16 * 16;
    if (thread.heads.size() < 3 * step) thread.heads.resize(3 * step);
    a = thread.heads.data();
    b = a + step;
    c = b + step;
  }
};

/// The sum of a vector's lanes.
template <int W>
ROPE_INLINE float sum_of_lanes(F<W> v) {
  if constexpr (W == 64) {
    return sum_of_lanes<32>(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                            __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (W == 32) {
    return sum_of_lanes<16>(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else {
    return (v[0] + v[1]) + (v[2] + v[3]);
  }
}

/// Calls `body(i)` for each whole vector of n floats, from the i-th on, and `rest(i)` for each of the last floats.
template <class BODY, class REST>
ROPE_INLINE void for_each_vector(int n, const BODY& body, const REST& rest) {
  constexpr int L = Vec<ROPE_VECTOR>::L;
  int i = 0;
  for (; i + L <= n; i += L) body(i);
  for (; i < n; ++i) rest(i);
}

using Floats = F<ROPE_VECTOR>;
ROPE_INLINE Floats floats_at(const float* x) { return load_as<Floats>(x); }

/// The sum of products, in an order that depends on n alone.
float dot(const float* x, const float* y, int n) {
  Floats sum = {};
  float rest = 0;
  for_each_vector(n, [&](int i) { sum += floats_at(x + i) * floats_at(y + i); }, [&](int i) { rest += x[i] * y[i]; });
  return sum_of_lanes<ROPE_VECTOR>(sum) + rest;
}

float inverse_rms(const HeadNorm& norm, float squares, int n) {
  return 1.0F / std::sqrt(squares / static_cast<float>(n) + norm.eps);
}

void scale(float* x, float r, int n) {
  for_each_vector(n, [&](int i) { store_as<false>(x + i, floats_at(x + i) * r); }, [&](int i) { x[i] *= r; });
}

/// Multiplies a head by `r` and by the norm's factors.
void scale(const HeadNorm& norm, float* x, float r, int n) {
  const float* u = norm.factors;
  if (u == nullptr) return scale(x, r, n);
  for_each_vector(
      n, [&](int i) { store_as<false>(x + i, floats_at(x + i) * (r * floats_at(u + i))); },
      [&](int i) { x[i] *= r * u[i]; });
}

template <class D>
void widen(const typename D::T* x, float* to, int n) {
  for_each_vector(
      n, [&](int i) { store_as<false>(to + i, D::template load<ROPE_VECTOR>(x + i)); },
      [&](int i) { to[i] = D::widen(x[i]); });
}

template <class D>
void narrow(const float* x, typename D::T* to, int n) {
  for_each_vector(
      n, [&](int i) { D::template store<ROPE_VECTOR, false>(to + i, floats_at(x + i)); },
      [&](int i) { to[i] = D::narrow(x[i]); });
}

/// Rotates L pairs at a time: forward, or BACK by the adjoint.
template <int W, bool READ, bool WRITE, bool BACK>
ROPE_INLINE void turn_lanes(const float* x1, const float* x2, float* y1, float* y2, const float* cosine,
                            const float* sine, int i, int n) {
  constexpr int L = Vec<W>::L;
  for (; i + L <= n; i += L) {
    F<W> a, b;
    load_members<Float32, W, READ>(x1, x2, i, a, b);
    const F<W> c = load_as<F<W>>(cosine + i), s = load_as<F<W>>(sine + i);
    const F<W> p = BACK ? a * c + b * s : a * c - b * s;
    const F<W> q = BACK ? b * c - a * s : b * c + a * s;
    store_members<Float32, W, WRITE, false>(y1, y2, i, p, q);
  }
  if constexpr (W > 16) {
    turn_lanes<W / 2, READ, WRITE, BACK>(x1, x2, y1, y2, cosine, sine, i, n);
  } else {
    for (; i < n; ++i) {
      const float a = READ ? x1[2 * i] : x1[i], b = READ ? x1[2 * i + 1] : x2[i], s = BACK ? -sine[i] : sine[i];
      (WRITE ? y1[2 * i] : y1[i]) = a * cosine[i] - b * s;
      (WRITE ? y1[2 * i + 1] : y2[i]) = b * cosine[i] + a * s;
    }
  }
}

/// Rotates a head from `x` to `y`, which are apart; `BACK`: by the adjoint, from where a rotation writes.
template <bool READ, bool WRITE, bool BACK>
void turn(const Spec& spec, const CosSin& cos_sin, const float* x, float* y) {
  const Rotation& r = spec.rotation;
  for (const Span& span : spec.untouched) {
    for (int i = span.first; i < span.last; ++i) y[i] = x[i];
  }
  const int width = r.num_pairs / r.blocks;
  for (int part = 0; part < r.blocks; ++part) {
    const int start = r.rotary_offset + 2 * part * r.distance, pair = part * width;
    turn_lanes<ROPE_VECTOR, BACK ? WRITE : READ, BACK ? READ : WRITE, BACK>(
        x + start, x + start + r.distance, y + start, y + start + r.distance, cos_sin.cosine + pair,
        cos_sin.sine() + pair, 0, width);
  }
}

/// Norms and rotates one head.
template <class D, bool READ, bool WRITE>
void norm_head(const Spec& spec, const HeadNorm& norm, const CosSin& cos_sin, const typename D::T* from,
               typename D::T* to, const HeadCopies& copies) {
  const int n = copies.head_dim;
  widen<D>(from, copies.a, n);
  if (norm.is_given && !norm.after_rope) scale(norm, copies.a, inverse_rms(norm, dot(copies.a, copies.a, n), n), n);
  turn<READ, WRITE, false>(spec, cos_sin, copies.a, copies.b);
  if (norm.is_given && norm.after_rope) scale(norm, copies.b, inverse_rms(norm, dot(copies.b, copies.b, n), n), n);
  narrow<D>(copies.b, to, n);
}

/// Puts the gradient of `x`, which a norm multiplied by 1 / rms and the factors, in the place of the result's, `grad`,
/// and adds the weight's to `weight_grad`.
void norm_gradient(const HeadNorm& norm, float* weight_grad, float* x, float* grad, int n) {
  const float r = inverse_rms(norm, dot(x, x, n), n);
  scale(x, r, n);
  float* const w = weight_grad;
  if (w != nullptr) {
    for_each_vector(
        n, [&](int i) { store_as<false>(w + i, floats_at(w + i) + floats_at(grad + i) * floats_at(x + i)); },
        [&](int i) { w[i] += grad[i] * x[i]; });
  }
  if (norm.factors != nullptr) scale(norm, grad, 1.0F, n);
  const float mean = dot(grad, x, n) / static_cast<float>(n);
  for_each_vector(
      n, [&](int i) { store_as<false>(grad + i, r * (floats_at(grad + i) - floats_at(x + i) * mean)); },
      [&](int i) { grad[i] = r * (grad[i] - x[i] * mean); });
}

/// The gradient of one head, `to`, from that of its result, `from`, and the head, `x`.
template <class D, bool READ, bool WRITE>
void norm_head_backward(const Spec& spec, const HeadNorm& norm, float* weight_grad, const CosSin& cos_sin,
                        const typename D::T* from, const typename D::T* x, typename D::T* to,
                        const HeadCopies& copies) {
  const int n = copies.head_dim;
  widen<D>(from, copies.a, n);
  if (!norm.is_given) {
    turn<READ, WRITE, true>(spec, cos_sin, copies.a, copies.b);
  } else if (norm.after_rope) {
    widen<D>(x, copies.b, n);
    turn<READ, WRITE, false>(spec, cos_sin, copies.b, copies.c);
    norm_gradient(norm, weight_grad, copies.c, copies.a, n);
    turn<READ, WRITE, true>(spec, cos_sin, copies.a, copies.b);
  } else {
    turn<READ, WRITE, true>(spec, cos_sin, copies.a, copies.b);
    widen<D>(x, copies.c, n);
    norm_gradient(norm, weight_grad, copies.c, copies.b, n);
  }
  narrow<D>(copies.b, to, n);
}

/// Whether all channels of a job's heads are rotated, and their number is a usual one: see norm_whole_heads.
bool has_usual_heads(const Job& job) {
  const Rotation& r = job.spec->rotation;
  return !job.backward && r.blocks == 1 && 2 * r.num_pairs == r.head_dim && with_usual_pairs(r.num_pairs, [](auto) {});
}

/// How members of pairs lie in a head: in halves, halves that are read as words of two neighbours, or neighbours.
enum class Members : std::uint8_t { kHalves, kWords, kNeighbours };

/// Loads all first and second members; by words, those of even pairs come before those of odd ones.
template <class D, int W, int N, Members MEMBERS>
ROPE_INLINE void load_head(const typename D::T* x, F<W>* a, F<W>* b) {
  constexpr int L = Vec<W>::L;
  if constexpr (MEMBERS == Members::kWords) {
#pragma GCC unroll 16
    for (int j = 0; j < N / 2; ++j) {
      D::template load_pairs<W>(x + 2 * j * L, a[j], a[N / 2 + j]);
      D::template load_pairs<W>(x + (N + 2 * j) * L, b[j], b[N / 2 + j]);
    }
  } else {
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      load_members<D, W, MEMBERS == Members::kNeighbours>(x, x + N * L, j * L, a[j], b[j]);
    }
  }
}

template <class D, int W, int N, Members MEMBERS>
ROPE_INLINE void store_head(typename D::T* y, const F<W>* a, const F<W>* b) {
  constexpr int L = Vec<W>::L;
  if constexpr (MEMBERS == Members::kWords) {
#pragma GCC unroll 16
    for (int j = 0; j < N / 2; ++j) {
      D::template store_pairs<W, false>(y + 2 * j * L, a[j], a[N / 2 + j]);
      D::template store_pairs<W, false>(y + (N + 2 * j) * L, b[j], b[N / 2 + j]);
    }
  } else {
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      store_members<D, W, MEMBERS == Members::kNeighbours, false>(y, y + N * L, j * L, a[j], b[j]);
    }
  }
}

/// The factors of first members, then those of second ones, in the order of load_head; without a weight they are 1.
template <Members MEMBERS>
void factors_of_members(const float* u, int pairs, float* to) {
  for (int i = 0; i < pairs; ++i) {
    const int pair = MEMBERS != Members::kWords ? i : i < pairs / 2 ? 2 * i : 2 * (i - pairs / 2) + 1;
    constexpr bool kNeighbours = MEMBERS == Members::kNeighbours;
    to[i] = u == nullptr ? 1.0F : u[kNeighbours ? 2 * pair : pair];
    to[pairs + i] = u == nullptr ? 1.0F : u[kNeighbours ? 2 * pair + 1 : pairs + pair];
  }
}

/// The factors of q's and k's norms for heads of a usual number of pairs, made once for all tokens of a range.
class UsualFactors {
 public:
  template <Members READ, Members WRITE>
  const float* of(const Job& job, int operand) {
    float* const u = factors_[operand];
    if (!made_[operand]) {
      const HeadNorm& norm = job.norms[operand];
      const int pairs = job.spec->rotation.num_pairs;
      norm.after_rope ? factors_of_members<WRITE>(norm.factors, pairs, u)
                      : factors_of_members<READ>(norm.factors, pairs, u);
      made_[operand] = true;
    }
    return u;
  }

 private:
  static constexpr int kMostPairs = 128;
  bool made_[2] = {};
  float factors_[2][2 * kMostPairs];
};

/// The order in which a norm and a rotation are done.
enum class Order : std::uint8_t { kRotate, kNormFirst, kRotateFirst };

/// A token's cosines and sines times a norm's factors `u`: members a and b of a pair become a * cosine1 - b * sine1 and
/// b * cosine2 + a * sine2, which 1 / rms is yet to multiply.
template <int W, int N>
struct WeightedAngles {
  F<W> cosine1[N], sine1[N], cosine2[N], sine2[N];
  F<W> squared_scale[N];  // if the rotation is first: by how much it multiplies a^2 + b^2, in a rounded table not by 1

  ROPE_INLINE WeightedAngles make(const CosSin& cos_sin, const float* u, Order order) {
    constexpr int L = Vec<W>::L;
    const bool rotate_first = order == Order::kRotateFirst;
    WeightedAngles made;
    for (int j = 0; j < N; ++j) {
      const F<W> c = load_as<F<W>>(cos_sin.cosine + j * L), s = load_as<F<W>>(cos_sin.sine() + j * L);
      const F<W> u1 = load_as<F<W>>(u + j * L), u2 = load_as<F<W>>(u + (N + j) * L);
      made.cosine1[j] = c * u1;
      made.sine1[j] = s * (rotate_first ? u1 : u2);
      made.cosine2[j] = c * u2;
      made.sine2[j] = s * (rotate_first ? u2 : u1);
      if (rotate_first) made.squared_scale[j] = c * c + s * s;
    }
    return made;
  }
};

/// Norms and rotates the heads of one token whose channels are all rotated, for a constant number of pairs: a head
/// stays in registers. `u` are the factors of the members: as read if the norm comes first, else as written.
template <class D, int PAIRS, Members READ, Members WRITE, Order ORDER>
void norm_whole_heads(const Operand& operand, const CosSin& cos_sin, const typename D::T* x, typename D::T* y,
                      const HeadNorm& norm, const float* u, Prefetch prefetch) {
  constexpr int W = vector_for(READ == Members::kWords ? PAIRS / 2 : PAIRS), N = PAIRS / Vec<W>::L;
  const auto angles = WeightedAngles<W, N>::make(cos_sin, u, ORDER);
  F<W> a[N], b[N];
  for (std::int64_t h = 0; h < operand.heads; ++h, x += operand.from.head, y += operand.to.head) {
    prefetch_head<2 * PAIRS* static_cast<int>(sizeof(*x))>(x, prefetch);
    load_head<D, W, N, READ>(x, a, b);
    F<W> squares = {}, more = {};  // two sums: one would wait for itself
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      if constexpr (ORDER == Order::kNormFirst) {
        squares += a[j] * a[j];
        more += b[j] * b[j];
      } else if constexpr (ORDER == Order::kRotateFirst) {
        squares += (a[j] * a[j] + b[j] * b[j]) * angles.squared_scale[j];
      }
      const F<W> p = a[j] * angles.cosine1[j] - b[j] * angles.sine1[j];
      b[j] = b[j] * angles.cosine2[j] + a[j] * angles.sine2[j];
      a[j] = p;
    }
    if constexpr (ORDER != Order::kRotate) {
      const float r = inverse_rms(norm, sum_of_lanes<W>(squares + more), 2 * PAIRS);
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        a[j] *= r;
        b[j] *= r;
      }
    }
    store_head<D, W, N, WRITE>(y, a, b);
  }
}

template <class D, int PAIRS, Members READ, Members WRITE>
void norm_usual_heads(const Job& job, const Block& block, UsualFactors& factors, Prefetch prefetch) {
  using T = typename D::T;
  for (int i = 0; i < job.num_operands; ++i) {
    const auto [x, y, operand] = Heads<T>(job, block, i);
    const HeadNorm& norm = job.norms[i];
    auto* heads = norm_whole_heads<D, PAIRS, READ, WRITE, Order::kRotate>;
    if (norm.is_given) {
      heads = norm.after_rope ? norm_whole_heads<D, PAIRS, READ, WRITE, Order::kRotateFirst>
                              : norm_whole_heads<D, PAIRS, READ, WRITE, Order::kNormFirst>;
    }
    const float* u = factors.of<READ, WRITE>(job, i);
    for (int j = 0; j < block.count; ++j) {
      heads(operand, block[j], x + j * operand.from.token, y + j * operand.to.token, norm, u, prefetch);
    }
  }
}

template <class D, Members READ, Members WRITE>
void norm_usual_block(const Job& job, const Block& block, UsualFactors& factors, Prefetch prefetch) {
  with_usual_pairs(job.spec->rotation.num_pairs,
                   [&](auto pairs) { norm_usual_heads<D, pairs(), READ, WRITE>(job, block, factors, prefetch); });
}

template <class D, bool READ, bool WRITE>
void norm_heads(const Job& job, const Block& block, const HeadCopies& copies, UsualFactors& factors,
                Prefetch prefetch) {
  using T = typename D::T;
  constexpr Members read = READ ? Members::kNeighbours : Members::kHalves;
  constexpr Members write = WRITE ? Members::kNeighbours : Members::kHalves;
  if (has_usual_heads(job)) return norm_usual_block<D, read, write>(job, block, factors, prefetch);
  const auto place = [&block](const Strides& s) { return block.batch * s.batch + block.token * s.token; };
  for (int i = 0; i < job.num_operands; ++i) {
    const Operand& operand = job.operands[i];
    const HeadNorm& norm = job.norms[i];
    const T* from = static_cast<const T*>(operand.in) + place(operand.from);
    T* to = static_cast<T*>(operand.out) + place(operand.to);
    const T* x = job.backward ? static_cast<const T*>(norm.x) + place(norm.x_strides) : nullptr;
    for (std::int64_t h = 0; h < operand.heads; ++h) {
      for (int j = 0; j < block.count; ++j) {
        const T* head = from + h * operand.from.head + j * operand.from.token;
        T* result = to + h * operand.to.head + j * operand.to.token;
        if (job.backward) {
          norm_head_backward<D, READ, WRITE>(*job.spec, norm, norm.weight_grad, block[j], head,
                                             x + h * norm.x_strides.head + j * norm.x_strides.token, result, copies);
        } else {
          norm_head<D, READ, WRITE>(*job.spec, norm, block[j], head, result, copies);
        }
      }
    }
  }
}

/// Norms and rotates all heads of a block of tokens.
template <class D>
void norm_block(const Job& job, const Flags& flags, const Block& block, UsualFactors& factors, ThreadState& thread) {
  if constexpr (std::is_same_v<D, BFloat16>) {
    if (flags.split) return norm_usual_block<D, Members::kWords, Members::kWords>(job, block, factors, flags.prefetch);
  }
  const bool read_pairs = flags.read_pairs, write_pairs = flags.write_pairs;
  const HeadCopies copies(thread, job.spec->rotation.head_dim);
  if (read_pairs && write_pairs) {
    norm_heads<D, true, true>(job, block, copies, factors, flags.prefetch);
  } else if (read_pairs) {
    norm_heads<D, true, false>(job, block, copies, factors, flags.prefetch);
  } else {
    norm_heads<D, false, false>(job, block, copies, factors, flags.prefetch);
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
