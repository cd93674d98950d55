// Launches of the kernels that Triton has compiled, remembered by what decides them: a call that repeats one needs no
// Python. Python's launch (rope_kernels/backends/triton/launch.py) is made once, and remembered here.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/job.h"

namespace rope::ops {

/// Which tensor of a call a kernel's parameter is the address of; rope_kernels/backends/triton/compiled.py has the same
/// numbers.
enum class Address : std::uint8_t {
  kQ,
  kK,
  kQOut,
  kKOut,
  kPositions,
  kOffset,
  kSeqLen,
  kFromSeqLen,
  kBounds,
  kCosine,
  kSine,
  kCount
};

/// One launch of a compiled kernel.
struct CompiledLaunch {
  void* function = nullptr;  // CUfunction
  std::array<unsigned, 3> grid{};
  unsigned threads = 0;
  unsigned shared_bytes = 0;
  std::vector<std::uint64_t> parameters;                     // each in a cell of its own, in its first bytes
  std::vector<std::pair<std::uint16_t, Address>> addresses;  // of which cells
};

constexpr std::size_t kMaxParameters = 96;

/// Keeps the launches that do `job` on a device; at most a thousand jobs, of which the oldest are forgotten. `owned` is
/// destroyed together with them, in a later call of this function.
void remember(const Job& job, std::int32_t device_index, std::vector<CompiledLaunch> launches,
              std::shared_ptr<void> owned);

/// Runs a job by the launches that are kept for it, on the current stream of the device. Returns false, with nothing
/// launched, if there are none. Throws std::runtime_error with the driver's message.
bool launch_compiled(const Job& job, std::int32_t device_index);

/// How many jobs are kept.
std::size_t num_remembered();

}  // namespace rope::ops
