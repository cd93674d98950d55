// Tensors of any layout that detect writes between and around their elements, and the rotation to expect.
#pragma once

#include <sys/mman.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/job.h"

namespace buffers {

inline std::size_t size_of(rope::DType dtype) { return dtype == rope::DType::kFloat32 ? 4 : 2; }

/// An element's value, by the compiler's own conversions.
inline float value_of(rope::DType dtype, const std::byte* from) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, from, size_of(dtype));
  if (dtype == rope::DType::kFloat32) return std::bit_cast<float>(bits);
  if (dtype == rope::DType::kBFloat16) return std::bit_cast<float>(bits << 16);
  return static_cast<float>(std::bit_cast<_Float16>(static_cast<std::uint16_t>(bits)));
}

/// Stores an element; bf16 by truncation, since any number will do.
inline void put(rope::DType dtype, std::byte* to, float x) {
  const auto half = static_cast<_Float16>(x);
  if (dtype == rope::DType::kFloat32) std::memcpy(to, &x, 4);
  if (dtype == rope::DType::kFloat16) std::memcpy(to, &half, 2);
  if (dtype == rope::DType::kBFloat16) std::memcpy(to, reinterpret_cast<const std::byte*>(&x) + 2, 2);
}

/// How far a rounding to `dtype` may move `x`: half a unit in the last place.
inline double half_unit(rope::DType dtype, double x) {
  const int digits = dtype == rope::DType::kFloat32 ? 24 : dtype == rope::DType::kFloat16 ? 11 : 8;
  const int smallest = dtype == rope::DType::kFloat16 ? -13 : -125;
  int exponent = 0;
  std::frexp(x, &exponent);
  return std::ldexp(1.0, std::max(exponent, smallest) - digits - 1);
}

/// Memory that ends where access ends: ASan guards both sides; without it, a page without access follows.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
#if defined(__SANITIZE_ADDRESS__)
    start_ = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}));
#else
    const std::size_t whole = (bytes + kPage - 1) / kPage * kPage;
    void* pages = mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    mapped_ = static_cast<std::byte*>(pages);
    mprotect(mapped_ + whole, kPage, PROT_NONE);
    start_ = mapped_ + whole - bytes;
#endif
  }
  ~Memory() {
#if defined(__SANITIZE_ADDRESS__)
    ::operator delete(start_, std::align_val_t{64});
#else
    munmap(mapped_, (bytes_ + kPage - 1) / kPage * kPage + kPage);
#endif
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* start() const { return start_; }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kPage = 4096;
  std::size_t bytes_;
  std::byte* start_ = nullptr;
  std::byte* mapped_ = nullptr;
};

struct Shape {
  std::int64_t batch, tokens, heads, head_dim;
};

/// Unused elements: `before` the first one, and after every head, token and batch entry. `head_first`: heads lie before
/// tokens in memory.
struct Gaps {
  std::int64_t before, head, token, batch;
  bool head_first = false;
};

/// A (batch, tokens, heads, head_dim) tensor; its gaps hold random bits too.
class Tensor {
 public:
  Tensor(rope::DType dtype, const Shape& shape, const Gaps& gaps, std::mt19937& random)
      : dtype_(dtype), shape_(shape), before_(gaps.before) {
    if (gaps.head_first) {
      strides_.token = shape.head_dim + gaps.token;
      strides_.head = shape.tokens * strides_.token + gaps.head;
      strides_.batch = shape.heads * strides_.head + gaps.batch;
    } else {
      strides_.head = shape.head_dim + gaps.head;
      strides_.token = shape.heads * strides_.head + gaps.token;
      strides_.batch = shape.tokens * strides_.token + gaps.batch;
    }
    const std::int64_t last = (shape.batch - 1) * strides_.batch + (shape.tokens - 1) * strides_.token +
                              (shape.heads - 1) * strides_.head + shape.head_dim;
    memory_ = std::make_unique<Memory>(static_cast<std::size_t>(before_ + last) * size_of(dtype));
    for (std::byte& byte : std::span(memory_->start(), memory_->bytes())) byte = static_cast<std::byte>(random());
    for_each_head([&](std::byte* head, std::size_t bytes) {
      for (std::byte* at = head; at < head + bytes; at += size_of(dtype)) {
        put(dtype, at, std::uniform_real_distribution<float>(-1.0F, 1.0F)(random));
      }
    });
  }

