// The CUDA launcher.
#pragma once

#include "core/append.h"
#include "core/job.h"

namespace rope::cuda {
/// The most pairs of a head that the kernels take.
constexpr std::int32_t kMaxCudaPairs = 1024;
}  // namespace rope::cuda

/// Rotates all of `job` in one launch on `stream` (a cudaStream_t) of the current device.
///
/// Pointers in `job` are device pointers; `words` and `streaming` are ignored. Everything else that the kernel needs
/// travels in its arguments: nothing is allocated, copied or waited for, so that a CUDA graph can capture the call.
/// Returns nullptr, or what went wrong: a text that lives as long as the program.
extern "C" const char* rope_launch_cuda(const rope::Job* job, void* stream);

/// The same for a call that stores in a KV cache; tokens whose slot is past the cache are not stored.
extern "C" const char* rope_launch_append_cuda(const rope::Append* append, void* stream);
