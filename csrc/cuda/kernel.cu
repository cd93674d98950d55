// The CUDA kernels, and the launcher that runs a call as one launch.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "core/append.h"
#include "core/job.h"
#include "cuda/angles.cuh"
#include "cuda/append_kernel.cuh"
#include "cuda/append_plan.h"
#include "cuda/launcher.h"
#include "cuda/norm_backward.cuh"
#include "cuda/norm_kernel.cuh"
#include "cuda/norm_plan.h"
#include "cuda/params.cuh"
#include "cuda/plan.h"
#include "cuda/rows.cuh"
#include "cuda/table.cuh"
#include "cuda/tiles.cuh"

namespace rope::cuda {
namespace {

template <class T, class C>
__device__ inline void rotate_tensor(const Tensor& tensor, const Settings& at, const Place& place, int slot, int pair,
                                     bool rotated, const C& cos_sin) {
  Heads heads = heads_of(tensor, at, place, slot);
  const int block = at.block_pairs.quotient(pair);
  heads.x += offset_of(at.read, pair, block);
  heads.y += offset_of(at.write, pair, block);
  if (!rotated) heads.count = 0;
  if (T::kExchanges && at.exchanges) {
    rotate_together<T>(at, tensor, heads, cos_sin);
  } else {
    rotate_apart<T>(at, tensor, heads, cos_sin);
  }
}

/// Thread blocks that a multiprocessor shall hold at least: as many as the registers of a kernel allow without spills.
template <class T, bool GENERAL>
constexpr int kLeastBlocks = std::max(1, (GENERAL || T::kExchanges ? 640 : 1024) / T::kMaxThreads);

/// Rotates q and k by the angles or the table of `p`. A thread block has `token_slots` tokens, `head_slots` heads of
/// each, and a thread per lane of a head. A thread computes the cosines and sines of its pairs once, and rotates every
/// `head_slots`-th head by them.
template <class T, bool GENERAL, class P>
__global__ void __launch_bounds__(T::kMaxThreads, kLeastBlocks<T, GENERAL>) rotate_kernel(const __grid_constant__ P p) {
  const Settings& at = p.at;
  const int head = at.lanes.quotient(threadIdx.x);
  const int lane = threadIdx.x - head * at.lanes.by;
  const int slot = head & (at.head_slots - 1);
  std::uint32_t flat = blockIdx.x * at.token_slots + (head >> at.head_slots_log2);
  const bool inside = flat < at.count;
  if (!inside) {
    if (!T::kExchanges) return;
    flat = at.count - 1;
  }
  Place place = place_of(at, flat);
  if (inside) enter_row(p, place);
  const bool rotated = inside && place.rotated;
  if (!at.in_place && inside && !(rotated && at.num_copied == 0)) {
    copy_tensor<typename T::Unit>(at.q, at, place, slot, lane);
    if (at.k.heads > 0) copy_tensor<typename T::Unit>(at.k, at, place, slot, lane);
  }
  if (T::kExchanges || rotated) {
    const int pair = lane * (T::kSplit ? T::kPairs / 2 : T::kPairs);
    decltype(cos_sin_of<T::kPairs, T::kSplit, GENERAL>(p, place, pair)) cos_sin{};
    if (rotated) cos_sin = cos_sin_of<T::kPairs, T::kSplit, GENERAL>(p, place, pair);
    rotate_tensor<T>(at.q, at, place, slot, pair, rotated, cos_sin);
    if (at.k.heads > 0) rotate_tensor<T>(at.k, at, place, slot, pair, rotated, cos_sin);
  }
}

/// nullptr, or the text of `error` or of one that is pending: that is cleared, so that no later call reports it.
const char* outcome(cudaError_t error) {
  const cudaError_t pending = cudaGetLastError();
  if (error == cudaSuccess && pending == cudaSuccess) return nullptr;
  return cudaGetErrorString(error != cudaSuccess ? error : pending);
}

/// How many rows of thread slots a call has: one for each token, or for each part of the weights' gradients.
std::int64_t slots_of(const Job& job) { return job.backward ? job.parts : job.batch * job.tokens; }
std::int64_t slots_of(const Append& append) { return slots_of(append.job); }

template <class P, class CALL>
const char* launch(void (*kernel)(P), const CALL& call, const Shape& shape, void* stream) {
  P params;
  fill(call, shape, params);
  const std::int64_t slots = slots_of(call);
  const dim3 grid(static_cast<unsigned>((slots + shape.token_slots - 1) / shape.token_slots));
  const dim3 threads(static_cast<unsigned>(shape.lanes * shape.head_slots * shape.token_slots));
  void* arguments[] = {&params};
  return outcome(cudaLaunchKernel(kernel, grid, threads, arguments, 0, static_cast<cudaStream_t>(stream)));
}

template <class T, bool GENERAL, class P>
const char* launch(const Job& job, const Shape& shape, void* stream) {
  return launch(&rotate_kernel<T, GENERAL, P>, job, shape, stream);
}

/// The usual geometries: halves or neighbours, read and written alike, integer positions on one axis. The distance
/// between chunks is a constant for heads of 64, 96, 128 or 256 rotated channels.
template <class D, bool PAIRS>
const char* launch_usual(const Job& job, const Shape& shape, void* stream) {
  switch (shape.apart) {
    case 32:
      return launch<Tile<D, uint4, PAIRS, PAIRS, 32>, false, SmallParams>(job, shape, stream);
    case 48:
      return launch<Tile<D, uint4, PAIRS, PAIRS, 48>, false, SmallParams>(job, shape, stream);
    case 64:
      return launch<Tile<D, uint4, PAIRS, PAIRS, 64>, false, SmallParams>(job, shape, stream);
    case 128:
      return launch<Tile<D, uint4, PAIRS, PAIRS, 128>, false, SmallParams>(job, shape, stream);
    default:
      return launch<Tile<D, uint4, PAIRS, PAIRS, 0>, false, SmallParams>(job, shape, stream);
  }
}

template <class D, bool READ_PAIRS, bool WRITE_PAIRS>
const char* launch_pairing(const Job& job, const Shape& shape, void* stream) {
  if (shape.chunk == sizeof(uint2)) {
    return launch<Tile<D, uint2, READ_PAIRS, WRITE_PAIRS, 0>, true, SmallParams>(job, shape, stream);
  }
  using T = Tile<D, uint4, READ_PAIRS, WRITE_PAIRS, 0>;
  if (shape.general) return launch<T, true, SmallParams>(job, shape, stream);
  if constexpr (READ_PAIRS == WRITE_PAIRS) return launch_usual<D, READ_PAIRS>(job, shape, stream);
  return launch<T, false, SmallParams>(job, shape, stream);
}

/// By a caller's table.
template <class D>
const char* launch_table(const Job& job, const Shape& shape, void* stream) {
  if (shape.chunk == 0) return launch<Elements<D>, true, TableParams>(job, shape, stream);
  if (shape.read_pairs) return launch<Tile<D, uint4, true, true, 0>, true, TableParams>(job, shape, stream);
  return launch<Tile<D, uint4, false, false, 0>, true, TableParams>(job, shape, stream);
}

template <class T, bool GENERAL, class P>
const char* launch_rows(const Job& job, const Shape& shape, void* stream) {
  if (job.backward) return launch(&norm_backward_kernel<T, GENERAL, P>, job, shape, stream);
  return launch(&norm_kernel<T, GENERAL, P>, job, shape, stream);
}

template <class T, bool GENERAL, class P>
const char* launch_rows(const Append& append, const Shape& shape, void* stream) {
  return launch(&append_kernel<T, GENERAL, P>, append, shape, stream);
}

template <class D, bool READ_PAIRS, bool WRITE_PAIRS, class CALL>
const char* launch_norm_pairing(const CALL& call, const Shape& shape, void* stream) {
  using T = Tile<D, uint4, READ_PAIRS, WRITE_PAIRS, 0>;
  if (shape.general) return launch_rows<T, true, SmallParams>(call, shape, stream);
  return launch_rows<T, false, SmallParams>(call, shape, stream);
}

/// With a norm of q's heads, of k's or of both, for gradients, or with a cache.
template <class D, class CALL>
const char* launch_norm(const CALL& call, const Shape& shape, void* stream) {
  if (shape.chunk == 0) return launch_rows<Elements<D>, true, LargeParams>(call, shape, stream);
  if (!shape.read_pairs) return launch_norm_pairing<D, false, false>(call, shape, stream);
  if (shape.write_pairs) return launch_norm_pairing<D, true, true>(call, shape, stream);
  return launch_norm_pairing<D, true, false>(call, shape, stream);
}

template <class D>
const char* launch_dtype(const Job& job, const Shape& shape, void* stream) {
  if (goes_by_rows(job)) return launch_norm<D>(job, shape, stream);
  if (job.table.cosine != nullptr) return launch_table<D>(job, shape, stream);
  if (shape.chunk == 0) return launch<Elements<D>, true, LargeParams>(job, shape, stream);
  if (shape.read_pairs && shape.write_pairs) return launch_pairing<D, true, true>(job, shape, stream);
  if (shape.read_pairs) return launch_pairing<D, true, false>(job, shape, stream);
  if (shape.write_pairs) return launch_pairing<D, false, true>(job, shape, stream);
  return launch_pairing<D, false, false>(job, shape, stream);
}

template <class D>
const char* launch_dtype(const Append& append, const Shape& shape, void* stream) {
  return launch_norm<D>(append, shape, stream);
}

/// Finds the multiprocessors of the current device, which is asked once.
cudaError_t find_multiprocessors(int& count) {
  static std::array<std::atomic<int>, 64> known{};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const auto place = static_cast<std::size_t>(device) % known.size();
  count = known[place].load(std::memory_order_relaxed);
  if (count > 0) return cudaSuccess;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) known[place].store(count, std::memory_order_relaxed);
  return error;
}

Shape shape_for(const Job& job, int multiprocessors) {
  return goes_by_rows(job) ? norm_shape_of(job, multiprocessors) : shape_of(job, multiprocessors);
}
Shape shape_for(const Append& append, int multiprocessors) { return append_shape_of(append, multiprocessors); }

template <class CALL>
const char* launch_call(const CALL& call, DType dtype, void* stream) {
  if (is_empty(call)) return nullptr;
  if (const char* refused = refuse(call)) return refused;
  int multiprocessors = 0;
  if (const cudaError_t error = find_multiprocessors(multiprocessors); error != cudaSuccess) return outcome(error);
  const Shape shape = shape_for(call, multiprocessors);
  switch (dtype) {
    case DType::kFloat32:
      return launch_dtype<Float32>(call, shape, stream);
    case DType::kFloat16:
      return launch_dtype<Float16>(call, shape, stream);
    case DType::kBFloat16:
      return launch_dtype<BFloat16>(call, shape, stream);
  }
  return "unknown dtype";
}

}  // namespace
}  // namespace rope::cuda

extern "C" const char* rope_launch_cuda(const rope::Job* job, void* stream) {
  return rope::cuda::launch_call(*job, job->dtype, stream);
}

extern "C" const char* rope_launch_append_cuda(const rope::Append* append, void* stream) {
  return rope::cuda::launch_call(*append, append->job.dtype, stream);
}
