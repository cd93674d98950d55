// The operators that norm heads and rotate them, and the gradients of both. Python's native backend calls them.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/job.h"
#include "core/spec.h"
#include "ops/choice.h"
#include "ops/launch.h"
#include "ops/norm_job.h"
#include "ops/tensor_job.h"

namespace rope::ops {
namespace {

/// A job from gradients or inputs of q and k to what is written; its norms are still to be given.
Job unnormed_job(const View& q, const MaybeView& k, const View& q_out, const MaybeView& k_out, const IndexTensors& at,
                 const std::string& text) {
  STD_TORCH_CHECK(k.has_value() == k_out.has_value(), "out: k_out must be given exactly where k is");
  return job_of(q, pointer_to(k), q_out, pointer_to(k_out), at, text);
}

void rotate_norm_into(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                      const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                      const std::string& text, const MaybeTensor& q_weight, const MaybeTensor& k_weight,
                      const Tensor& q_out, const MaybeTensor& k_out) {
  const View qv("q", q), qo("q_out", q_out, &qv);
  const IndexTensors at = index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens);
  Job job = unnormed_job(qv, maybe_view("k", k, qv), qo, maybe_view("k_out", k_out, qv), at, text);
  const MaybeView qw = maybe_view("q_weight", q_weight, qv), kw = maybe_view("k_weight", k_weight, qv);
  const NormWeights weights(job, operation_of(text), qv, qw, kw);
  STD_TORCH_CHECK(run(job, qv, Backend::kNative, true), "q: there are no native kernels for its device");
}

/// What the gradients of an operand need besides those of its result.
void give_inputs(HeadNorm& norm, const Operand& grad, const Layout& l, const char* name, const View& x, const View& q,
                 const MaybeView& partials) {
  // The check of operands: x is as the gradient.
  const Operand same = operand_of(name, x, x, q, l);
  STD_TORCH_CHECK(same.heads == grad.heads, name, ": heads");
  norm.x = same.in;
  norm.x_strides = same.from;
  if (!partials) return;
  const bool fits = partials->dim == 2 && partials->size[1] == q.size[q.dim - 1] && partials->stride[1] == 1 &&
                    partials->stride[0] == partials->size[1] && partials->dtype == aoti_torch_dtype_float32();
  STD_TORCH_CHECK(fits, name, ": partial sums must be float32 (parts, head_dim)");
  norm.weight_grad = static_cast<float*>(partials->data);
}

/// Runs a backward job on the device of the gradients.
void run_backward(Job& job, const View& grad, std::int64_t parts) {
  if (grad.device_type == aoti_torch_device_type_cpu()) return launch_cpu_in_parts(job, parts);
#if defined(ROPE_WITH_CUDA)
  if (is_on_cuda(grad)) {
    job.parts = parts;
    return launch_cuda(job, grad.device_index);
  }
#endif
  STD_TORCH_CHECK(false, "grad_q: there are no native kernels for its device");
}

void rotate_norm_backward(const Tensor& grad_q, const MaybeTensor& grad_k, const Tensor& q, const MaybeTensor& k,
                          const MaybeTensor& positions, const MaybeTensor& offset, const MaybeTensor& seq_len,
                          const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens, const std::string& text,
                          const MaybeTensor& q_weight, const MaybeTensor& k_weight, std::int64_t parts,
                          const Tensor& q_out, const MaybeTensor& k_out, const MaybeTensor& q_partials,
                          const MaybeTensor& k_partials) {
  const View gv("grad_q", grad_q), qv("q", q, &gv), qo("q_out", q_out, &gv);
  const IndexTensors at = index_tensors(gv, positions, offset, seq_len, from_seq_len, cu_seqlens);
  const MaybeView gk = maybe_view("grad_k", grad_k, gv), kv = maybe_view("k", k, gv);
  STD_TORCH_CHECK(gk.has_value() == kv.has_value() && parts > 0, "grad_k: must be given exactly where k is");
  Job job = unnormed_job(gv, gk, qo, maybe_view("k_out", k_out, gv), at, text);
  const MaybeView qw = maybe_view("q_weight", q_weight, gv), kw = maybe_view("k_weight", k_weight, gv);
  const NormWeights weights(job, operation_of(text), gv, qw, kw);
  job.backward = true;
  const MaybeView partials[] = {maybe_view("q_partials", q_partials, gv), maybe_view("k_partials", k_partials, gv)};
  for (const MaybeView& p : partials) STD_TORCH_CHECK(!p || p->size[0] == parts, "partials: parts");
  const Layout& l = operation_of(text).layout;
  give_inputs(job.norms[0], job.operands[0], l, "q", qv, gv, partials[0]);
  if (kv) give_inputs(job.norms[1], job.operands[1], l, "k", *kv, gv, partials[1]);
  run_backward(job, gv, parts);
}

}  // namespace
}  // namespace rope::ops

namespace {

template <class LIBRARY>
void implement(LIBRARY& library) {
  library.impl("native_rotate_norm_out", TORCH_BOX(&rope::ops::rotate_norm_into));
  library.impl("native_rotate_norm_backward", TORCH_BOX(&rope::ops::rotate_norm_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CUDA, m) { implement(m); }
