// Runs a job by the kernels that nvcc compiled, on the current stream of its tensors' device.
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/append.h"
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

void launch_append_cuda(Append& append, std::int32_t device_index) {
  Job& job = append.job;
  job.in_place = false;
  for (int i = 0; i < job.num_operands; ++i) job.in_place = job.in_place || job.operands[i].is_in_place();
  const torch::stable::accelerator::DeviceGuard guard(device_index);
  const char* error = rope_launch_append_cuda(&append, current_stream(device_index));
  if (error != nullptr) throw std::runtime_error(std::string("rope_kernels on CUDA: ") + error);
}

}  // namespace rope::ops
