// Plans the launch of a Job whose heads are normed, and fills its parameters: host code, of kernel.cu only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/job.h"
#include "core/spec.h"
#include "cuda/norm.cuh"
#include "cuda/norm_backward.cuh"
#include "cuda/params.cuh"
#include "cuda/plan.h"

namespace rope::cuda {
namespace {

constexpr std::int64_t kRestUnitsPerLane = 2;

/// Lanes with pairs.
std::int64_t tiles_of(const Job& job, const Shape& shape) {
  const std::int64_t pairs = job.spec->rotation.num_pairs;
  return shape.chunk > 0 ? pairs * shape.item / shape.chunk : pairs;
}

/// The lanes of a row: a power of two, so that they can sum it up; more than those with pairs where much is not
/// rotated. They depend on a head's geometry and alignment alone, and so does the order of the sum.
std::int64_t lanes_of(const Job& job, const Shape& shape) {
  std::int64_t rest = 0;
  for (const Span& span : job.spec->untouched) rest += span.last - span.first;
  const std::int64_t units = rest * shape.item / std::max(shape.chunk, shape.item);
  const std::int64_t for_rest = std::min<std::int64_t>(kWarp, units / kRestUnitsPerLane);
  const std::int64_t lanes = std::max({std::int64_t{1}, tiles_of(job, shape), for_rest});
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(lanes)));
}

/// A backward job has a row of lanes for each part.
Shape norm_shape_of(const Job& job, std::int64_t multiprocessors) {
  Shape shape = heads_shape_of(job);
  shape.lanes = lanes_of(job, shape);
  if (job.backward) {
    shape.head_slots = 1;
    shape.token_slots = std::max(std::int64_t{1}, kBlockThreads / shape.lanes);
  } else {
    fill_block(job, multiprocessors, shape);
  }
  return shape;
}

std::int64_t weight_bytes(Number kind) { return kind == Number::kFloat32 ? 4 : 2; }

RowNorm row_norm_of(const Job& job, const HeadNorm& norm, const Shape& shape) {
  const Rotation& r = job.spec->rotation;
  const bool neighbours = norm.after_rope ? shape.write_pairs : shape.read_pairs;
  const std::int64_t channel = norm.weight_stride * weight_bytes(norm.weight_kind);
  RowNorm row{};
  row.weight = static_cast<const char*>(norm.weight);
  row.channel = channel;
  row.offset = norm.weight_offset;
  row.eps = norm.eps;
  row.is_given = norm.is_given;
  row.has_weight = norm.weight != nullptr;
  row.after_rope = norm.after_rope;
  row.wide = norm.weight_stride == 1 && reinterpret_cast<std::intptr_t>(norm.weight) % 16 == 0;
  // a lane of halves has neighbouring pairs, and one of neighbours has two such chunks
  const bool side_by_side = !neighbours || (shape.read_pairs && shape.write_pairs);
  row.weights = {neighbours ? 1 : r.distance, neighbours ? 2 : 1, norm.weight_kind, row.wide && side_by_side};
  return row;
}

template <class P>
void fill(const Job& job, const Shape& shape, NormParams<P>& params) {
  fill(job, shape, params.angles);
  params.q = row_norm_of(job, job.norms[0], shape);
  params.k = row_norm_of(job, job.norms[1], shape);
  params.tiles = static_cast<std::int32_t>(tiles_of(job, shape));
  params.per_channel = 1.0F / static_cast<float>(job.spec->rotation.head_dim);
}

template <class P>
void fill(const Job& job, const Shape& shape, NormBackwardParams<P>& params) {
  fill(job, shape, params.rows);
  RowGradients* const gradients[] = {&params.q, &params.k};
  for (int i = 0; i < 2; ++i) {
    *gradients[i] = {side_of(job.norms[i].x, job.norms[i].x_strides, shape), job.norms[i].weight_grad};
  }
  params.parts = static_cast<std::uint32_t>(job.parts);
  params.head_dim = job.spec->rotation.head_dim;
}

}  // namespace
}  // namespace rope::cuda
