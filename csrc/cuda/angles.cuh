// Computes the cosines and sines of a thread's pairs from the positions of a token.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/float_angle.h"
#include "core/frequency.h"
#include "core/job.h"
#include "core/spec.h"
#include "cuda/params.cuh"

namespace rope::cuda {

/// The place of a token: `group` is its sequence, `counted` its index in it.
struct Place {
  std::uint32_t batch, token;
  std::int64_t group, counted;
  bool rotated;  // false past the end of all packed sequences
};

__device__ inline std::int64_t bound_of(const Packed& packed, std::int64_t i) {
  return packed.wide ? static_cast<const std::int64_t*>(packed.bounds)[i * packed.stride]
                     : static_cast<const std::int32_t*>(packed.bounds)[i * packed.stride];
}

/// The sequence of `token`: the last that begins at or before it, or `sequences` past the end of all.
__device__ inline std::int64_t sequence_of(const Packed& packed, std::int64_t token) {
  std::int64_t low = 0, high = packed.sequences;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) >> 1;
    const bool before = bound_of(packed, middle) <= token;
    low = before ? middle : low;
    high = before ? high : middle - 1;
  }
  return low;
}

__device__ inline Place place_of(const Settings& at, std::uint32_t flat) {
  Place place{0, flat, 0, flat, true};
  if (at.batched) {
    const std::uint64_t batch = __umul64hi(flat, at.batches_per_token);
    place.batch = at.tokens_per_batch == 1 ? flat : static_cast<std::uint32_t>(batch);
    place.token = flat - place.batch * at.tokens_per_batch;
    place.group = place.batch;
    place.counted = place.token;
  }
  if (at.packed.bounds != nullptr) {
    place.group = sequence_of(at.packed, flat);
    place.rotated = place.group < at.packed.sequences;
    if (place.rotated) place.counted = flat - bound_of(at.packed, place.group);
  }
  return place;
}

/// Only a table has rows: see table.cuh.
template <class P>
__device__ inline void enter_row(const P& /*params*/, Place& /*place*/) {}

__device__ inline std::int64_t of_group(const Lengths& lengths, std::int64_t group) {
  return lengths.data == nullptr ? lengths.number : lengths.data[group * lengths.stride];
}

__device__ inline std::int64_t integer_at(const Positions& p, std::int64_t i) {
  return p.kind == Number::kInt32 ? static_cast<const std::int32_t*>(p.data)[i]
                                  : static_cast<const std::int64_t*>(p.data)[i];
}

__device__ inline double real_at(const Positions& p, std::int64_t i) {
  switch (p.kind) {
    case Number::kFloat16:
      return __half2float(static_cast<const __half*>(p.data)[i]);
    case Number::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(p.data)[i]);
    case Number::kFloat32:
      return static_cast<const float*>(p.data)[i];
    default:
      return static_cast<const double*>(p.data)[i];
  }
}

__device__ inline bool is_integer(const Positions& p) {
  return p.kind == Number::kNone || p.kind == Number::kInt32 || p.kind == Number::kInt64;
}

/// How the length of a sequence changes its frequencies; a length of 0 does not.
struct Effect {
  bool is_long;
  double log2_alpha;
};

template <bool GENERAL>
__device__ inline Effect effect_of(const Settings& at, const Lengths& lengths, std::int64_t group) {
  Effect effect{false, 0.0};
  const std::int64_t length = of_group(lengths, group);
  effect.is_long = at.switch_length > 0 && length > at.switch_length;
  if constexpr (GENERAL) {
    const std::int64_t beyond = length - at.growth.start;
    if (at.growth.slope > 0.0 && beyond > 0) {
      effect.log2_alpha = log2(static_cast<double>(beyond) * at.growth.slope + 1.0);
    }
  }
  return effect;
}

/// A position: `whole` if it is an integer, else `real`.
struct Position {
  std::int64_t whole;
  double real;
};

/// An angle in 2^-64 turns modulo one, and for phases in fp32 in radians, else 1.
struct Angle {
  std::uint64_t turns;
  float radians = 1.0F;
};

/// Angle of one pair in the general case: see cpu/angles.h. __dmul_rn rounds a product before whole turns are removed
/// from it; else ptxas might fuse the two.
template <class P>
__device__ inline Angle general_angle(const P& p, const Effect& effect, const Position& where, int pair) {
  constexpr double kTurn = 0.15915494309189535;  // 1 / (2 pi)
  const Settings& at = p.at;
  const auto of_phase = [](std::uint32_t phase) { return Angle{static_cast<std::uint64_t>(phase) << 32}; };
  const std::uint64_t entry = p.entries[(effect.is_long ? at.long_start : 0) + pair];
  if (at.entries == Entries::kTurns) return of_phase(phase_of(where.whole, entry));
  double radians = __longlong_as_double(static_cast<long long>(entry));
  if (effect.log2_alpha != 0.0) {
    const int index = p.places[pair] & ((1 << kIndexBits) - 1);
    radians *= exp2(effect.log2_alpha * (at.growth.power * index));
  }
  const bool whole = is_integer(at.positions);
  if (at.phase == Phase::kFloat32) {
    const float position = whole ? static_cast<float>(where.whole) : static_cast<float>(where.real);
    const float product = position * static_cast<float>(radians);
    return {turns_of(product), product};
  }
  if (whole) return of_phase(phase_of(where.whole, fixed_point_turns(radians)));
  return of_phase(phase_of_turns(__dmul_rn(where.real, radians * kTurn)));
}

