// The parameters of a CUDA kernel, passed by value.
#pragma once

#include <cstdint>

#include "core/job.h"
#include "core/spec.h"
#include "cuda/launcher.h"

namespace rope::cuda {

/// Division of numbers below 1024 by a constant: a GPU has no instruction for it.
struct Divisor {
  std::uint32_t by = 1;
  std::uint32_t reciprocal = 1U << 20;  // ceil(2^20 / by)

  Divisor() = default;
  explicit Divisor(std::uint32_t n) : by(n), reciprocal(((1U << 20) + n - 1) / n) {}

  __device__ std::uint32_t quotient(std::uint32_t n) const { return n * reciprocal >> 20; }
};

/// Where the two chunks of a lane are in a head, in bytes from its first channel.
struct Chunks {
  std::int64_t apart;     // from the first chunk to the second
  std::int32_t first;     // of pair 0
  std::int32_t per_pair;  // added for each pair before the lane's first one
  std::int32_t block;     // added for each block of channels, besides its pairs
};

/// q or k, as read or as written. Strides in bytes; `step` leads from a head of a thread to its next one.
struct Side {
  char* data;
  std::int64_t batch, token, head, step;
};

struct Tensor {
  Side from, to;
  std::int32_t heads;
};

/// The unit of Params::entries.
enum class Entries : std::uint8_t {
  kTurns,    // 2^-64 turns per position, modulo one turn
  kRadians,  // float64 radians per position
};

/// An int64 per group, or (stride 0) one for all. Without `data` it is `number` for all: 0 where none was given.
struct Lengths {
  const std::int64_t* data;
  std::int64_t stride;
  std::int64_t number;
};

/// Dynamic NTK: frequency j is multiplied by alpha^(power j), alpha = 1 + slope max(0, length - start).
struct Growth {
  std::int64_t start;
  double slope;  // 0: no growth
  double power;
};

/// Everything but the frequencies. Strides of positions are in elements.
struct Settings {
  Tensor q, k;  // without k, k.heads is 0
  Chunks read, write;
  Span copied[3];  // bytes of a head that are not rotated
  std::int32_t num_copied;
  std::int32_t head_bytes;
  bool in_place;
  bool exchanges;  // threads of a head write where others read
  // the threads of a block: lanes of a head, then heads, then tokens
  Divisor lanes;
  std::int32_t head_slots;
  std::int32_t head_slots_log2;
  std::int32_t token_slots;
  // tokens
  std::uint32_t count;
  std::uint32_t tokens_per_batch;
  std::uint64_t batches_per_token;  // ceil(2^64 / tokens_per_batch), too large for 1
  bool batched;                     // else all tokens are taken as those of one batch entry
  Packed packed;
  // angles
  Positions positions;
  Lengths offset, seq_len, from_seq_len;
  Growth growth;
  std::int64_t switch_length;
  float scaling, long_scaling;
  std::int32_t jump;        // pairs between a lane's two chunks, if Tile::kSplit
  std::int32_t long_start;  // where the long frequencies begin in Params::entries
  Divisor block_pairs;
  Entries entries;
  Phase phase;
  Number table_dtype;
  bool inverse;
};

constexpr int kIndexBits = 10;
static_assert(kMaxCudaPairs == 1 << kIndexBits);  // also the most threads that a block can have

/// `ENTRIES` frequencies: the initial one of each pair, then the long ones, if there are any.
template <int ENTRIES, int PAIRS>
struct Params {
  static constexpr int kEntries = ENTRIES;

  Settings at;
  std::uint64_t entries[ENTRIES];  // see Entries
  std::uint16_t places[PAIRS];     // position axis << kIndexBits | frequency index
};

/// 3 KB: every head of up to 256 channels with long frequencies, of up to 512 without.
using SmallParams = Params<256, 256>;
/// 19 KB, under the limit of 32,764 bytes.
using LargeParams = Params<2 * kMaxCudaPairs, kMaxCudaPairs>;

}  // namespace rope::cuda
