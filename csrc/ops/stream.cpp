// torch's current CUDA stream.
#include "ops/stream.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>

namespace rope::ops {

// The function is looked up when it is needed: only a torch with CUDA has it, and has loaded its library by then.
void* current_stream(std::int32_t device_index) {
  using Get = AOTITorchError (*)(std::int32_t, void**);
  static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  static const auto get =
      reinterpret_cast<Get>(library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  if (get == nullptr) throw std::runtime_error("rope_kernels on CUDA: this torch was built without CUDA");
  void* stream = nullptr;
  if (get(device_index, &stream) != 0) throw std::runtime_error("rope_kernels on CUDA: there is no current stream");
  return stream;
}

}  // namespace rope::ops