/// The `i`-th of a thread's N pairs, from `pair` on. SPLIT: the second half of them lies `jump` pairs further on.
template <int N, bool SPLIT>
__device__ inline int pair_of(const Settings& at, int pair, int i) {
  return pair + i + (SPLIT && 2 * i >= N ? at.jump : 0);
}

/// The position of one pair; `counted` is that of the token where none are given.
template <class P>
__device__ inline Position position_of(const P& p, const Place& place, std::int64_t counted, int pair) {
  const Positions& positions = p.at.positions;
  if (positions.kind == Number::kNone) return {counted, 0.0};
  const std::int64_t axis = p.places[pair] >> kIndexBits;
  const std::int64_t i = axis * positions.axis + place.batch * positions.batch + place.token * positions.token;
  if (is_integer(positions)) return {integer_at(positions, i), 0.0};
  return {0, real_at(positions, i)};
}

/// Rounds `x` as a table of `dtype` would.
__device__ inline float rounded(float x, Number dtype) {
  if (dtype == Number::kBFloat16) return __bfloat162float(__float2bfloat16_rn(x));
  if (dtype == Number::kFloat16) return __half2float(__float2half_rn(x));
  return x;
}

/// Cosines and sines of N pairs.
template <int N>
struct CosSin {
  float cosine[N];
  float sine[N];
};

/// The same by a caller's table, which may have other numbers for the second members of the pairs.
template <int N>
struct PairCosSin {
  float cosine[N];
  float sine[N];
  float second_cosine[N];
  float second_sine[N];
};

/// Cosines and sines in the general case; NaN where a position is NaN or infinite.
template <bool SPLIT, class P, int N>
__device__ inline void general_cos_sin(const P& p, const Place& place, const Effect& effect, std::int64_t counted,
                                       int first, CosSin<N>& cos_sin) {
  const Settings& at = p.at;
  const Effect before = effect_of<true>(at, at.from_seq_len, place.group);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int pair = pair_of<N, SPLIT>(at, first, i);
    Position where = position_of(p, place, counted, pair);
    const bool is_known = std::isfinite(where.real);
    if (!is_known) where.real = 0.0;
    Angle angle = general_angle(p, effect, where, pair);
    if (at.from_seq_len.data != nullptr) {
      const Angle other = general_angle(p, before, where, pair);
      angle.turns -= other.turns;
      const bool both = std::isfinite(angle.radians) && std::isfinite(other.radians);
      angle.radians = both ? 1.0F : NAN;
    }
    float &s = cos_sin.sine[i], &c = cos_sin.cosine[i];
    if (at.phase == Phase::kFloat32) {
      sin_cos_of_angle(angle.turns, angle.radians, s, c);
    } else {
      sin_cos(static_cast<std::uint32_t>(angle.turns >> 32), s, c);
    }
    if (!is_known) s = c = NAN;
  }
}

/// The cosines and sines of a thread's pairs at a token. GENERAL: see Shape::general.
template <int N, bool SPLIT, bool GENERAL, class P>
__device__ inline CosSin<N> cos_sin_of(const P& p, const Place& place, int pair) {
  const Settings& at = p.at;
  const Effect effect = effect_of<GENERAL>(at, at.seq_len, place.group);
  std::int64_t position = place.counted + of_group(at.offset, place.group);
  CosSin<N> cos_sin;
  std::uint32_t phase[N];
  if constexpr (GENERAL) {
    general_cos_sin<SPLIT>(p, place, effect, position, pair, cos_sin);
  } else {
    if (at.positions.kind != Number::kNone) {
      position = integer_at(at.positions, place.batch * at.positions.batch + place.token * at.positions.token);
    }
    const int start = effect.is_long ? at.long_start : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) phase[i] = phase_of(position, p.entries[start + pair_of<N, SPLIT>(at, pair, i)]);
  }
  const float scaling = effect.is_long ? at.long_scaling : at.scaling;
  const float s_scaling = at.inverse ? -scaling : scaling;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (!GENERAL) sin_cos(phase[i], cos_sin.sine[i], cos_sin.cosine[i]);
    cos_sin.sine[i] *= s_scaling;
    cos_sin.cosine[i] *= scaling;
    if constexpr (GENERAL) {
      cos_sin.sine[i] = rounded(cos_sin.sine[i], at.table_dtype);
      cos_sin.cosine[i] = rounded(cos_sin.cosine[i], at.table_dtype);
    }
  }
  return cos_sin;
}

}  // namespace rope::cuda
