// What a thread of the CPU kernels keeps from call to call.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/spec.h"

namespace rope {

constexpr std::int32_t kBlockTokens = 256;    // tokens of a block, at most: 64 KiB of one head in bf16
constexpr std::int32_t kBlockFloats = 20992;  // a block's cosines; its sines take as many again (82 KiB each)
static_assert(kBlockFloats > kMaxPairs + 64);

/// Keeps the frequencies of the last spec and length, which all layers of a decode step share.
class FrequencyCache {
 public:
  const Frequencies& at(const Spec& spec, std::int64_t length);

 private:
  std::uint64_t spec_ = 0;
  std::int64_t length_ = 0;
  Frequencies made_;
};

/// Cosines and sines of a block of tokens, then those of second members where a caller's table has others.
struct alignas(64) Scratch {
  float data[4 * kBlockFloats];
};

struct ThreadState {
  explicit ThreadState(bool has_hardware_prefetch) : hardware_prefetch(has_hardware_prefetch) {}

  FrequencyCache frequencies, frequencies_before;
  std::unique_ptr<Scratch> scratch = std::make_unique_for_overwrite<Scratch>();
  std::vector<float> heads;  // what a norm holds of a head: see cpu/norm.h
  std::vector<float> rows;   // rotated k on its way to a cache: see cpu/append.h
  bool hardware_prefetch;    // the CPU follows sequential access well enough by itself (AMD): no software prefetch then
};

}  // namespace rope
