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

}  // namespace rope::ops
