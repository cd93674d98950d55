// The mathematics of a rotation, shared by the CPU and CUDA kernels: inverse frequencies, phases in turns, sine and
// cosine. Raw numbers only; no torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ROPE_HD __host__ __device__ __forceinline__
#else
// Internal to each file: of an inline function the linker could keep the copy compiled for AVX-512, for every CPU.
#define ROPE_HD [[maybe_unused]] static inline
#endif

namespace rope {

/// The numbers that define a rope type's frequencies, as in rope_kernels/core/frequency.py.
///
/// inv_freq_j = f_j * ((1 - w_j) / factor + w_j) * multiplier_j, f_j = theta^(-2 j / freq_dim),
/// w_j = clamp(ramp_index j + ramp_frequency f_j + ramp_start, 0, 1), in radians per position.
struct FrequencyParams {
  double theta = 1.0;
  double factor = 1.0;
  double ramp_index = 0.0;
  double ramp_frequency = 0.0;
  double ramp_start = 1.0;
  double scaling = 1.0;
  double long_scaling = 1.0;
  double dynamic_factor = 0.0;
  std::int64_t dynamic_length = 0;
  std::int64_t switch_length = 0;
  std::int32_t freq_dim = 2;
  std::int32_t num_frequencies = 1;
  std::int32_t rotated = 1;
};

ROPE_HD bool depends_on_length(const FrequencyParams& p) { return p.switch_length > 0 || p.dynamic_factor != 0.0; }

/// Whether a sequence of `length` tokens takes the long multipliers and the long scaling.
ROPE_HD bool is_long(const FrequencyParams& p, std::int64_t length) {
  return p.switch_length > 0 && length > p.switch_length;
}

/// Growth of dynamic NTK at `length`: theta is multiplied by alpha^(d / (d - 2)).
ROPE_HD double alpha(const FrequencyParams& p, std::int64_t length) {
  if (p.dynamic_factor == 0.0 || length <= p.dynamic_length) return 1.0;
  return p.dynamic_factor * static_cast<double>(length) / static_cast<double>(p.dynamic_length) -
         (p.dynamic_factor - 1.0);
}

/// Frequency `j` in radians per position; `multiplier` is 1 for types without multipliers.
ROPE_HD double inv_freq(const FrequencyParams& p, int j, double alpha, double multiplier) {
  if (j >= p.rotated) return 0.0;
  double f = std::pow(p.theta, -2.0 * j / p.freq_dim);
  if (alpha != 1.0) f *= std::pow(alpha, -2.0 * j / (p.freq_dim - 2));
  double w = p.ramp_index * j + p.ramp_frequency * f + p.ramp_start;
  w = w < 0.0 ? 0.0 : (w > 1.0 ? 1.0 : w);
  return f * ((1.0 - w) / p.factor + w) * multiplier;
}

/// A frequency in radians per position as turns per position, in units of 2^-64, modulo one turn, rounded to nearest.
ROPE_HD std::uint64_t fixed_point_turns(double inv_freq) {
  constexpr double kHigh = 0.15915494309189535;    // 1 / (2 pi)
  constexpr double kLow = -9.839338337591243e-18;  // 1 / (2 pi) - kHigh
  const double x = std::fabs(inv_freq);            // the fraction of a small negative, 1 - x, would lose digits
  const double high = x * kHigh;
  double low = std::fma(x, kHigh, -high) + x * kLow;
  low -= std::floor(low + 0.5);  // whole turns, which frequencies beyond 2^52 have here
  const double fraction = high - std::floor(high);
  const double upper = std::floor(fraction * 4294967296.0);
  const double rest = (fraction * 4294967296.0 - upper) * 4294967296.0 + low * 18446744073709551616.0;
  const std::uint64_t turns = (static_cast<std::uint64_t>(upper) << 32) +
                              static_cast<std::uint64_t>(static_cast<std::int64_t>(std::floor(rest + 0.5)));
  return inv_freq < 0.0 ? 0 - turns : turns;
}

/// Phase in 2^-32 turns, modulo one turn exactly; negative positions by two's complement.
ROPE_HD std::uint32_t phase_of(std::int64_t position, std::uint64_t turns) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(position) * turns) >> 32);
}

/// Phase in 2^-32 turns of a product that is already in turns.
ROPE_HD std::uint32_t phase_of_turns(double turns) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>((turns - std::floor(turns)) * 4294967296.0));
}

/// a * b + c. On CUDA always one fma: for a negative constant `b` nvcc would emit a product and a difference, which
/// ptxas may or may not fuse. On CPUs, of which not every one has fma, the compiler decides.
ROPE_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

/// Sine and cosine of a phase, absolute errors below 1.5e-7 and 2.6e-7, so that a rotation errs by less than 4e-7.
///
/// Half turns are removed as integers: the rest lies in [-pi/2, pi/2], and an odd number of them flips both signs.
ROPE_HD void sin_cos(std::uint32_t phase, float& sine, float& cosine) {
  const float x = static_cast<float>(static_cast<std::int32_t>(phase << 1)) * 7.314590396335798e-10F;  // pi / 2^32
  const float x2 = x * x;
  const float s3 = x2 * 2.600054585855105e-06F - 0.00019806614727713168F;
  const float s = x + x * x2 * (-0.16666656732559204F + x2 * (0.008333017118275166F + x2 * s3));
  const float c4 = multiply_add(x2, -2.6077103143506974e-07F, 2.4761886379565112e-05F);
  const float c = 1.0F + x2 * (-0.5F + x2 * (0.04166664183139801F + x2 * (-0.00138884037733078F + x2 * c4)));
  const std::uint32_t flip = (phase + 0x40000000U) & 0x80000000U;
  std::uint32_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  bits ^= flip;
  std::memcpy(&sine, &bits, sizeof bits);
  std::memcpy(&bits, &c, sizeof bits);
  bits ^= flip;
  std::memcpy(&cosine, &bits, sizeof bits);
}

}  // namespace rope
