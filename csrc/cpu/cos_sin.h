// The cosines and sines of a block of tokens, and where a token is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/scratch.h"

namespace rope::ROPE_ISA {
namespace {

constexpr int kPad = ROPE_VECTOR / 4;  // a masked vector reads so far past the last cosine

/// Cosines and sines of one token, in natural or split order; a caller's table may have its own for second members.
/// One pointer, and distances that compilers know.
struct CosSin {
  float* cosine;
  [[nodiscard]] float* sine() const { return cosine + kBlockFloats; }
  [[nodiscard]] float* second_cosine() const { return cosine + 2 * kBlockFloats; }
  [[nodiscard]] float* second_sine() const { return cosine + 3 * kBlockFloats; }
};

/// Where a token is: its sequence, and its place in it if positions are counted.
struct Place {
  std::int64_t batch, token, group, counted;
};

/// Neighbouring tokens of a batch's row, and what each of them turns by.
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
