// Sine and cosine of an angle that is an fp32 number of radians, as a model computes it. In integers, so that every
// compiler and every device gives the same bits, within 0.52 units in the last place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/frequency.h"

namespace rope {

ROPE_HD std::uint32_t high_product(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::uint32_t>(std::uint64_t{a} * b >> 32);
}

/// `radians` in 2^-64 turns, modulo one turn, off by 2 at most; any number if it is NaN or infinite.
///
/// A float is an integer below 2^24 times a power of two. The power moves a window of 96 bits over those of 1 / (2 pi):
/// what lies before the window are whole turns, what lies behind it does not matter (Payne and Hanek).
ROPE_HD std::uint64_t turns_of(float radians) {
  // 1 / (2 pi) behind 24 zeros
  constexpr std::uint64_t k0 = 0x00000028be60db93, k1 = 0x91054a7f09d5f47d, k2 = 0x4d377036d8a5664f,
                          k3 = 0x10e4107f9458eaf7;
  std::uint32_t bits;
  std::memcpy(&bits, &radians, sizeof bits);
  const int place = static_cast<int>(bits >> 23 & 0xFFU) - 126;  // of the window, once the angle is 0.5 or more
  const std::uint32_t mantissa = (bits & 0x7FFFFFU) | 0x800000U;
  const std::uint64_t first = place < 64 ? k0 : (place < 128 ? k1 : k2);
  const std::uint64_t second = place < 64 ? k1 : (place < 128 ? k2 : k3);
  const std::uint64_t third = place < 64 ? k2 : k3;
  const int left = place < 0 ? 0 : place & 63, right = 63 - left;
  const std::uint64_t window = first << left | second >> 1 >> right;
  const auto rest = static_cast<std::uint32_t>((second << left | third >> 1 >> right) >> 32);
  std::uint64_t turns = window * mantissa + high_product(rest, mantissa);
  if (place < 0) turns >>= place < -63 ? 63 : -place;
  return bits >> 31 != 0 ? 0 - turns : turns;
}

/// Sine and cosine of `turns` in 2^-64 turns: the absolute error before the one rounding is below 2^-30.
///
/// Quarter turns are removed, the rest lies in an eighth of a turn to either side of 0. Numbers are fractions of 2^32;
/// polynomials are in the square of the rest, by that of an eighth of a turn.
ROPE_HD void sin_cos_of_turns(std::uint64_t turns, float& sine, float& cosine) {
  const std::uint64_t quarter = turns + 0x2000000000000000U;
  const std::uint64_t rest = (quarter & 0x3FFFFFFFFFFFFFFFU) - 0x2000000000000000U;
  const std::uint64_t magnitude = rest >> 63 != 0 ? ~rest : rest;
  const auto share = static_cast<std::uint32_t>(magnitude >> 29);
  const std::uint32_t z = high_product(share, share);
  const std::uint32_t slope =
      3373259426U -
      high_product(z, 346799333U - high_product(z, 10696157U - high_product(z, 157077U - high_product(z, 1327U))));
  const std::uint32_t fall =
      high_product(z, 1324675878U - high_product(z, 68093864U - high_product(z, 1399993U - high_product(z, 15213U))));
  const std::uint64_t product = (magnitude >> 32) * slope + high_product(static_cast<std::uint32_t>(magnitude), slope);
  const float s = static_cast<float>(product) * 4.336808689942018e-19F;                        // 2^-61
  const float c = static_cast<float>(0U - (fall > 0U ? fall : 1U)) * 2.3283064365386963e-10F;  // 1 - fall, in 2^-32
  const float s_signed = rest >> 63 != 0 ? -s : s;
  const bool is_odd = (quarter >> 62 & 1U) != 0, is_later = quarter >> 63 != 0;
  const float first = is_odd ? c : s_signed, second = is_odd ? -s_signed : c;
  sine = is_later ? -first : first;
  cosine = is_later ? -second : second;
}

/// Sine and cosine of an angle in turns and in fp32 radians; NaN if these are NaN or infinite. Next to 0 they have
/// digits left that turns have not; where they are not known, they are given as 1.
ROPE_HD void sin_cos_of_angle(std::uint64_t turns, float radians, float& sine, float& cosine) {
  sin_cos_of_turns(turns, sine, cosine);
  if (std::fabs(radians) < 6.103515625e-05F) sine = radians;  // 2^-14
  if (!(std::fabs(radians) < HUGE_VALF)) sine = cosine = NAN;
}

}  // namespace rope
