// The operator that rotates by the rows of a table, on CPUs and on CUDA. Python's native backend calls it.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

#include "core/job.h"
#include "ops/choice.h"
#include "ops/launch.h"
#include "ops/table_job.h"
#include "ops/tensor_job.h"

namespace rope::ops {
namespace {

void rotate_cached_into(const Tensor& q, const MaybeTensor& k, const Tensor& positions, const Tensor& cos,
                        const Tensor& sin, const std::string& pairing, const std::string& layout, const Tensor& q_out,
                        const MaybeTensor& k_out) {
  STD_TORCH_CHECK(k.has_value() == k_out.has_value(), "out: k_out must be given exactly where k is");
  const View qv("q", q), qo("q_out", q_out, &qv), cv("cos", cos, &qv), sv("sin", sin, &qv);
  const View pv("positions", positions, &qv);
  const MaybeView kv = maybe_view("k", k, qv), ko = maybe_view("k_out", k_out, qv);
  STD_TORCH_CHECK(cv.dim == 2, "cos, sin: shape");
  Job job = job_of_rows(qv, pointer_to(kv), qo, pointer_to(ko), pv, cv, sv, cv.size[1], layout_of(layout), pairing);
  STD_TORCH_CHECK(is_on_cuda(qv) || has_rows(job), "positions: one is past the table");
  STD_TORCH_CHECK(run(job, qv, Backend::kNative, true), "q: there are no native kernels for its device");
}

}  // namespace
}  // namespace rope::ops

STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CPU, m) {
  m.impl("native_rotate_cached_out", TORCH_BOX(&rope::ops::rotate_cached_into));
}

#if defined(ROPE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CUDA, m) {
  m.impl("native_rotate_cached_out", TORCH_BOX(&rope::ops::rotate_cached_into));
}
#endif
