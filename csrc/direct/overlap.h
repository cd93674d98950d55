// Sufficient conditions for outputs that overlap neither each other nor an input, in a few comparisons.
// rope_kernels/api/overlap.py decides the other cases.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "ops/tensor_job.h"

namespace rope::direct {

using ops::View;

/// A tensor's dimensions but the last, whose stride is 1: smallest stride first, without those of size 1.
struct Outer {
  struct Dimension {
    std::int64_t stride, size;
  };
  std::array<Dimension, 3> dimensions{};
  std::int64_t count = 0, width = 0;
  std::uintptr_t start = 0, item = 0;

  explicit Outer(const View& v)
      : width(v.size[v.dim - 1]), start(reinterpret_cast<std::uintptr_t>(v.data)), item(item_of(v.dtype)) {
    for (std::int64_t i = 0; i + 1 < v.dim; ++i) {
      if (v.size[i] == 0) width = 0;
      if (v.size[i] > 1) insert({v.stride[i], v.size[i]});
    }
  }

  [[nodiscard]] const Dimension* begin() const { return dimensions.data(); }
  [[nodiscard]] const Dimension* end() const { return dimensions.data() + count; }
  [[nodiscard]] bool is_empty() const { return width == 0; }

  /// Elements from the first to the last, over the dimensions with strides less than `below`.
  [[nodiscard]] std::int64_t extent(std::int64_t below) const {
    std::int64_t elements = width;
    for (const Dimension& d : *this) elements += d.stride < below ? d.stride * (d.size - 1) : 0;
    return elements;
  }

  /// Whether each dimension's stride is at least what those before it span: then no two elements overlap.
  [[nodiscard]] bool is_nested() const {
    std::int64_t spanned = width;
    for (const Dimension& d : *this) {
      if (d.stride < spanned) return false;
      spanned += d.stride * (d.size - 1);
    }
    return true;
  }

 private:
  static std::uintptr_t item_of(std::int32_t dtype) {
    if (dtype == aoti_torch_dtype_float32()) return 4;
    return dtype == aoti_torch_dtype_float16() || dtype == aoti_torch_dtype_bfloat16() ? 2 : 1;
  }

  void insert(Dimension d) {
    for (std::int64_t i = 0; i < count; ++i) {
      if (d.stride < dimensions[i].stride) std::swap(d, dimensions[i]);
    }
    dimensions[count++] = d;
  }
};

/// Whether `a` and `b` repeat with one stride and stay side by side within it, like q and k of one fused projection.
inline bool are_side_by_side(const Outer& a, const Outer& b) {
  if (a.item != b.item) return false;
  const auto is_period = [&](std::int64_t period) {
    const auto repeats = [period](const Outer::Dimension& d) { return d.stride < period || d.stride % period == 0; };
    if (!std::all_of(a.begin(), a.end(), repeats) || !std::all_of(b.begin(), b.end(), repeats)) return false;
    const auto bytes = static_cast<std::int64_t>(b.start - a.start), item = static_cast<std::int64_t>(a.item);
    const std::int64_t gap = ((bytes / item) % period + period) % period;
    return bytes % item == 0 && a.extent(period) <= gap && gap + b.extent(period) <= period;
  };
  for (const Outer::Dimension& x : a) {
    for (const Outer::Dimension& y : b) {
      if (x.stride == y.stride && is_period(x.stride)) return true;
    }
  }
  return false;
}

inline bool are_apart(const Outer& a, const Outer& b) {
  constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();
  const auto bytes = [](const Outer& x) { return static_cast<std::uintptr_t>(x.extent(kAll)) * x.item; };
  if (a.is_empty() || b.is_empty()) return true;
  return a.start + bytes(a) <= b.start || b.start + bytes(b) <= a.start || are_side_by_side(a, b);
}

}  // namespace rope::direct
