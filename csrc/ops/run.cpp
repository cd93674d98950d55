// Runs a checked job by the backend that was chosen for it.
#include "core/job.h"
#include "cuda/launcher.h"
#include "ops/choice.h"
#include "ops/compiled.h"
#include "ops/launch.h"
#include "ops/tensor_job.h"

namespace rope::ops {

Backend backend_for(const View& q) { return is_on_cuda(q) ? backend_on_cuda(q.device_index) : backend_on_cpu(); }

bool run(Job& job, const View& q, Backend backend, bool given) {
  if (is_on_cuda(q)) {
    if (backend == Backend::kTriton) return !job.is_normed() && launch_compiled(job, q.device_index);
#if defined(ROPE_WITH_CUDA)
    const bool fits = job.spec->rotation.num_pairs <= cuda::kMaxCudaPairs;
    if (backend == Backend::kNative && fits) {
      launch_each(job, [&q](Job& each) { launch_cuda(each, q.device_index); });
      return true;
    }
#endif
    return false;
  }
  STD_TORCH_CHECK(q.device_type == aoti_torch_device_type_cpu(), "q: there are no native kernels for its device");
  if (backend != Backend::kNative) return false;
  launch_each(job, [given](Job& each) { launch_cpu(each, given); });
  return true;
}

}  // namespace rope::ops
