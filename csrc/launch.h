// How a checked job runs: on torch's threads, or on the current CUDA stream.
#pragma once

#include "tensor_job.h"

namespace rope::bindings {

/// Whether this thread asked for another backend: then nothing runs here.
bool is_forwarding();

/// Runs a job on CPU memory. `given`: the outputs are buffers of the caller's, whose pages exist.
void launch_cpu(Job& job, bool given);

/// Runs a job on the memory of a CUDA device, on its current stream. Throws std::runtime_error with CUDA's own words.
void launch_cuda(Job& job, std::int32_t device_index);

/// One after the other where just one of q and k is rotated in place; `launch` is one of the above.
template <class LAUNCH>
void launch_each(Job& job, const LAUNCH& launch) {
  const auto is_in_place = [](const Rows& rows) { return rows.in == rows.out; };
  if (job.num_rows == 2 && is_in_place(job.rows[0]) != is_in_place(job.rows[1])) {
    Job second = job;
    second.rows[0] = job.rows[1];
    second.num_rows = job.num_rows = 1;
    launch_each(second, launch);
  }
  job.in_place = is_in_place(job.rows[0]);
  launch(job);
}

}  // namespace rope::bindings
