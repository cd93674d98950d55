// From torch tensors to a Job that rotates by the caller's table.
#pragma once

#include "core/job.h"
#include "core/spec.h"
#include "ops/tensor_job.h"

namespace rope::ops {

/// The spec of a call by a table: only its geometry is used.
inline const Spec& table_spec(std::int64_t head_dim, std::int64_t rotary_dim, std::string_view pairing) {
  const std::string pairs = std::to_string(rotary_dim / 2);
  return operation_of("theta=1;freq_dim=2;num_frequencies=" + pairs + ";head_dim=" + std::to_string(head_dim) +
                      ";num_pairs=" + pairs + ";distance=" + pairs + ";pairing=" + std::string(pairing))
      .spec;
}

/// (batch or 1, tokens, rotary_dim), or (tokens, rotary_dim) for all of the batch.
inline Table table_of(const View& cos, const View& sin, const Job& job) {
  Table table{cos.data, sin.data, number_of(cos.dtype), {}, {}};
  STD_TORCH_CHECK(cos.dtype == sin.dtype && table.kind != Number::kInt32 && table.kind != Number::kInt64,
                  "cos, sin: must have one floating dtype");
  for (const View* v : {&cos, &sin}) {
    const bool has_batch = v->dim == 3;
    STD_TORCH_CHECK((has_batch || v->dim == 2) && (!has_batch || v->size[0] == 1 || v->size[0] == job.batch) &&
                        v->size[v->dim - 2] == job.tokens && v->size[v->dim - 1] == cos.size[cos.dim - 1],
                    "cos, sin: shape");
    const std::int64_t batch = has_batch && v->size[0] > 1 ? v->stride[0] : 0;
    (v == &cos ? table.cosine_strides : table.sine_strides) = {batch, v->stride[v->dim - 2], v->stride[v->dim - 1]};
  }
  return table;
}

/// The job of a call by a table, with the checks of job_of.
inline Job job_of_table(const View& q, const View* k, const View& q_out, const View* k_out, const View& cos,
                        const View& sin, const Layout& l, std::string_view pairing) {
  Job job = job_of_operands(q, k, q_out, k_out, l);
  STD_TORCH_CHECK(cos.dim >= 2, "cos, sin: shape");
  const std::int64_t head_dim = q.size[q.dim - 1], rotary_dim = cos.size[cos.dim - 1];
  STD_TORCH_CHECK(rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim, "rotary_dim: does not fit q");
  job.spec = &table_spec(head_dim, rotary_dim, pairing);
  job.table = table_of(cos, sin, job);
  return job;
}

/// The job of a call that takes the rows of its positions from cos and sin, (rows, num_pairs or more).
inline Job job_of_rows(const View& q, const View* k, const View& q_out, const View* k_out, const View& positions,
                       const View& cos, const View& sin, std::int64_t num_pairs, const Layout& l,
                       std::string_view pairing) {
  Job job = job_of_operands(q, k, q_out, k_out, l);
  const std::int64_t head_dim = q.size[q.dim - 1];
  STD_TORCH_CHECK(num_pairs > 0 && 2 * num_pairs <= head_dim, "rotary_dim: does not fit q");
  STD_TORCH_CHECK(cos.dim == 2 && sin.dim == 2 && cos.dtype == sin.dtype && cos.size[0] == sin.size[0] &&
                      cos.size[0] > 0 && cos.size[1] >= num_pairs && sin.size[1] >= num_pairs,
                  "cos, sin: shape");
  job.spec = &table_spec(head_dim, 2 * num_pairs, pairing);
  job.positions = positions_of(positions, job, l);
  const bool integers = job.positions.kind == Number::kInt32 || job.positions.kind == Number::kInt64;
  Table& table = job.table;
  table = {
      cos.data, sin.data, number_of(cos.dtype), {0, cos.stride[0], cos.stride[1]}, {0, sin.stride[0], sin.stride[1]}};
  table.rows = cos.size[0];
  STD_TORCH_CHECK(integers && table.kind != Number::kInt32 && table.kind != Number::kInt64,
                  "positions: must be integers, cos and sin floating");
  return job;
}

/// Whether the table has a row for each position. Reads the memory of positions.
inline bool has_rows(const Job& job) {
  const Positions& p = job.positions;
  for (std::int64_t b = 0; b < (p.batch != 0 ? job.batch : 1); ++b) {
    for (std::int64_t t = 0; t < job.tokens; ++t) {
      const std::int64_t i = b * p.batch + t * p.token;
      const std::int64_t row = p.kind == Number::kInt64 ? static_cast<const std::int64_t*>(p.data)[i]
                                                        : static_cast<const std::int32_t*>(p.data)[i];
      if (row < 0 || row >= job.table.rows) return false;
    }
  }
  return true;
}

}  // namespace rope::ops
