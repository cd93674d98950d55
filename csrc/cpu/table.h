// Reads a caller's cosines and sines into a block of tokens.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/angles.h"
#include "cpu/cos_sin.h"
#include "cpu/floats.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

/// Table entries; each NaN becomes one whose lower 16 bits are zeros: see round_bf16.
template <int W>
ROPE_INLINE F<W> table_entries(F<W> values) {
  const U<W> is_number = (U<W>)(values == values);
  return (F<W>)(((U<W>)values & is_number) | (~is_number & 0x7fc00000U));
}
ROPE_INLINE float table_entry(float value) { return value == value ? value : std::numeric_limits<float>::quiet_NaN(); }

struct Float64 {
  using T = double;
  ROPE_INLINE float widen(T x) { return static_cast<float>(x); }
};

/// Reads the entries of the first and the second members of n pairs: neighbours, or `apart` entries from each other.
template <class E, bool NEIGHBOURS>
void read_members(const typename E::T* x, std::int64_t stride, int apart, int n, float* first, float* second) {
  constexpr int W = ROPE_VECTOR, next = NEIGHBOURS ? 2 : 1;
  int i = 0;
  if constexpr (!std::is_same_v<E, Float64>) {
    for (; stride == 1 && i + Vec<W>::L <= n; i += Vec<W>::L) {
      F<W> a, b;
      load_members<E, W, NEIGHBOURS>(x, x + apart, i, a, b);
      store_as<false>(first + i, table_entries<W>(a));
      store_as<false>(second + i, table_entries<W>(b));
    }
  }
  for (; i < n; ++i) {
    first[i] = table_entry(E::widen(x[next * i * stride]));
    second[i] = table_entry(E::widen(x[(next * i + apart) * stride]));
  }
}

template <class E>
void read_token(const Rotation& r, bool by_pair, const void* data, std::int64_t at, std::int64_t stride, float* first,
                float* second) {
  const auto* x = static_cast<const typename E::T*>(data) + at;
  if (by_pair) return read_members<E, false>(x, stride, 0, r.num_pairs, first, second);
  if (r.pairing == Pairing::kInterleaved) return read_members<E, true>(x, stride, 1, r.num_pairs, first, second);
  read_members<E, false>(x, stride, r.distance, r.num_pairs, first, second);
}

/// Reads a token's cosines, or its sines, from the caller's table.
void read_token(const Job& job, const Place& at, const void* data, const Strides& strides, float* first,
                float* second) {
  const Rotation& r = job.spec->rotation;
  const bool by_pair = job.table.rows > 0;
  const std::int64_t row = by_pair ? integer_position(job.positions, index_of(job.positions, at, 0)) : at.token;
  const std::int64_t start = at.batch * strides.batch + row * strides.token;
  switch (job.table.kind) {
    case Number::kBFloat16:
      return read_token<BFloat16>(r, by_pair, data, start, strides.head, first, second);
    case Number::kFloat16:
      return read_token<Float16>(r, by_pair, data, start, strides.head, first, second);
    case Number::kFloat64:
      return read_token<Float64>(r, by_pair, data, start, strides.head, first, second);
    default:
      return read_token<Float32>(r, by_pair, data, start, strides.head, first, second);
  }
}

/// Fills `cos_sin` from the caller's table, whose entries belong to the channels that a rotation writes: so the
/// inverse, its adjoint, swaps and negates the sines of the two members. Returns whether both members of each pair have
/// the same cosine and sine.
bool cos_sin_of_table(const Job& job, const Place& at, const CosSin& cos_sin) {
  const Table& t = job.table;
  const int n = job.spec->rotation.num_pairs;
  read_token(job, at, t.cosine, t.cosine_strides, cos_sin.cosine, cos_sin.second_cosine());
  read_token(job, at, t.sine, t.sine_strides, cos_sin.sine(), cos_sin.second_sine());
  for (int i = 0; job.inverse && i < n; ++i) {
    const float s = cos_sin.sine()[i];
    cos_sin.sine()[i] = -cos_sin.second_sine()[i];
    cos_sin.second_sine()[i] = -s;
  }
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
  return std::memcmp(cos_sin.cosine, cos_sin.second_cosine(), bytes) == 0 &&
         std::memcmp(cos_sin.sine(), cos_sin.second_sine(), bytes) == 0;
}

/// Puts `cos_sin` in split order, if both members of each pair have the same cosine and sine.
void split_cos_sin(const CosSin& cos_sin, int num_pairs) {
  const int words = num_pairs / 2;
  read_members<Float32, true>(cos_sin.second_cosine(), 1, 1, words, cos_sin.cosine, cos_sin.cosine + words);
  read_members<Float32, true>(cos_sin.second_sine(), 1, 1, words, cos_sin.sine(), cos_sin.sine() + words);
}

}  // namespace
}  // namespace rope::ROPE_ISA
