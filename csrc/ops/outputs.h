// The tensors that a call allocates for its results.
#pragma once

#include <sys/mman.h>

#include <array>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "ops/tensor_job.h"

namespace rope::ops {

/// Advises the system to back a new tensor with huge pages, where whole ones fit: the first touch of 4 KiB pages costs
/// several times the rotation. A system without them ignores it.
inline void advise_huge_pages([[maybe_unused]] const View& made) {
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

constexpr std::int64_t kMaxRank = 4;
using Order = std::array<std::int64_t, kMaxRank>;

/// The dimensions from the innermost out, as torch orders them: by stride, then by size; a stride of 0 is not compared.
inline Order innermost_first(const View& v) {
  const auto compare = [&v](std::int64_t inner, std::int64_t outer) {
    if (v.stride[inner] == 0 || v.stride[outer] == 0) return 0;
    if (v.stride[inner] != v.stride[outer]) return v.stride[inner] < v.stride[outer] ? -1 : 1;
    return v.size[inner] > v.size[outer] ? 1 : 0;
  };
  Order order{};
  for (std::int64_t i = 0; i < v.dim; ++i) order[i] = v.dim - 1 - i;
  for (std::int64_t i = 1; i < v.dim; ++i) {
    for (std::int64_t at = i, below = i - 1; below >= 0; --below) {
      const int comparison = compare(order[below], order[at]);
      if (comparison < 0) break;
      if (comparison > 0) std::swap(order[below], order[std::exchange(at, below)]);
    }
  }
  return order;
}

/// The strides of torch's empty_like: those of `v` where it fills its memory, dense ones in the same order elsewhere.
inline Order strides_like(const View& v) {
  Order kept{}, dense{};
  bool fills = true;
  std::int64_t size = 1;
  for (std::int64_t i = 0; const std::int64_t dim : innermost_first(v)) {
    if (i++ == v.dim) break;
    kept[dim] = v.stride[dim];
    dense[dim] = size;
    fills = fills && (v.size[dim] == 1 || v.stride[dim] == size);
    size *= v.size[dim];
  }
  return fills || size == 0 ? kept : dense;
}

/// A new tensor, which the caller owns, and its view.
struct Made {
  AtenTensorHandle tensor = nullptr;
  View view;
};

/// torch.empty_like of what `x` views, without a call through the dispatcher.
inline Made new_like(const View& x) {
  Made made{nullptr, x};
  const Order strides = strides_like(x);
  const AOTITorchError error =
      aoti_torch_empty_strided(x.dim, x.size, strides.data(), x.dtype, x.device_type, x.device_index, &made.tensor);
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("the results could not be allocated");
  std::int64_t* kept;
  aoti_torch_get_strides(made.tensor, &kept);
  aoti_torch_get_data_ptr(made.tensor, &made.view.data);
  made.view.stride = kept;
  if (x.device_type == aoti_torch_device_type_cpu()) advise_huge_pages(made.view);
  return made;
}

}  // namespace rope::ops
