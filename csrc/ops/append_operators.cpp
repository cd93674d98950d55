// The operator that rotates and stores in a KV cache. Python's native backend calls it.
#include <torch/csrc/stable/library.h>

#include <string>

#include "core/append.h"
#include "ops/append_job.h"
#include "ops/launch.h"
#include "ops/tensor_job.h"

namespace rope::ops {
namespace {

/// On a CPU a slot past the cache is an error before anything is written; a GPU does not store such a token.
void run_append(Append& append, const View& q) {
  if (q.device_type == aoti_torch_device_type_cpu()) {
    STD_TORCH_CHECK(are_in_cache(append.slots), "slots: one is past the cache");
    return launch_append_cpu(append);
  }
#if defined(ROPE_WITH_CUDA)
  if (is_on_cuda(q)) return launch_append_cuda(append, q.device_index);
#endif
  STD_TORCH_CHECK(false, "q: there are no native kernels for its device");
}

void rotate_append(const Tensor& q, const MaybeTensor& k, const MaybeTensor& v, const MaybeTensor& positions,
                   const MaybeTensor& offset, const MaybeTensor& seq_len, const MaybeTensor& from_seq_len,
                   const MaybeTensor& cu_seqlens, const std::string& text, const MaybeTensor& q_weight,
                   const MaybeTensor& k_weight, const MaybeTensor& v_weight, const Tensor& slots,
                   const MaybeTensor& k_scale, const MaybeTensor& v_scale, const Tensor& q_out,
                   const MaybeTensor& k_out, const MaybeTensor& k_cache, const MaybeTensor& v_cache) {
  const View qv("q", q);
  const auto view = [&qv](const char* name, const MaybeTensor& t) { return maybe_view(name, t, qv); };
  AppendJob job(
      {qv, View("slots", slots, &qv), View("q_out", q_out, &qv), view("k", k), view("v", v), view("q_weight", q_weight),
       view("k_weight", k_weight), view("v_weight", v_weight), view("k_scale", k_scale), view("v_scale", v_scale),
       view("k_out", k_out), view("k_cache", k_cache), view("v_cache", v_cache)},
      index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens), text);
  run_append(job.append, qv);
}

}  // namespace
}  // namespace rope::ops

STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CPU, m) {
  m.impl("native_rotate_append", TORCH_BOX(&rope::ops::rotate_append));
}
STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CUDA, m) {
  m.impl("native_rotate_append", TORCH_BOX(&rope::ops::rotate_append));
}
