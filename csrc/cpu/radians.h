// Computes the cosines and sines of angles in radians, for phases in fp32: in double precision, rounded once.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

/// Below this, a number of quarter turns has so few bits that its products in sin_cos_of_near are exact.
constexpr double kNear = 268435456.0;  // 2^28

/// `x` with its sign flipped, if bit 1 of `quarters` is set.
ROPE_INLINE float flipped(std::uint64_t x, std::uint64_t quarters) {
  x ^= (quarters & 2U) << 62;
  double result;
  __builtin_memcpy(&result, &x, sizeof result);
  return static_cast<float>(result);
}

/// Sine and cosine, to 2^-35 before they are rounded, of an angle below kNear.
ROPE_INLINE void sin_cos_of_near(double angle, float& sine, float& cosine) {
  constexpr double kPerQuarter = 0.6366197723675814;  // 2 / pi
  // pi / 2 in three parts, the first two of 25 bits
  constexpr double kQuarter0 = 1.5707963109016418, kQuarter1 = 1.5893254712295857e-08,
                   kQuarter2 = 6.123233995736766e-17;
  constexpr double kToInteger = 6755399441055744.0;  // 3 * 2^51: the sum's last bit is worth 1
  const double shifted = angle * kPerQuarter + kToInteger;
  std::uint64_t quarters;  // modulo 4 in the last bits
  __builtin_memcpy(&quarters, &shifted, sizeof quarters);
  const double whole = shifted - kToInteger;
  const double x = angle - whole * kQuarter0 - whole * kQuarter1 - whole * kQuarter2;
  const double x2 = x * x;
  const double s4 = 0.0083333318746996095 + x2 * (-0.000198400867296589 + x2 * 2.7249925060603467e-6);
  const double s = x + x * x2 * (-0.16666666663855262 + x2 * s4);
  const double c6 = -0.0013888885091371606 + x2 * (2.4799862181799888e-5 + x2 * -2.7237139644733981e-7);
  const double c = 1.0 + x2 * (-0.49999999999963891 + x2 * (0.041666666637395789 + x2 * c6));
  std::uint64_t s_bits, c_bits;
  __builtin_memcpy(&s_bits, &s, sizeof s);
  __builtin_memcpy(&c_bits, &c, sizeof c);
  const std::uint64_t exchanged = (s_bits ^ c_bits) & (0U - (quarters & 1U));  // no branch, or there are no vectors
  sine = flipped(s_bits ^ exchanged, quarters);
  cosine = flipped(c_bits ^ exchanged, quarters + 1U);
}

/// The same for any angle; NaN, with zeros in its lower bits, where it is NaN or infinite.
void sin_cos_of_far(double angle, float& sine, float& cosine) {
  const bool none = !std::isfinite(angle);
  sine = none ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(std::sin(angle));
  cosine = none ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(std::cos(angle));
}

void sin_cos_of_radians(const double* angle, int n, float* sine, float* cosine) {
  for (int i = 0; i < n; ++i) sin_cos_of_near(angle[i], sine[i], cosine[i]);
  std::int64_t num_near = 0;
  for (int i = 0; i < n; ++i) num_near += static_cast<std::int64_t>(std::fabs(angle[i]) < kNear);
  for (int i = 0; num_near < n && i < n; ++i) {
    if (!(std::fabs(angle[i]) < kNear)) sin_cos_of_far(angle[i], sine[i], cosine[i]);
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
