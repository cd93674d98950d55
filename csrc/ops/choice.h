// Which backend runs a call: what Python chose with use_backend(), or the dispatch rule.
#pragma once

#include <cstdint>

namespace rope::ops {

/// Backends as rope_kernels/backends/choice.py numbers them.
enum class Backend : int {
  kUnknown,  // nobody has chosen one, and Python's dispatch rule has not been asked yet
  kNative,
  kTriton,
  kReference,
};

/// The backend of the calling context for CPU tensors, of which kUnknown means kNative here.
Backend backend_on_cpu();

/// The same for the tensors of a CUDA device; kUnknown only where there is Python to ask.
Backend backend_on_cuda(std::int32_t device_index);

/// Whether the process has rope_kernels in Python, which runs what the library cannot.
bool has_python();

}  // namespace rope::ops
