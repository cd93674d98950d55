// The cosines and sines of a block of tokens, and the place of a token.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/scratch.h"

namespace rope::ROPE_ISA {
namespace {

constexpr int kPad = ROPE_VECTOR / 4;  // floats that a masked vector may read past the last cosine

/// Cosines and sines of one token, in natural or split order; a caller's table may have others for second members.
/// One pointer: the distances from it are constants.
struct CosSin {
  float* cosine;
  [[nodiscard]] float* sine() const { return cosine + kBlockFloats; }
  [[nodiscard]] float* second_cosine() const { return cosine + 2 * kBlockFloats; }
  [[nodiscard]] float* second_sine() const { return cosine + 3 * kBlockFloats; }
};

/// The place of a token: `group` is its sequence, `counted` its index in it.
struct Place {
  std::int64_t batch, token, group, counted;
};

/// Consecutive tokens of a batch entry, and the cosines and sines of each.
class Block {
 public:
  std::int64_t batch = 0, token = 0;
  int count = 0;

  Block(int num_pairs, float* floats) : step_((num_pairs + kPad + 15) / 16 * 16), floats_(floats) {}

  [[nodiscard]] int capacity() const { return std::min(kBlockFloats / step_, kBlockTokens); }
  [[nodiscard]] CosSin operator[](int i) const { return {floats_ + i * step_}; }

 private:
  int step_;  // floats from a token to the next one
  float* floats_;
};

}  // namespace
}  // namespace rope::ROPE_ISA
