// torch's current CUDA stream.
#pragma once

#include <cstdint>

namespace rope::ops {

/// torch's current stream of a CUDA device (a cudaStream_t). Throws std::runtime_error if this torch has no CUDA.
void* current_stream(std::int32_t device_index);

}  // namespace rope::ops
