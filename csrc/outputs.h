// The tensors that a call allocates for its results.
#pragma once

#include <sys/mman.h>

#include "tensor_job.h"

namespace rope::bindings {

/// Asks the system to back a new tensor with huge pages, where whole ones fit: the first touch of 4 KiB pages costs
/// several times the rotation. A hint: a system without them goes on as before.
inline void ask_for_huge_pages([[maybe_unused]] const View& made) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 2 << 20;
  std::uintptr_t bytes = made.dtype == aoti_torch_dtype_float32() ? 4 : 2;
  for (std::int64_t i = 0; i < made.dim; ++i) bytes *= static_cast<std::uintptr_t>(made.size[i]);
  if (bytes < kPage) return;
  const auto start = reinterpret_cast<std::uintptr_t>(made.data);
  const std::uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

/// Whether the dimensions are dense in the order given; then torch's empty_like would keep the strides.
inline bool is_dense(const View& v, std::initializer_list<int> innermost_first) {
  std::int64_t expected = 1;
  for (const int dim : innermost_first) {
    if (v.stride[dim] != expected) return false;
    expected *= v.size[dim];
  }
  return expected > 0;
}

/// A new tensor and its view.
struct Made {
  Tensor tensor;
  View view;
};

/// torch.empty_like, for the usual strides without a call through the dispatcher.
inline Made empty_like(const Tensor& x, const View& v) {
  const bool dense = v.dim == 4 ? is_dense(v, {3, 2, 1, 0}) || is_dense(v, {3, 1, 2, 0}) : is_dense(v, {2, 1, 0});
  if (!dense) {
    Tensor made = torch::stable::empty_like(x);
    return {made, View("out", made)};
  }
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(v.dim, v.size, v.stride, v.dtype, v.device_type, v.device_index, &made));
  Tensor tensor(made);
  return {tensor, v.of_like(tensor)};
}

/// Where the rotated `x`, viewed by `v`, goes.
inline Made new_like(const Tensor& x, const View& v) {
  Made made = empty_like(x, v);
  if (v.device_type == aoti_torch_device_type_cpu()) ask_for_huge_pages(made.view);
  return made;
}

}  // namespace rope::bindings
