// The CPU kernel of one instruction set: a file of isa/ defines ROPE_ISA (its namespace) and ROPE_VECTOR (bytes of a
// vector), and includes this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <variant>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/job.h"
#include "core/spec.h"
#include "cpu/angles.h"
#include "cpu/append.h"
#include "cpu/cos_sin.h"
#include "cpu/floats.h"
#include "cpu/heads.h"
#include "cpu/norm.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/table.h"
#include "cpu/untouched.h"

namespace rope::ROPE_ISA {
namespace {

template <class D, bool STREAM, bool TABLE = false, bool NORM = false>
void rotate_range(const Job& job, std::int64_t first, std::int64_t last, ThreadState& thread) {
  const Rotation& r = job.spec->rotation;
  const bool mixed = r.pairing == Pairing::kInterleavedToHalf, pairs = r.pairing == Pairing::kInterleaved;
  const bool plain = is_plain(job);
  const bool split = (plain || TABLE) && (!NORM || has_usual_heads(job)) && job.words && job.spec->splits &&
                     job.dtype == DType::kBFloat16;
  const bool read_pairs = pairs || (mixed && !job.inverse);
  const Prefetch prefetch = prefetch_of(job, read_pairs, sizeof(typename D::T), thread);
  const Flags flags{split, read_pairs, pairs || (mixed && job.inverse), prefetch};
  [[maybe_unused]] std::conditional_t<NORM, UsualFactors, std::monostate> factors;
  Work work;
  work.now = &thread.frequencies;
  work.before = &thread.frequencies_before;
  Block block(r.num_pairs, thread.scratch->data);
  const std::int64_t most = job.is_head_first() ? block.capacity() : 1;
  for (std::int64_t flat = first; flat < last; flat += block.count) {
    Place at = place_of(job, flat, work.group);
    block.batch = at.batch;
    block.token = at.token;
    block.count = static_cast<int>(std::min({most, last - flat, job.tokens - at.token}));
    const bool outside = job.packed.bounds != nullptr && at.group == job.packed.sequences;
    bool same = true;
    for (int i = 0; i < block.count; ++i, ++at.token, ++at.counted) {
      if (!NORM || outside) copy_unchanged(job, at, outside);
      if (outside) continue;
      if constexpr (TABLE) {
        const bool is_same = cos_sin_of_table(job, at, block[i]);
        if (i == 0) same = is_same;
        if (is_same != same) block.count = i;  // tokens of a block take one path: this one begins the next block
      } else {
        enter_group(job, at, work);
        if (plain) {
          plain_phases(job, at, work, split);
        } else if (r.phase == Phase::kFloat32) {
          float32_angles(job, at, work);
        } else {
          general_phases(job, at, work);
        }
        cos_sin_of(job, work, block[i]);
      }
    }
    if (outside) continue;
    if constexpr (NORM) {
      norm_block<D>(job, flags, block, factors, thread);
      continue;
    }
    if (TABLE && !same) {
      rotate_block<D, STREAM, true>(job, flags, block);
      continue;
    }
    for (int i = 0; TABLE && split && i < block.count; ++i) split_cos_sin(block[i], r.num_pairs);
    rotate_block<D, STREAM, false>(job, flags, block);
  }
#if defined(__x86_64__)
  if (STREAM) _mm_sfence();
#endif
}

}  // namespace

void rotate(const Job& job, std::int64_t first, std::int64_t last, ThreadState& thread) {
  const bool table = job.table.cosine != nullptr;
  if (job.is_normed()) {
    switch (job.dtype) {
      case DType::kFloat32:
        return rotate_range<Float32, false, false, true>(job, first, last, thread);
      case DType::kBFloat16:
        return rotate_range<BFloat16, false, false, true>(job, first, last, thread);
      case DType::kFloat16:
        return rotate_range<Float16, false, false, true>(job, first, last, thread);
    }
  }
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
