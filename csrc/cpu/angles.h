// Computes the cosines and sines of one token from its positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/frequency.h"
#include "core/job.h"
#include "core/spec.h"
#include "cpu/cos_sin.h"
#include "cpu/floats.h"
#include "cpu/radians.h"
#include "cpu/scratch.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

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

bool is_integer(const Positions& p) {
  return p.kind == Number::kNone || p.kind == Number::kInt32 || p.kind == Number::kInt64;
}

/// The state of a thread that goes through a range of tokens.
struct Work {
  FrequencyCache* now;
  FrequencyCache* before;
  alignas(64) std::uint32_t phase[kMaxPairs];
  alignas(64) float position[kMaxPairs];  // where phases are in fp32, these two take the place of `phase`
  alignas(64) double angle[kMaxPairs];    // in radians
  std::int64_t group = -2;
  const Frequencies* frequencies = nullptr;
  const Frequencies* from = nullptr;
  float scaling = 1.0F;
  int num_without_angle = 0;  // pairs whose position is NaN or infinite
  int without_angle[kMaxPairs];
};

Place place_of(const Job& job, std::int64_t flat, std::int64_t last_group) {
  Place at{flat / job.tokens, flat % job.tokens, 0, 0};
  at.group = at.batch;
  at.counted = at.token;
  if (job.packed.bounds != nullptr) {
    std::int64_t low = 0, high = job.packed.sequences;
    // The next token is mostly of the same sequence.
    if (last_group >= 0 && last_group < high && job.packed.bound(last_group) <= at.token &&
        at.token < job.packed.bound(last_group + 1)) {
      low = high = last_group;
    }
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

/// Looks up frequencies and scaling if the token's sequence is another one.
void enter_group(const Job& job, const Place& at, Work& work) {
  if (at.group == work.group) return;
  work.group = at.group;
  const Spec& spec = *job.spec;
  const std::int64_t length = job.seq_len.count ? job.seq_len[at.group] : 0;
  work.frequencies = &work.now->at(spec, length);
  if (job.from_seq_len.count) work.from = &work.before->at(spec, job.from_seq_len[at.group]);
  const double scaling = is_long(spec.params, length) ? spec.params.long_scaling : spec.params.scaling;
  work.scaling = job.unscaled ? 1.0F : static_cast<float>(scaling);
}

/// The upper halves of products of 32-bit lanes. (From plain code compilers make 64-bit products, which take several
/// times as long.)
template <int W>
ROPE_INLINE U<W> multiply_high(U<W> a, U<W> b) {
#if defined(__AVX512F__)
  if constexpr (W == 64) {
    const auto x = (__m512i)a, y = (__m512i)b;
    const __m512i even = _mm512_mul_epu32(x, y),
                  odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(y, 32));
    return (U<W>)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  }
#endif
#if defined(__AVX2__)
  if constexpr (W == 32) {
    const auto x = (__m256i)a, y = (__m256i)b;
    const __m256i even = _mm256_mul_epu32(x, y),
                  odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(y, 32));
    return (U<W>)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  }
#endif
}

/// Phases [i, n) of an integer position: a 64-bit product modulo one turn, from 32-bit halves.
template <int W>
ROPE_INLINE void multiply(std::uint64_t position, const std::uint32_t* low, const std::uint32_t* high, int i, int n,
                          std::uint32_t* phase) {
  const auto p0 = static_cast<std::uint32_t>(position), p1 = static_cast<std::uint32_t>(position >> 32);
  if constexpr (W > 16) {
    for (; i + Vec<W>::L <= n; i += Vec<W>::L) {
      const auto of_low = load_as<U<W>>(low + i);
      U<W> product = multiply_high<W>(of_low, U<W>{} + p0) + load_as<U<W>>(high + i) * p0;
      if (p1 != 0) product += of_low * p1;
      store_as<false>(phase + i, product);
    }
    multiply<W / 2>(position, low, high, i, n, phase);
  } else {
    for (; i < n; ++i) {
      phase[i] = static_cast<std::uint32_t>(std::uint64_t{p0} * low[i] >> 32) + p0 * high[i] + p1 * low[i];
    }
  }
}

/// The position that is counted where none are given.
std::int64_t counted_position(const Job& job, const Place& at) {
  return at.counted + (job.offset.count ? job.offset[at.group] : 0);
}

/// The index of a token's position on an axis.
std::int64_t index_of(const Positions& p, const Place& at, std::int64_t axis) {
  return axis * p.axis + at.batch * p.batch + at.token * p.token;
}

/// A token's position on an axis as transformers rounds it.
float float32_position(const Job& job, const Place& at, std::int64_t axis) {
  const Positions& p = job.positions;
  if (p.kind == Number::kNone) return static_cast<float>(counted_position(job, at));
  const std::int64_t where = index_of(p, at, axis);
  return is_integer(p) ? static_cast<float>(integer_position(p, where)) : static_cast<float>(any_position(p, where));
}

