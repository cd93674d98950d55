// The order in which heads are visited, and the numbers of pairs that have specialised code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/job.h"
#include "cpu/cos_sin.h"
#include "cpu/vectors.h"

namespace rope::ROPE_ISA {
namespace {

constexpr int kRegisters = ROPE_VECTOR == 64 ? 32 : 16;  // for vectors
constexpr std::int64_t kGroupHeads = 8;                  // heads visited together, at most
constexpr std::int64_t kGroupBytes = 4096;               // and their bytes per token, at most

/// Bytes of the widest vector whose lanes divide n.
constexpr int vector_for(int n) {
  int bytes = ROPE_VECTOR;
  while (n % (bytes / 4) != 0) bytes /= 2;
  return bytes;
}

/// Calls `heads` with the number of pairs as a constant if it is a usual one; returns whether it is.
template <class HEADS>
ROPE_INLINE bool with_usual_pairs(int num_pairs, const HEADS& heads) {
  switch (num_pairs) {
    case 16:
      return heads(std::integral_constant<int, 16>()), true;
    case 32:
      return heads(std::integral_constant<int, 32>()), true;
    case 40:
      return heads(std::integral_constant<int, 40>()), true;
    case 48:
      return heads(std::integral_constant<int, 48>()), true;
    case 64:
      return heads(std::integral_constant<int, 64>()), true;
    case 128:
      return heads(std::integral_constant<int, 128>()), true;
    default:
      return false;
  }
}

/// Where q's or k's heads of a block of tokens are read and written: the first rotated channel of the first head.
template <class T>
struct Heads {
  const T* x;
  T* y;
  const Operand& operand;

  Heads(const Job& job, const Block& block, int i)
      : x(static_cast<const T*>(job.operands[i].in) + first(job, block, job.operands[i].from)),
        y(static_cast<T*>(job.operands[i].out) + first(job, block, job.operands[i].to)),
        operand(job.operands[i]) {}

  static std::int64_t first(const Job& job, const Block& block, const Strides& s) {
    return block.batch * s.batch + block.token * s.token + job.spec->rotation.rotary_offset;
  }
};

/// Calls `head(x, y, cos_sin)` for all heads of the tokens of a block, q's and then k's, and `take(cos_sin)` whenever
/// the token changes. With several tokens, heads are visited in small groups so that each head's tokens are read in
/// sequence.
template <class T, class TAKE, class HEAD>
ROPE_INLINE void for_each_head(const Job& job, const Block& block, const TAKE& take, const HEAD& head) {
  if (block.count == 1) {
    const CosSin cos_sin = block[0];
    take(cos_sin);
    for (int i = 0; i < job.num_operands; ++i) {
      auto [x, y, operand] = Heads<T>(job, block, i);
      for (std::int64_t h = 0; h < operand.heads; ++h, x += operand.from.head, y += operand.to.head)
        head(x, y, cos_sin);
    }
    return;
  }
  const std::int64_t bytes = 2 * job.spec->rotation.num_pairs * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t group = std::clamp<std::int64_t>(kGroupBytes / bytes, 1, kGroupHeads);
  for (int i = 0; i < job.num_operands; ++i) {
    const auto [x, y, operand] = Heads<T>(job, block, i);
    for (std::int64_t first = 0; first < operand.heads; first += group) {
      const std::int64_t end = std::min(first + group, operand.heads);
      for (int j = 0; j < block.count; ++j) {
        const CosSin cos_sin = block[j];
        take(cos_sin);
        for (std::int64_t h = first; h < end; ++h) {
          head(x + h * operand.from.head + j * operand.from.token, y + h * operand.to.head + j * operand.to.token,
               cos_sin);
        }
      }
    }
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
