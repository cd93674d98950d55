// Runs a job by the kernels that nvcc compiled, on the current stream of its tensors' device.
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "core/job.h"
#include "cuda/launcher.h"
#include "ops/launch.h"
#include "ops/stream.h"

namespace rope::ops {

void launch_cuda(Job& job, std::int32_t device_index) {
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  const char* error = rope_launch_cuda(&job, current_stream(device_index));
  if (error != nullptr) throw std::runtime_error(std::string("rope_kernels on CUDA: ") + error);
}

}  // namespace rope::ops
