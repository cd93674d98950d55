// Included before a .cu file that is compiled as plain C++: defines CUDA's keywords and runs kernels on this machine.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

#undef __global__
#undef __device__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __shared__
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

namespace standin {

/// Indices of the running thread.
extern uint3 thread_index, block_index;

/// Whether threads run from the last to the first.
extern bool backwards;

/// Runs `thread` as every thread of every block, each up to its next barrier before the next one goes on.
void run_grid(dim3 grid, dim3 block, const std::function<void()>& thread);

/// A barrier of the block.
void wait_for_block();

/// What each thread of a block has for the others of its warp.
extern float offered[1024];

}  // namespace standin

#define threadIdx standin::thread_index
#define blockIdx standin::block_index

static inline void __syncthreads() { standin::wait_for_block(); }

/// A shuffle that all threads of a block take part in, in as many steps.
static inline float __shfl_xor_sync(unsigned, float value, int step) {
  const unsigned self = threadIdx.x;
  standin::offered[self] = value;
  standin::wait_for_block();
  const float other = standin::offered[self ^ static_cast<unsigned>(step)];
  standin::wait_for_block();
  return other;
}

static inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }

static inline std::uint64_t __umul64hi(std::uint64_t a, std::uint64_t b) {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}

template <class To, class From>
static inline To standin_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static inline float __uint_as_float(std::uint32_t x) { return standin_bits<float>(x); }
static inline std::uint32_t __float_as_uint(float x) { return standin_bits<std::uint32_t>(x); }
static inline double __longlong_as_double(long long x) { return standin_bits<double>(x); }
static inline double __dmul_rn(double a, double b) { return a * b; }

template <class P>
cudaError_t cudaLaunchKernel(void (*kernel)(P), dim3 grid, dim3 block, void** arguments, std::size_t, cudaStream_t) {
  const auto params = std::make_unique<P>(*static_cast<P*>(arguments[0]));  // sanitizers notice reads beyond it
  standin::run_grid(grid, block, [&] { kernel(*params); });
  return cudaSuccess;
}
