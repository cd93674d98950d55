// Rounds fp32 to the 8-bit numbers of a KV cache: to nearest even, clamped to finite numbers. By integers, since
// not every GPU has instructions for them, and some round twice.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/append.h"
#include "cuda/rows.cuh"

namespace rope::cuda {

/// The bits of a float of 8 bits: of its mantissa, the bias of its exponent, the bits in fp32 of its largest number.
template <int MANTISSA, int BIAS, std::uint32_t MOST>
__device__ inline std::uint32_t float8_of(float value) {
  constexpr int kShift = 23 - MANTISSA;
  constexpr std::uint32_t kRebias = (127U - BIAS) << 23, kNormal = kRebias + (1U << 23);
  // A number whose last place is the smallest denormal: adding it rounds at that place.
  constexpr std::uint32_t kLastPlace = (127U + 24 - BIAS - MANTISSA) << 23;
  const std::uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t finite = magnitude < MOST ? magnitude : MOST;
  const std::uint32_t up = (1U << (kShift - 1)) - 1U + ((finite >> kShift) & 1U);
  const std::uint32_t normal = (finite - kRebias + up) >> kShift;
  const std::uint32_t denormal = __float_as_uint(__uint_as_float(finite) + __uint_as_float(kLastPlace)) - kLastPlace;
  const std::uint32_t number = finite >= kNormal ? normal : denormal;
  return (magnitude > 0x7F800000U ? 0x7FU : number) | ((bits >> 24) & 0x80U);
}

__device__ inline std::uint32_t int8_of(float value) {
  const float number = value == value ? fminf(fmaxf(value, -128.0F), 127.0F) : 0.0F;
  return __float_as_uint(number + 12582912.0F) & 0xFFU;  // 1.5 * 2^23: the integer is in the last bits
}

__device__ inline std::uint32_t byte_of(Stored stored, float value) {
  constexpr std::uint32_t kMostE4M3 = 0x43E00000, kMostE5M2 = 0x47600000;  // 448 and 57,344
  if (stored == Stored::kFloat8E4M3) return float8_of<3, 7, kMostE4M3>(value);
  if (stored == Stored::kFloat8E5M2) return float8_of<2, 15, kMostE5M2>(value);
  return int8_of(value);
}

/// Divides N neighbouring numbers by `scale`, and stores them in as many bytes, aligned to that.
template <int N>
__device__ inline void store_quantised(Stored stored, const float* x, float scale, char* to) {
  if constexpr (N == 1) {
    store_unit(to, static_cast<std::uint8_t>(byte_of(stored, x[0] / scale)));
  } else {
    std::uint32_t words[N / 4] = {};
#pragma unroll
    for (int i = 0; i < N; ++i) words[i / 4] |= byte_of(stored, x[i] / scale) << (8 * (i % 4));
    using Unit = std::conditional_t<N == 8, uint2, std::uint32_t>;
    Unit unit;
    static_assert(sizeof unit == sizeof words);
    memcpy(&unit, words, sizeof unit);
    store_unit(to, unit);
  }
}

}  // namespace rope::cuda
