// What a launch of the CUDA kernels is given by value.
#pragma once

#include <cstdint>

#include "core/job.h"
#include "core/spec.h"

namespace rope::cuda {

/// Division of numbers below 1024 by a constant: a GPU has no instruction for it.
struct Divisor {
  std::uint32_t by = 1;
  std::uint32_t reciprocal = 1U << 20;  // ceil(2^20 / by)

  Divisor() = default;
  explicit Divisor(std::uint32_t n) : by(n), reciprocal(((1U << 20) + n - 1) / n) {}

  __device__ std::uint32_t quotient(std::uint32_t n) const { return n * reciprocal >> 20; }
};

/// Where the two chunks of a lane are in a row, in bytes from its first channel.
struct Chunks {
  std::int64_t apart;     // from the first chunk to the second
  std::int32_t first;     // of pair 0
  std::int32_t per_pair;  // what each pair before the lane's first one adds
  std::int32_t block;     // what a block adds, besides its pairs
};

/// q or k on its way in or out; strides in bytes, `step` that of every `head_slots`-th head.
struct Side {
  char* data;
  std::int64_t batch, token, head, step;
};

struct Tensor {
  Side from, to;
  std::int32_t heads;
};

/// What the entries of a table are.
enum class Entries : std::uint8_t {
  kTurns,    // 2^-64 turns per position, modulo one turn
  kRadians,  // float64 radians per position
};

/// An int64 per group, or (stride 0) one for all.
struct Lengths {
  const std::int64_t* data;
  std::int64_t stride;
};

/// Dynamic NTK: frequency j is multiplied by alpha^(power j), alpha = 1 + slope max(0, length - start).
struct Growth {
  std::int64_t start;
  double slope;  // 0: there is none
  double power;
};

/// Everything but the frequencies. Strides of positions are in elements.
struct Settings {
  Tensor q, k;  // k has no heads if there is none
  Chunks read, write;
  Span copied[3];  // bytes of a head that do not turn
  std::int32_t num_copied;
  std::int32_t head_bytes;
  bool in_place;
  bool exchanges;  // threads of a row write where others of them read
  // how threads are laid over a block: lanes of a row, then heads, then tokens
  Divisor lanes;
  std::int32_t head_slots;
  std::int32_t head_slots_log2;
  std::int32_t token_slots;
  // tokens
  std::uint32_t count;
  std::uint32_t tokens_per_batch;
  std::uint64_t batches_per_token;  // ceil(2^64 / tokens_per_batch), as far as that fits
  bool batched;                     // else all tokens are of one batch entry
  Packed packed;
  // angles
  Positions positions;
  Lengths offset, seq_len, from_seq_len;
  Growth growth;
  std::int64_t switch_length;
  float scaling, long_scaling;
  std::int32_t jump;      // pairs between a lane's two chunks, where these are halves of a row
  std::int32_t long_row;  // entries from the initial row of the table to the long one
  Divisor block_pairs;
  Entries entries;
  Phase phase;
  Number table_dtype;
  bool inverse;
};

constexpr int kIndexBits = 10;

/// `ENTRIES` frequencies: a row by pair, or an initial and a long one.
template <int ENTRIES, int PAIRS>
struct Params {
  static constexpr int kEntries = ENTRIES;

  Settings at;
  std::uint64_t entries[ENTRIES];  // see Entries
  std::uint16_t places[PAIRS];     // position row << kIndexBits | frequency index
};

/// 3 KB: every head up to 256 channels with two rows of frequencies, up to 512 with one.
using SmallParams = Params<256, 256>;
/// 19 KB, under the limit of 32,764 bytes.
using LargeParams = Params<2 * kMaxPairs, kMaxPairs>;

}  // namespace rope::cuda
