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

template <class D, bool STREAM, bool TABLE = false>
void rotate_range(const Job& job, std::int64_t first, std::int64_t last, Thread& thread) {
  const Rotation& r = job.plan->rotation;
  const Positions& p = job.positions;
  const bool integer = p.kind == Number::kNone || p.kind == Number::kInt32 || p.kind == Number::kInt64;
  const bool plain = integer && r.axis.empty() && r.phase == Phase::kExact && job.from_seq_len.count == 0;
  const bool mixed = r.pairing == Pairing::kInterleavedToHalf, pairs = r.pairing == Pairing::kInterleaved;
  const bool split = !TABLE && plain && job.words && job.plan->splits && job.dtype == DType::kBFloat16;
  const Flags flags{split, pairs || (mixed && !job.inverse), pairs || (mixed && job.inverse), thread.prefetch};
  Work work;
  work.now = &thread.frequencies;
  work.before = &thread.frequencies_before;
  for (std::int64_t flat = first; flat < last; ++flat) {
    const Place at = place_of(job, flat, work.group);
    const bool outside = job.packed.bounds != nullptr && at.group == job.packed.sequences;
    if constexpr (TABLE) {
      turns_of_table(job, at, work.turns);
    } else if (!outside) {
      enter_group(job, at, work);
      if (plain) {
        plain_phases(job, at, work, split);
      } else {
        general_phases(job, at, work);
      }
      turns_of(job, work);
    }
    for (int i = 0; !job.in_place && i < job.num_rows; ++i) {
      if (outside) {
        copy_channels(job, job.rows[i], at.batch, at.token, {0, r.head_dim});
      } else {
        copy_untouched(job, job.rows[i], at.batch, at.token);
      }
    }
    if (!outside) rotate_token<D, STREAM, TABLE>(job, flags, at, work.turns);
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
