// Runs a checked job: on torch's threads, or on the current CUDA stream.
#pragma once

#include <cstdint>

#include "core/append.h"
#include "core/job.h"
#include "ops/choice.h"
#include "ops/tensor_job.h"

namespace rope::ops {

/// Runs a job on CPU memory. `given`: the outputs are the caller's buffers, whose pages are mapped already.
void launch_cpu(Job& job, bool given);

/// Runs a backward job on CPU memory in `parts` of equal size, one after the other within a thread, whatever the number
/// of threads: each part has its own sums of the weights' gradients.
void launch_cpu_in_parts(const Job& job, std::int64_t parts);

/// Rotates and stores on CPU memory.
void launch_append_cpu(Append& append);

/// Runs a job on the memory of a CUDA device, on its current stream, by the kernels that nvcc compiled. Throws
/// std::runtime_error with CUDA's message.
void launch_cuda(Job& job, std::int32_t device_index);

/// Rotates and stores on the memory of a CUDA device, as launch_cuda.
void launch_append_cuda(Append& append, std::int32_t device_index);

/// Whether a tensor is on a CUDA device.
inline bool is_on_cuda(const View& v) { return v.device_type == aoti_torch_device_type_cuda(); }

/// The backend that runs a call of this context on q's device.
Backend backend_for(const View& q);

/// Runs a job on q's device. Returns false, with nothing done, if that is for Python to do: by another backend, or by a
/// kernel that Triton has yet to compile.
bool run(Job& job, const View& q, Backend backend, bool given);

/// Calls `launch`, one of the above; for q and k one after the other if only one of them is rotated in place.
template <class LAUNCH>
void launch_each(Job& job, const LAUNCH& launch) {
  if (job.num_operands == 2 && job.operands[0].is_in_place() != job.operands[1].is_in_place()) {
    Job second = job;
    second.operands[0] = job.operands[1];
    second.norms[0] = job.norms[1];
    second.norms[1] = job.norms[1] = {};
    second.num_operands = job.num_operands = 1;
    launch_each(second, launch);
  }
  job.in_place = job.operands[0].is_in_place();
  launch(job);
}

}  // namespace rope::ops
