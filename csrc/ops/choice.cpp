// Which backend runs a call.
#include "ops/choice.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <string_view>

namespace rope::ops {
namespace {

constexpr std::size_t kMaxDevices = 64;

/// ROPE_KERNELS_BACKEND, for threads that have never chosen a backend.
Backend backend_of_environment() {
  const char* value = std::getenv("ROPE_KERNELS_BACKEND");
  const std::string_view name = value == nullptr ? "" : value;
  if (name.empty()) return Backend::kUnknown;
  if (name == "native") return Backend::kNative;
  return name == "triton" ? Backend::kTriton : Backend::kReference;
}

/// Asks Python which backend the calling context has chosen; null until anybody in the process chooses one.
using AskPython = int (*)();
std::atomic<AskPython> ask_python{nullptr};

std::atomic<bool> python{false};

/// What Python's dispatch rule says for each CUDA device.
std::array<std::atomic<Backend>, kMaxDevices> preferred{};

Backend chosen() {
  static const Backend by_environment = backend_of_environment();
  const AskPython ask = ask_python.load(std::memory_order_acquire);
  return ask == nullptr ? by_environment : static_cast<Backend>(ask());
}

}  // namespace

Backend backend_on_cpu() {
  const Backend backend = chosen();
  return backend == Backend::kUnknown ? Backend::kNative : backend;
}

Backend backend_on_cuda(std::int32_t device_index) {
  const Backend backend = chosen();
  const auto index = static_cast<std::size_t>(device_index);
  if (backend != Backend::kUnknown) return backend;
  if (!has_python()) return Backend::kNative;
  return index < kMaxDevices ? preferred[index].load() : backend;
}

bool has_python() { return python.load(std::memory_order_acquire); }

}  // namespace rope::ops

#define ROPE_EXPORT extern "C" __attribute__((visibility("default")))

/// Python (ctypes) says that it has the operators that the library cannot run.
ROPE_EXPORT void rope_kernels_tell_of_python() { rope::ops::python = true; }

/// Python (ctypes) gives the function that tells which backend the calling context has chosen.
ROPE_EXPORT void rope_kernels_ask_python(int (*ask)()) { rope::ops::ask_python = ask; }

/// Python (ctypes) says what its dispatch rule prefers for a CUDA device.
ROPE_EXPORT void rope_kernels_prefer_on_cuda(int device_index, int backend) {
  const auto index = static_cast<std::size_t>(device_index);
  if (index < rope::ops::kMaxDevices) rope::ops::preferred[index] = static_cast<rope::ops::Backend>(backend);
}
