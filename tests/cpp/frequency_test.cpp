// frequency.h against extended precision and exact integers.
#include "core/frequency.h"

#include <array>
#include <cmath>
#include <random>

#include "harness.h"

namespace {

using Wide = unsigned __int128;

constexpr long double kTurn = 6.283185307179586476925286766559005768L;

std::mt19937_64 random_bits(20240607);

/// floor(2^256 / (2 pi)), 32 bits at a time from the lowest.
constexpr std::array<std::uint32_t, 8> kInverseTurn = {0xf7aef158, 0x7f9458ea, 0x4f10e410, 0x36d8a566,
                                                       0x7d4d3770, 0x7f09d5f4, 0x9391054a, 0x28be60db};

/// |inv_freq| / (2 pi) in units of 2^-80, rounded down: 16 bits more than fixed_point_turns gives.
Wide exact_turns(double inv_freq) {
  int exponent;
  const auto digits = static_cast<std::uint64_t>(std::ldexp(std::frexp(std::fabs(inv_freq), &exponent), 53));
  std::array<std::uint32_t, 32> product{};  // digits * kInverseTurn
  for (std::size_t half = 0; half < 2; ++half) {
    std::uint64_t carry = 0;
    for (std::size_t i = 0; i < kInverseTurn.size(); ++i) {
      const auto digit = static_cast<std::uint32_t>(digits >> (32 * half));
      carry += std::uint64_t{digit} * kInverseTurn[i] + product[i + half];
      product[i + half] = static_cast<std::uint32_t>(carry);
      carry >>= 32;
    }
    product[kInverseTurn.size() + half] = static_cast<std::uint32_t>(carry);
  }
  // The product is in units of 2^(exponent - 53 - 256); the result in those of 2^-80.
  const int shift = 53 + 256 - 80 - exponent;
  Wide out = 0;
  for (int bit = 0; bit < 80; ++bit) {
    const int at = bit + shift;
    if (at >= 0 && at < 32 * 32) out |= static_cast<Wide>((product[at / 32] >> (at % 32)) & 1U) << bit;
  }
  return out;
}

/// Checks that fixed_point_turns is the nearest integer; within 2^-15 of a tie, either neighbour.
void check_turns(double inv_freq) {
  const Wide mask = (Wide{1} << 80) - 1;
  const Wide exact = inv_freq < 0 ? (Wide{0} - exact_turns(inv_freq)) & mask : exact_turns(inv_freq);
  const std::uint64_t got = rope::fixed_point_turns(inv_freq);
  const Wide difference = ((Wide{got} << 16) - exact) & mask;
  const Wide distance = difference > mask / 2 ? mask + 1 - difference : difference;
  CHECK(distance <= 0x8002, inv_freq, got, static_cast<std::uint64_t>(exact >> 16),
        static_cast<std::uint64_t>(distance) / 65536.0);
}

void check_sin_cos(std::uint32_t phase) {
  float sine, cosine;
  rope::sin_cos(phase, sine, cosine);
  const long double angle = static_cast<long double>(phase) * (kTurn / 4294967296.0L);
  const long double off_sine = std::fabs(sine - std::sin(angle)), off_cosine = std::fabs(cosine - std::cos(angle));
  CHECK(off_sine < 1.5e-7L, phase, sine, std::sin(angle));
  CHECK(off_cosine < 2.6e-7L, phase, cosine, std::cos(angle));
  CHECK(off_sine + off_cosine < 3.2e-7L, phase, off_sine, off_cosine);  // the error of a rotation before it rounds
}

TEST(sine_and_cosine_of_a_dense_grid) {
  for (std::uint64_t phase = 0; phase < (1ULL << 32); phase += 4093) check_sin_cos(static_cast<std::uint32_t>(phase));
}

TEST(sine_and_cosine_of_random_phases) {
  for (int i = 0; i < 500'000; ++i) check_sin_cos(static_cast<std::uint32_t>(random_bits()));
}

TEST(sine_and_cosine_around_quarter_turns) {
  for (std::uint32_t quarter = 0; quarter < 8; ++quarter) {
    for (std::uint32_t near = 0; near < 2000; ++near) check_sin_cos((quarter << 29) + near - 1000U);
  }
}

TEST(phase_zero_is_exact) {
  float sine, cosine;
  rope::sin_cos(0, sine, cosine);
  CHECK(sine == 0.0F && cosine == 1.0F, sine, cosine);
}

TEST(phases_are_exact_modulo_one_turn) {
  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
  const std::int64_t positions[] = {0, 1, -1, 4095, -131071, 1 << 24, INT32_MAX, INT32_MIN, INT64_MAX, kLowest};
  for (int i = 0; i < 100'000; ++i) {
    const std::int64_t position =
        i % 2 ? positions[i / 2 % std::size(positions)] : static_cast<std::int64_t>(random_bits());
    const std::uint64_t turns = i % 7 ? random_bits() : (i % 2 ? ~0ULL : 0ULL);
    const __int128 product = static_cast<__int128>(position) * static_cast<__int128>(turns);
    const auto expected = static_cast<std::uint32_t>(product >> 32);  // arithmetic: rounds down, as the phase does
    CHECK(rope::phase_of(position, turns) == expected, position, turns);
  }
}

TEST(phases_of_turns_drop_whole_turns) {
  for (int i = 0; i < 100'000; ++i) {
    const auto phase = static_cast<std::uint32_t>(random_bits());
    const auto whole = static_cast<double>(static_cast<std::int32_t>(random_bits()) >> 12);
    CHECK(rope::phase_of_turns(whole + phase / 4294967296.0) == phase, whole, phase);
  }
  for (const double turns : {-1e-300, -0.0, 0.0, 1e-300, 7.0, -7.0, 0x1p60}) {
    CHECK(rope::phase_of_turns(turns) == 0, turns);
  }
}

TEST(turns_of_powers_of_theta) {
  for (const double theta : {1e4, 5e5, 1e6, 1e8}) {
    for (int j = 0; j < 128; ++j) check_turns(std::pow(theta, -j / 128.0));
  }
}

TEST(turns_of_random_frequencies) {
  for (int i = 0; i < 200'000; ++i) {
    const double digits = 1.0 + static_cast<double>(random_bits() >> 12) * 0x1p-52;
    const double inv_freq = std::ldexp(digits, static_cast<int>(random_bits() % 120) - 100);
    check_turns(inv_freq);
    check_turns(-inv_freq);
  }
}

TEST(turns_of_extreme_frequencies) {
  for (const double x : {0.0, 5e-324, 1e-308, 1e-30, 1e-19, 6.283185307179586, 6.283185307179587, 12.566370614359172}) {
    check_turns(x);
    check_turns(-x);
  }
  // Beyond 2^42 the last places are lost; the rest must be defined, so that UBSan stays silent.
  for (const double x : {1e13, 3e16, 1e17, 1e300, 1.7976931348623157e308}) {
    CHECK(rope::fixed_point_turns(-x) == 0 - rope::fixed_point_turns(x), x);
  }
}

TEST(frequencies_are_powers_of_theta) {
  rope::FrequencyParams p;
  p.theta = 1e4;
  p.freq_dim = 128;
  p.num_frequencies = p.rotated = 64;
  for (int j = 0; j < 64; ++j) {
    const long double f = std::pow(10000.0L, -2.0L * j / 128);
    CHECK(std::fabs(rope::inv_freq(p, j, 1.0, 1.0) - f) <= 1e-15L * f, j);
    CHECK(std::fabs(rope::inv_freq(p, j, 1.0, 3.0) - 3 * f) <= 3e-15L * f, j);
  }
  p.rotated = 16;
  CHECK(rope::inv_freq(p, 15, 1.0, 1.0) > 0.0 && rope::inv_freq(p, 16, 1.0, 1.0) == 0.0);
}

TEST(frequencies_on_the_ramp) {
  rope::FrequencyParams p;
  p.theta = 1e4;
  p.freq_dim = 64;
  p.num_frequencies = p.rotated = 32;
  p.factor = 8.0;
  p.ramp_index = -0.1;
  p.ramp_start = 2.0;
  for (int j = 0; j < 32; ++j) {
    const long double f = std::pow(10000.0L, -2.0L * j / 64), w = j <= 10 ? 1.0L : (j >= 20 ? 0.0L : 2.0L - 0.1L * j);
    const long double expected = f * ((1 - w) / 8 + w);
    CHECK(std::fabs(rope::inv_freq(p, j, 1.0, 1.0) - expected) <= 2e-15L * expected, j);
  }
}

TEST(lengths_switch_above_not_at) {
  rope::FrequencyParams p;
  CHECK(!rope::is_long(p, INT64_MAX));
  CHECK(rope::alpha(p, INT64_MAX) == 1.0);
  p.switch_length = 4096;
  CHECK(!rope::is_long(p, 4096) && rope::is_long(p, 4097));
  p.dynamic_factor = 2.0;
  p.dynamic_length = 2048;
  CHECK(rope::alpha(p, 2048) == 1.0);
  CHECK(rope::alpha(p, 4096) == 3.0, rope::alpha(p, 4096));
}

TEST(dynamic_growth_scales_theta) {
  rope::FrequencyParams p;
  p.theta = 1e4;
  p.freq_dim = 64;
  p.num_frequencies = p.rotated = 32;
  const long double theta = 1e4L * std::pow(3.0L, 64.0L / 62);
  for (int j = 0; j < 32; ++j) {
    const long double expected = std::pow(theta, -2.0L * j / 64);
    CHECK(std::fabs(rope::inv_freq(p, j, 3.0, 1.0) - expected) <= 1e-15L * expected, j);
  }
}

}  // namespace
