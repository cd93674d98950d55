// How a checked job runs: on torch's threads, or on the current CUDA stream.
#pragma once

#include "core/job.h"
#include "ops/tensor_job.h"

namespace rope::ops {

/// Whether this thread asked for another backend: then nothing runs here.
bool is_forwarding();

/// Runs a job on CPU memory. `given`: the outputs are buffers of the caller's, whose pages exist.
void launch_cpu(Job& job, bool given);

/// Runs a job on the memory of a CUDA device, on its current stream. Throws std::runtime_error with CUDA's own words.
void launch_cuda(Job& job, std::int32_t device_index);

/// One after the other where just one of q and k is rotated in place; `launch` is one of the above.
template <class LAUNCH>
void launch_each(Job& job, const LAUNCH& launch) {
  const auto is_in_place = [](const Operand& operand) { return operand.in == operand.out; };
  if (job.num_operands == 2 && is_in_place(job.operands[0]) != is_in_place(job.operands[1])) {
    Job second = job;
    second.operands[0] = job.operands[1];
    second.num_operands = job.num_operands = 1;
    launch_each(second, launch);
  }
  job.in_place = is_in_place(job.operands[0]);
  launch(job);
}

}  // namespace rope::ops