/// Angles of one token: products in fp32, as transformers rounds them, or differences of two.
void float32_angles(const Job& job, const Place& at, Work& work) {
  const Rotation& r = job.spec->rotation;
  const double* now = work.frequencies->radians.data();
  const double* before = work.from != nullptr ? work.from->radians.data() : nullptr;
  float* position = work.position;
  std::fill_n(position, r.num_pairs, float32_position(job, at, 0));
  for (std::size_t i = 0; i < r.axis.size(); ++i) position[i] = float32_position(job, at, r.axis[i]);
  for (int i = 0; i < r.num_pairs; ++i) {
    work.angle[i] = static_cast<double>(position[i] * static_cast<float>(now[i]));
  }
  for (int i = 0; before != nullptr && i < r.num_pairs; ++i) {
    work.angle[i] -= static_cast<double>(position[i] * static_cast<float>(before[i]));
  }
}

/// Phases of one token in natural order, one pair at a time: for several axes, floating-point positions, and
/// differences between two lengths.
void general_phases(const Job& job, const Place& at, Work& work) {
  const Rotation& r = job.spec->rotation;
  const Positions& p = job.positions;
  const bool integer = is_integer(p);
  const std::int64_t start = counted_position(job, at);
  for (int i = 0; i < r.num_pairs; ++i) {
    const auto pair = static_cast<std::size_t>(i);
    const std::int64_t where = index_of(p, at, r.axis.empty() ? 0 : r.axis[pair]);
    const std::int64_t whole = p.kind == Number::kNone ? start : (integer ? integer_position(p, where) : 0);
    double real = integer ? static_cast<double>(whole) : any_position(p, where);
    if (!std::isfinite(real)) {
      work.without_angle[work.num_without_angle++] = i;
      real = 0.0;
    }
    const auto phase = [&](const Frequencies& f) {
      constexpr double kTurn = 0.15915494309189535;
      if (!integer) return phase_of_turns(real * (f.radians[pair] * kTurn));
      return phase_of(whole, static_cast<std::uint64_t>(f.high[pair]) << 32 | f.low[pair]);
    };
    work.phase[i] = phase(*work.frequencies) - (work.from != nullptr ? phase(*work.from) : 0U);
  }
}

/// Whether every phase of a token is its one integer position times a frequency: see plain_phases.
bool is_plain(const Job& job) {
  const Rotation& r = job.spec->rotation;
  return is_integer(job.positions) && r.axis.empty() && r.phase == Phase::kExact && job.from_seq_len.count == 0;
}

void plain_phases(const Job& job, const Place& at, Work& work, bool split) {
  const Positions& p = job.positions;
  const std::int64_t position =
      p.kind == Number::kNone ? counted_position(job, at) : integer_position(p, index_of(p, at, 0));
  const Frequencies& f = *work.frequencies;
  multiply<ROPE_VECTOR>(static_cast<std::uint64_t>(position), split ? f.split_low.data() : f.low.data(),
                        split ? f.split_high.data() : f.high.data(), 0, job.spec->rotation.num_pairs, work.phase);
}

void cos_sin_of(const Job& job, Work& work, const CosSin& cos_sin) {
  const Rotation& r = job.spec->rotation;
  const float c_scale = work.scaling, s_scale = job.inverse ? -work.scaling : work.scaling;
  const bool float32 = r.phase == Phase::kFloat32;
  if (float32) sin_cos_of_radians(work.angle, r.num_pairs, cos_sin.sine(), cos_sin.cosine);
  for (int i = 0; float32 && i < r.num_pairs; ++i) {
    cos_sin.sine()[i] *= s_scale;
    cos_sin.cosine[i] *= c_scale;
  }
  for (int i = 0; !float32 && i < r.num_pairs; ++i) {
    float s, c;
    sin_cos(work.phase[i], s, c);
    cos_sin.sine()[i] = s * s_scale;
    cos_sin.cosine[i] = c * c_scale;
  }
  for (int i = 0; i < work.num_without_angle; ++i) {
    const int pair = work.without_angle[i];
    cos_sin.sine()[pair] = cos_sin.cosine[pair] = std::numeric_limits<float>::quiet_NaN();
  }
  work.num_without_angle = 0;
  std::fill_n(cos_sin.sine() + r.num_pairs, kPad, 0.0F);
  std::fill_n(cos_sin.cosine + r.num_pairs, kPad, 0.0F);
  if (r.table_dtype == Number::kNone) return;
  const bool bf16 = r.table_dtype == Number::kBFloat16;
  for (int i = 0; i < r.num_pairs; ++i) {
    for (float* value : {&cos_sin.sine()[i], &cos_sin.cosine[i]}) {
      *value = bf16 ? BFloat16::widen(BFloat16::narrow(*value)) : Float16::widen(Float16::narrow(*value));
    }
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
