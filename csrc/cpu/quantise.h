// Rounds fp32 to the 8-bit numbers of a KV cache: to nearest even, clamped to finite numbers.
#pragma once

#include <cstdint>

#include "core/append.h"
#include "cpu/floats.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

template <int W>
ROPE_INLINE F<W> clamp(F<W> x, float least, float most) {
  x = x > most ? F<W>{} + most : x;
  return x < least ? F<W>{} + least : x;
}

/// A float of 8 bits: the bits of its mantissa, the bias of its exponent, its largest number. NaN has all bits set.
template <int MANTISSA, int BIAS, int MOST>
struct Float8 {
  template <int W>
  ROPE_INLINE U<W> narrow(F<W> value) {
    constexpr int kShift = 23 - MANTISSA;
    constexpr std::uint32_t kRebias = (127U - BIAS) << 23, kNormal = kRebias + (1U << 23);
    // A number whose last place is the smallest denormal: adding it rounds at that place.
    constexpr std::uint32_t kLastPlace = (127U + 24 - BIAS - MANTISSA) << 23;
    const U<W> bits = (U<W>)clamp<W>(value, -MOST, MOST), magnitude = bits & 0x7fffffffU, sign = (bits >> 24) & 0x80U;
    const U<W> up = (1U << (kShift - 1)) - 1U + ((magnitude >> kShift) & 1U);
    const U<W> normal = (magnitude - kRebias + up) >> kShift;
    const U<W> denormal = (U<W>)((F<W>)magnitude + (F<W>)(magnitude * 0U + kLastPlace)) - kLastPlace;
    const U<W> nan = magnitude * 0U + 0x7fU;
    const U<W> finite = (I<W>)magnitude >= static_cast<std::int32_t>(kNormal) ? normal : denormal;
    return ((I<W>)magnitude > 0x7f800000 ? nan : finite) | sign;
  }
};
using E4M3 = Float8<3, 7, 448>;
using E5M2 = Float8<2, 15, 57344>;

struct Int8 {
  template <int W>
  ROPE_INLINE U<W> narrow(F<W> value) {
    const F<W> number = clamp<W>(value == value ? value : F<W>{}, -128.0F, 127.0F);
    return (U<W>)(number + 12582912.0F) & 0xffU;  // 1.5 * 2^23: the integer is in the last bits
  }
};

/// Divides n floats by `scale`, and rounds and stores them.
template <class Q>
void quantise(const float* x, float scale, std::uint8_t* to, int n) {
  constexpr int W = ROPE_VECTOR, L = Vec<W>::L;
  int i = 0;
  for (; i + L <= n; i += L) {
    const U<W> made = Q::template narrow<W>(load_as<F<W>>(x + i) / scale);
    store_as<false>(to + i, __builtin_convertvector(made, B<W>));
  }
  for (; i < n; ++i) to[i] = static_cast<std::uint8_t>(Q::template narrow<16>(F<16>{x[i] / scale})[0]);
}

void quantise(Stored stored, const float* x, float scale, void* to, int n) {
  auto* bytes = static_cast<std::uint8_t*>(to);
  if (stored == Stored::kFloat8E4M3) return quantise<E4M3>(x, scale, bytes, n);
  if (stored == Stored::kFloat8E5M2) return quantise<E5M2>(x, scale, bytes, n);
  quantise<Int8>(x, scale, bytes, n);
}

}  // namespace
}  // namespace rope::ROPE_ISA
