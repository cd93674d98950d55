// A caller's table in place of angles: the parameters of the kernels that read one, and how a thread reads its pairs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/job.h"
#include "core/spec.h"
#include "cuda/angles.cuh"
#include "cuda/params.cuh"
#include "cuda/plan.h"

namespace rope::cuda {

/// The cosines, or the sines, of a caller's table. Strides in bytes.
struct TableSide {
  const char* data;
  std::int64_t batch, token, channel;
};

/// Where the entries of pairs are in a row that has one for each channel.
struct PairEntries {
  std::int64_t second;  // entries from that of a pair's first member to that of its second
  std::int32_t step;    // entries from a pair to the next
  Number kind;
  bool wide;  // a thread's entries lie side by side, aligned to what it loads at once
};

struct TableSettings {
  TableSide cosine, sine;
  PairEntries entries;
  std::int64_t rows;  // one for each position, or (0) one for each token
};

struct TableParams {
  Settings at;
  TableSettings table;
};

/// Loads N entries that lie side by side, in as few loads as their alignment allows.
template <class Entry, int N>
__device__ inline void load_side_by_side(const char* data, Entry* entries) {
  using Chunk = std::conditional_t<(N * sizeof(Entry) % sizeof(uint4) == 0), uint4, uint2>;
  constexpr int kChunks = static_cast<int>(N * sizeof(Entry) / sizeof(Chunk));
  Chunk chunks[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i) chunks[i] = reinterpret_cast<const Chunk*>(data)[i];
  memcpy(entries, chunks, sizeof chunks);
}

__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widened(__half x) { return __half2float(x); }
__device__ inline float widened(float x) { return x; }
__device__ inline float widened(double x) { return static_cast<float>(x); }

/// The entries of a thread's N pairs: of their first members and of their second ones. `data`: the table's row.
///
/// SPLIT: the members of a pair have neighbouring entries, and the second half of the pairs lies `jump` pairs further
/// on.
template <class Entry, int N, bool SPLIT>
__device__ inline void read_entries(const Settings& at, const PairEntries& table, const char* data,
                                    std::int64_t channel, int pair, float* first, float* second) {
  if constexpr (N > 1) {
    if (table.wide) {
      Entry entries[2 * N];
      const std::int64_t apart = SPLIT ? 2 * (N / 2 + at.jump) : table.second;
      const char* begin = data + std::int64_t{pair} * table.step * static_cast<int>(sizeof(Entry));
      load_side_by_side<Entry, N>(begin, entries);
      load_side_by_side<Entry, N>(begin + apart * static_cast<int>(sizeof(Entry)), entries + N);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        first[i] = widened(entries[SPLIT ? 2 * i : i]);
        second[i] = widened(entries[SPLIT ? 2 * i + 1 : N + i]);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const std::int64_t entry = std::int64_t{pair_of<N, SPLIT>(at, pair, i)} * table.step;
    first[i] = widened(*reinterpret_cast<const Entry*>(data + entry * channel));
    second[i] = widened(*reinterpret_cast<const Entry*>(data + (entry + table.second) * channel));
  }
}

/// Puts the token's row of the table into `place.counted`. Without such a row the token is not rotated.
__device__ inline void enter_row(const TableParams& p, Place& place) {
  if (p.table.rows == 0) return;
  const Positions& positions = p.at.positions;
  place.counted = integer_at(positions, place.batch * positions.batch + place.token * positions.token);
  place.rotated = place.rotated && place.counted >= 0 && place.counted < p.table.rows;
}

template <int N, bool SPLIT>
__device__ inline void read_side(const TableParams& p, const TableSide& side, const Place& place, int pair,
                                 float* first, float* second) {
  const Settings& at = p.at;
  const char* row = side.data + place.batch * side.batch + place.counted * side.token;
  const PairEntries& entries = p.table.entries;
  switch (entries.kind) {
    case Number::kBFloat16:
      return read_entries<__nv_bfloat16, N, SPLIT>(at, entries, row, side.channel, pair, first, second);
    case Number::kFloat16:
      return read_entries<__half, N, SPLIT>(at, entries, row, side.channel, pair, first, second);
    case Number::kFloat64:
      return read_entries<double, N, SPLIT>(at, entries, row, side.channel, pair, first, second);
    default:
      return read_entries<float, N, SPLIT>(at, entries, row, side.channel, pair, first, second);
  }
}

/// The cosines and sines of a thread's pairs at a token. The entries belong to the channels that a rotation writes: so
/// the inverse, its adjoint, swaps and negates the sines of the two members.
template <int N, bool SPLIT, bool GENERAL>
__device__ inline PairCosSin<N> cos_sin_of(const TableParams& p, const Place& place, int pair) {
  PairCosSin<N> cos_sin;
  read_side<N, SPLIT>(p, p.table.cosine, place, pair, cos_sin.cosine, cos_sin.second_cosine);
  read_side<N, SPLIT>(p, p.table.sine, place, pair, cos_sin.sine, cos_sin.second_sine);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float s = cos_sin.sine[i];
    cos_sin.sine[i] = p.at.inverse ? -cos_sin.second_sine[i] : s;
    cos_sin.second_sine[i] = p.at.inverse ? -s : cos_sin.second_sine[i];
  }
  return cos_sin;
}

namespace {

std::int64_t bytes_of(Number kind) {
  if (kind == Number::kFloat64) return 8;
  return kind == Number::kFloat32 ? 4 : 2;
}

TableSide table_side_of(const void* data, const Strides& s, std::int64_t item) {
  return {static_cast<const char*>(data), s.batch * item, s.token * item, s.head * item};
}

void fill(const Job& job, const Shape& shape, TableParams& params) {
  params = {};
  fill_operands(job, shape, params.at);
  fill_angles(job, params.at);
  fill_tokens(job, shape, params.at);
  const Rotation& r = job.spec->rotation;
  const std::int64_t item = bytes_of(job.table.kind);
  const bool neighbours = r.pairing == Pairing::kInterleaved;
  TableSide &cosine = params.table.cosine, &sine = params.table.sine;
  cosine = table_side_of(job.table.cosine, job.table.cosine_strides, item);
  sine = table_side_of(job.table.sine, job.table.sine_strides, item);
  PairEntries& table = params.table.entries;
  const bool by_pair = job.table.rows > 0;
  table.step = neighbours && !by_pair ? 2 : 1;
  table.second = by_pair ? 0 : neighbours ? 1 : r.distance;
  params.table.rows = job.table.rows;
  table.kind = job.table.kind;
  const std::int64_t aligned = std::min<std::int64_t>(16, shape.chunk / shape.item * item);
  std::int64_t places = r.num_pairs * item;
  table.wide = shape.chunk > 0 && !(neighbours && by_pair);
  for (const TableSide* side : {&cosine, &sine}) {
    places |= reinterpret_cast<std::intptr_t>(side->data) | side->batch | side->token;
    table.wide = table.wide && side->channel == item;
  }
  table.wide = table.wide && places % aligned == 0;
}

}  // namespace
}  // namespace rope::cuda
