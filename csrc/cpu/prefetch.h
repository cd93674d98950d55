// Software prefetch of heads.
#pragma once

#include <cstdint>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/scratch.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

/// Software prefetch for each head: `bytes` from `distance` bytes past its first channel.
struct Prefetch {
  int distance = 0, bytes = 0;
};

/// Prefetches for a head, one cache line at a time. The loop is unrolled when bytes == USUAL.
template <int USUAL>
ROPE_INLINE void prefetch_head(const void* from, Prefetch prefetch) {
  if (prefetch.bytes == 0) return;
  const auto* first = static_cast<const char*>(from) + prefetch.distance;
  if (prefetch.bytes == USUAL) {
    for (int d = 0; d < USUAL; d += 64) __builtin_prefetch(first + d);
  } else {
    for (int d = 0; d < prefetch.bytes; d += 64) __builtin_prefetch(first + d);
  }
}

/// The prefetch of a job's heads. A CPU with a good hardware prefetcher needs none while a rotation goes through memory
/// in order. Where the rotation skips channels, or the halves of a head lie far apart, prefetching the whole head first
/// halves the time.
Prefetch prefetch_of(const Job& job, bool read_pairs, int size, const ThreadState& thread) {
  const Rotation& r = job.spec->rotation;
  if (!thread.hardware_prefetch) return {4096, 2 * r.num_pairs * size};
  const int skipped = (r.head_dim - 2 * r.num_pairs) * size;
  const bool is_out_of_order = skipped == 0 ? !read_pairs && r.distance * size >= 512 : job.in_place && skipped >= 64;
  const bool is_worth_it = 4 * r.num_pairs >= r.head_dim;
  return is_out_of_order && is_worth_it ? Prefetch{0, r.head_dim * size} : Prefetch{};
}

}  // namespace
}  // namespace rope::ROPE_ISA
