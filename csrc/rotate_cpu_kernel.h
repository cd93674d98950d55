// The CPU kernel of one instruction set. Included once per set with ROPE_ISA (its namespace) and ROPE_VECTOR (bytes).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "rotate.h"

namespace rope::ROPE_ISA {
namespace {

constexpr int kPad = ROPE_VECTOR / 4;  // a masked vector reads so far past the last cosine

#include "cpu_angles.h"

/// What to ask for at each head. A machine that reads ahead by itself needs nothing while a rotation goes through
/// memory in order; where it skips channels, or halves lie far apart, to ask for all lines of the head first takes half
/// the time.
Ahead ahead_of(const Job& job, bool read_pairs, int size, const Thread& thread) {
  const Rotation& r = job.plan->rotation;
  if (!thread.reads_ahead) return {4096, 2 * r.num_pairs * size};
  const int skipped = (r.head_dim - 2 * r.num_pairs) * size;
  const bool is_out_of_order = skipped == 0 ? !read_pairs && r.distance * size >= 512 : job.in_place && skipped >= 64;
  const bool is_worth_it = 4 * r.num_pairs >= r.head_dim;
  return is_out_of_order && is_worth_it ? Ahead{0, r.head_dim * size} : Ahead{};
}

template <class D, bool STREAM, bool TABLE = false>
void rotate_range(const Job& job, std::int64_t first, std::int64_t last, Thread& thread) {
  const Rotation& r = job.plan->rotation;
  const bool mixed = r.pairing == Pairing::kInterleavedToHalf, pairs = r.pairing == Pairing::kInterleaved;
  const bool plain = is_plain(job);
  const bool split = (plain || TABLE) && job.words && job.plan->splits && job.dtype == DType::kBFloat16;
  const bool read_pairs = pairs || (mixed && !job.inverse);
  const Ahead ahead = ahead_of(job, read_pairs, sizeof(typename D::T), thread);
  const Flags flags{split, read_pairs, pairs || (mixed && job.inverse), ahead};
  Work work;
  work.now = &thread.frequencies;
  work.before = &thread.frequencies_before;
  Block block(r.num_pairs, thread.floats->data);
  const std::int64_t most = job.is_head_first() ? block.capacity() : 1;
  for (std::int64_t flat = first; flat < last; flat += block.count) {
    Place at = place_of(job, flat, work.group);
    block.batch = at.batch;
    block.token = at.token;
    block.count = static_cast<int>(std::min({most, last - flat, job.tokens - at.token}));
    const bool outside = job.packed.bounds != nullptr && at.group == job.packed.sequences;
    bool same = true;
    for (int i = 0; i < block.count; ++i, ++at.token, ++at.counted) {
      copy_others(job, at, outside);
      if (outside) continue;
      if constexpr (TABLE) {
        const bool is_same = turns_of_table(job, at, block[i]);
        if (i == 0) same = is_same;
        if (is_same != same) block.count = i;  // a block's tokens are of one kind; this one begins the next
      } else {
        enter_group(job, at, work);
        if (plain) {
          plain_phases(job, at, work, split);
        } else {
          general_phases(job, at, work);
        }
        turns_of(job, work, block[i]);
      }
    }
    if (outside) continue;
    if (TABLE && !same) {
      rotate_block<D, STREAM, true>(job, flags, block);
      continue;
    }
    for (int i = 0; TABLE && split && i < block.count; ++i) split_turns(block[i], r.num_pairs);
    rotate_block<D, STREAM, false>(job, flags, block);
  }
#if defined(__x86_64__)
  if (STREAM) _mm_sfence();
#endif
}

}  // namespace

void rotate(const Job& job, std::int64_t first, std::int64_t last, Thread& thread) {
  const bool table = job.table.cosine != nullptr;
  switch (job.dtype) {
    case DType::kFloat32:
      if (table) return rotate_range<Float32, false, true>(job, first, last, thread);
      return job.streaming ? rotate_range<Float32, true>(job, first, last, thread)
                           : rotate_range<Float32, false>(job, first, last, thread);
    case DType::kBFloat16:
      if (table) return rotate_range<BFloat16, false, true>(job, first, last, thread);
      return job.streaming ? rotate_range<BFloat16, true>(job, first, last, thread)
                           : rotate_range<BFloat16, false>(job, first, last, thread);
    case DType::kFloat16:
      if (table) return rotate_range<Float16, false, true>(job, first, last, thread);
      return rotate_range<Float16, false>(job, first, last, thread);
  }
}

}  // namespace rope::ROPE_ISA
