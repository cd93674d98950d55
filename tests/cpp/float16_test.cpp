// The 16-bit conversions of the portable path, against the compiler's _Float16, the machine's F16C and exact rounding.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "harness.h"

#define ROPE_ISA portable
#define ROPE_VECTOR 16
#include "cpu/floats.h"

namespace {

using rope::portable::BFloat16, rope::portable::Float16;

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

/// fp32 numbers where rounding can go wrong: around all fp16 numbers and the middles between them, and random bits.
template <class Check>
void for_many_floats(Check check) {
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (const std::uint32_t low : {0x0000U, 0x0001U, 0x0fffU, 0x1000U, 0x1001U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      check(high << 16 | low);
    }
  }
  for (std::uint32_t half = 0; half < 0x7c00; ++half) {
    const float here = Float16::widen(static_cast<std::uint16_t>(half));
    const float next = Float16::widen(static_cast<std::uint16_t>(half + 1));
    const std::uint32_t middle = bits_of(half == 0x7bff ? 65520.0F : here / 2 + next / 2);
    for (const std::uint32_t bits : {bits_of(here), middle - 1, middle, middle + 1}) {
      check(bits);
      check(bits | 0x80000000U);
    }
  }
  std::mt19937 random(16);
  for (int i = 0; i < 1'000'000; ++i) check(random());
}

bool is_nan(std::uint16_t half) { return (half & 0x7fffU) > 0x7c00U; }

TEST(every_half_widens_as_the_compiler_does) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const auto x = static_cast<std::uint16_t>(half);
    const std::uint32_t expected = bits_of(static_cast<float>(std::bit_cast<_Float16>(x)));
    CHECK(bits_of(Float16::widen(x)) == expected, half, bits_of(Float16::widen(x)), expected);
  }
}

TEST(every_half_survives_a_round_trip) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const auto x = static_cast<std::uint16_t>(half);
    const std::uint32_t quiet = is_nan(x) ? half | 0x0200U : half;
    CHECK(Float16::narrow(Float16::widen(x)) == quiet, half, Float16::narrow(Float16::widen(x)));
  }
}

TEST(floats_narrow_to_halves_as_the_compiler_does) {
  for_many_floats([](std::uint32_t bits) {
    const auto expected = std::bit_cast<std::uint16_t>(static_cast<_Float16>(float_of(bits)));
    const std::uint16_t got = Float16::narrow(float_of(bits));
    CHECK(got == expected || (is_nan(got) && is_nan(expected)), bits, got, expected);
  });
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) std::uint16_t machine_narrow(float x) {
  return static_cast<std::uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
}
__attribute__((target("avx,f16c"))) float machine_widen(std::uint16_t x) { return _cvtsh_ss(x); }

TEST(the_machine_agrees_bit_for_bit) {
  if (!__builtin_cpu_supports("f16c")) return;
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const auto x = static_cast<std::uint16_t>(half);
    CHECK(bits_of(machine_widen(x)) == bits_of(Float16::widen(x)), half);
  }
  for_many_floats([](std::uint32_t bits) {
    const std::uint16_t got = Float16::narrow(float_of(bits)), expected = machine_narrow(float_of(bits));
    CHECK(got == expected, bits, got, expected);
  });
}
#endif

/// Nearest bf16, ties to even, without adding to the bits: from the exact distances to both neighbours.
std::uint16_t nearest_bf16(std::uint32_t bits) {
  const auto down = static_cast<std::uint16_t>(bits >> 16);
  const double x = float_of(bits), low = float_of(bits & 0xffff0000U);
  const bool last = (down & 0x7fffU) == 0x7f7fU;
  const double high = last ? std::copysign(0x1p128, x) : float_of((bits & 0xffff0000U) + 0x10000U);
  const double below = std::fabs(x - low), above = std::fabs(high - x);
  return static_cast<std::uint16_t>(below < above || (below == above && down % 2 == 0) ? down : down + 1);
}

TEST(floats_narrow_to_the_nearest_bf16) {
  for_many_floats([](std::uint32_t bits) {
    const float x = float_of(bits);
    const std::uint16_t got = BFloat16::narrow(x);
    if (std::isnan(x)) {
      CHECK(std::isnan(BFloat16::widen(got)), bits, got);
    } else if (std::isinf(x)) {
      CHECK(got == bits >> 16, bits, got);
    } else {
      CHECK(got == nearest_bf16(bits), bits, got, nearest_bf16(bits));
    }
  });
}

TEST(every_bf16_survives_a_round_trip) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const float x = BFloat16::widen(static_cast<std::uint16_t>(half));
    CHECK(bits_of(x) == half << 16 && BFloat16::narrow(x) == (std::isnan(x) ? half | 0x40U : half), half);
  }
}

}  // namespace
