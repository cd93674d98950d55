// Runs a job on torch's threads.
#include "core/append.h"
#include "core/job.h"
#include "core/spec.h"
#include "cpu/rotate.h"
#include "cpu/scratch.h"
#include "cpu/work_sharing.h"
#include "ops/launch.h"

namespace rope::ops {
namespace {

constexpr std::int64_t kStreamingBytes = 8 << 20;         // larger than what the caches could keep for the next reader
constexpr std::int64_t kStreamingAppendBytes = 64 << 20;  // attention reads the cache next: only past the last level
constexpr std::int64_t kBytesPerThread = 128 << 10;

bool divides(const Strides& s, std::int64_t by) { return (s.batch | s.token | s.head) % by == 0; }

bool is_aligned(const void* address, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

bool aligned(const Operand& r, std::uintptr_t bytes, std::int64_t elements) {
  return is_aligned(r.in, bytes) && is_aligned(r.out, bytes) && divides(r.from, elements) && divides(r.to, elements);
}

/// Whether each row of a cache is whole cache lines, and holds what it is given.
bool is_streamable(const PagedCache& cache, std::int64_t width, std::int64_t size) {
  const std::int64_t line = 64 / size;
  return cache.data != nullptr && cache.stored == Stored::kAsIs && is_aligned(cache.data, 64) && width % line == 0 &&
         divides({cache.page, cache.entry, cache.head}, line);
}

/// Calls `body(first, last)` for ranges of tokens of `bytes` each, on torch's threads if they are many. A range has at
/// least `run` tokens where there are enough for all threads.
template <class BODY>
void in_parallel(std::int64_t tokens, std::int64_t bytes, std::int64_t run, const BODY& body) {
  const std::int64_t grain = 1 + kBytesPerThread / bytes;
  if (tokens <= grain) return body(0, tokens);
  const std::int64_t threads = torch::stable::get_num_threads();
  const std::int64_t parts = std::min(threads, (tokens + grain - 1) / grain);
  WorkSharing sharing(tokens, parts, std::max(grain, std::min(run, tokens / threads)));
  torch::stable::parallel_for(0, parts, 1, [&](std::int64_t a, std::int64_t b) {
    for (std::int64_t part = a; part < b; ++part) sharing.work(part, body);
  });
}

}  // namespace

void launch_cpu(Job& job, bool given) {
  const Rotation& rotation = job.spec->rotation;
  const std::int64_t size = job.dtype == DType::kFloat32 ? 4 : 2, tokens = job.batch * job.tokens;
  std::int64_t bytes = 0;
  job.words = true;
  bool streamable = given && !job.in_place && job.dtype != DType::kFloat16 && job.spec->untouched.empty() &&
                    rotation.num_pairs % 32 == 0 && rotation.pairing != Pairing::kInterleavedToHalf;
  for (int i = 0; i < job.num_operands; ++i) {
    bytes += job.operands[i].heads * rotation.head_dim * size;
    job.words = job.words && aligned(job.operands[i], 4, 2);
    streamable = streamable && aligned(job.operands[i], 64, 64 / size);
  }
  job.streaming = streamable && tokens * bytes > kStreamingBytes;
  if (tokens == 0 || bytes == 0) return;
  const std::int64_t run = job.is_head_first() ? kBlockTokens : 1;
  in_parallel(tokens, bytes, run, [&job](std::int64_t first, std::int64_t last) { rotate_cpu(job, first, last); });
}

void launch_append_cpu(Append& append) {
  Job& job = append.job;
  const std::int64_t size = job.dtype == DType::kFloat32 ? 4 : 2, tokens = job.batch * job.tokens;
  const std::int64_t head_dim = job.spec->rotation.head_dim;
  std::int64_t bytes = append.v_heads * append.v_width * size;
  job.words = true;
  job.in_place = false;
  for (int i = 0; i < job.num_operands; ++i) {
    const Operand& operand = job.operands[i];
    bytes += operand.heads * head_dim * size;
    // k's scratch memory is aligned.
    job.words = job.words && (operand.out == nullptr ? divides(operand.from, 2) && is_aligned(operand.in, 4)
                                                     : aligned(operand, 4, 2));
    job.in_place = job.in_place || operand.is_in_place();
  }
  if (tokens == 0 || bytes == 0) return;
  const bool past_caches = tokens * bytes > kStreamingAppendBytes;
  append.k_streaming = past_caches && is_streamable(append.k_cache, head_dim, size);
  append.v_streaming = past_caches && !append.v_norm.is_given && is_streamable(append.v_cache, append.v_width, size);
  in_parallel(tokens, bytes, 1, [&append](std::int64_t first, std::int64_t last) { append_cpu(append, first, last); });
}

void launch_cpu_in_parts(const Job& job, std::int64_t parts) {
  const std::int64_t tokens = job.batch * job.tokens, head_dim = job.spec->rotation.head_dim;
  const auto run = [&](std::int64_t part) {
    Job own = job;
    for (HeadNorm& norm : own.norms) {
      if (norm.weight_grad != nullptr) norm.weight_grad += part * head_dim;
    }
    rotate_cpu(own, tokens * part / parts, tokens * (part + 1) / parts);
  };
  if (parts == 1) return run(0);
  torch::stable::parallel_for(0, parts, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t part = first; part < last; ++part) run(part);
  });
}

}  // namespace rope::ops
