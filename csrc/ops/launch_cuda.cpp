// Runs a job on the current stream of its tensors' device.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>

#include "core/job.h"
#include "cuda/launcher.h"
#include "ops/launch.h"

namespace rope::ops {
namespace {

/// torch's current stream. The function is looked up when it is needed: only a torch with CUDA has it, and has loaded
/// its library by then.
void* current_stream(std::int32_t device_index) {
  using Get = AOTITorchError (*)(std::int32_t, void**);
  static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  static const auto get =
      reinterpret_cast<Get>(library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  if (get == nullptr) throw std::runtime_error("rope_kernels on CUDA: this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device_index, &stream));
  return stream;
}

}  // namespace

void launch_cuda(Job& job, std::int32_t device_index) {
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  const char* error = rope_launch_cuda(&job, current_stream(device_index));
  if (error != nullptr) throw std::runtime_error(std::string("rope_kernels on CUDA: ") + error);
}

}  // namespace rope::ops