  std::byte* data() const { return memory_->start() + before_ * static_cast<std::int64_t>(size_of(dtype_)); }
  const rope::Strides& strides() const { return strides_; }
  const Shape& shape() const { return shape_; }
  rope::DType dtype() const { return dtype_; }
  bool aligned(std::uintptr_t bytes) const {
    const auto size = static_cast<std::int64_t>(size_of(dtype_));
    const auto any = static_cast<std::uintptr_t>((strides_.batch | strides_.token | strides_.head) * size);
    return ((reinterpret_cast<std::uintptr_t>(data()) | any) % bytes) == 0;
  }

  std::byte* at(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    const std::int64_t element = b * strides_.batch + t * strides_.token + h * strides_.head + c;
    return data() + element * static_cast<std::int64_t>(size_of(dtype_));
  }
  float value(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t c) const {
    return value_of(dtype_, at(b, t, h, c));
  }

  /// Calls visit(first element, bytes) for every head of every token.
  template <class Visit>
  void for_each_head(Visit visit) const {
    const std::size_t bytes = static_cast<std::size_t>(shape_.head_dim) * size_of(dtype_);
    for (std::int64_t b = 0; b < shape_.batch; ++b)
      for (std::int64_t t = 0; t < shape_.tokens; ++t)
        for (std::int64_t h = 0; h < shape_.heads; ++h) visit(at(b, t, h, 0), bytes);
  }

  std::vector<std::byte> bytes() const { return {memory_->start(), memory_->start() + memory_->bytes()}; }
  void restore(const std::vector<std::byte>& bytes) const { std::memcpy(memory_->start(), bytes.data(), bytes.size()); }

  /// The elements alone, densely.
  std::vector<std::byte> elements() const {
    std::vector<std::byte> out;
    for_each_head([&](const std::byte* from, std::size_t bytes) { out.insert(out.end(), from, from + bytes); });
    return out;
  }

  /// Whether nothing but elements differs from `before`.
  bool gaps_kept(std::vector<std::byte> before) const {
    for_each_head([&](const std::byte* from, std::size_t bytes) {
      std::memcpy(before.data() + (from - memory_->start()), from, bytes);
    });
    return std::memcmp(before.data(), memory_->start(), before.size()) == 0;
  }

 private:
  rope::DType dtype_;
  Shape shape_;
  rope::Strides strides_;
  std::int64_t before_;
  std::unique_ptr<Memory> memory_;
};

/// Channels of pair `i` as read, or as written.
inline std::pair<std::int32_t, std::int32_t> channels(const rope::Rotation& r, std::int32_t i, bool read) {
  const bool mixed = r.pairing == rope::Pairing::kInterleavedToHalf;
  if (r.pairing == rope::Pairing::kInterleaved || (mixed && read)) {
    return {r.rotary_offset + 2 * i, r.rotary_offset + 2 * i + 1};
  }
  const std::int32_t width = r.num_pairs / r.blocks;
  const std::int32_t first = r.rotary_offset + 2 * (i / width) * r.distance + i % width;
  return {first, first + r.distance};
}

/// One head, rotated in double by `angle[pair]`.
inline std::vector<double> rotated(const rope::Spec& spec, const std::vector<double>& x,
                                   const std::vector<double>& angle, bool inverse) {
  std::vector<double> y = x;
  for (std::int32_t i = 0; i < spec.rotation.num_pairs; ++i) {
    const auto [r1, r2] = channels(spec.rotation, i, !inverse);
    const auto [w1, w2] = channels(spec.rotation, i, inverse);
    const double a = x[static_cast<std::size_t>(r1)], b = x[static_cast<std::size_t>(r2)];
    const double radians = angle[static_cast<std::size_t>(i)];
    const double c = std::cos(radians) * spec.params.scaling;
    const double s = std::sin(inverse ? -radians : radians) * spec.params.scaling;
    y[static_cast<std::size_t>(w1)] = a * c - b * s;
    y[static_cast<std::size_t>(w2)] = b * c + a * s;
  }
  return y;
}

}  // namespace buffers
