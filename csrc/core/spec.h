// Spec: what the kernels need of a config, parsed from the operator's text; its layout and flags. No torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "frequency.h"

namespace rope {

enum class Pairing : std::uint8_t { kHalf, kInterleaved, kInterleavedToHalf };
enum class Phase : std::uint8_t { kExact, kFloat32 };
enum class Number : std::uint8_t { kNone, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };

constexpr std::int32_t kMaxPairs = 4096;  // rope_kernels/core/rotation.py has the same limit

/// The geometry of one head and the arithmetic of its angles, as in rope_kernels/core/rotation.py.
struct Rotation {
  std::int32_t head_dim = 0;
  std::int32_t num_pairs = 0;
  std::int32_t distance = 0;
  std::int32_t rotary_offset = 0;
  std::int32_t blocks = 1;
  Pairing pairing = Pairing::kHalf;
  Phase phase = Phase::kExact;
  Number table_dtype = Number::kNone;
  std::vector<std::int32_t> axis;        // position axis per pair; empty with one axis
  std::vector<std::int32_t> freq_index;  // frequency per pair; empty for the identity

  [[nodiscard]] std::int32_t frequency_of(std::int32_t pair) const {
    return freq_index.empty() ? pair : freq_index[static_cast<std::size_t>(pair)];
  }
};

/// Channels [first, last) that are not rotated.
struct Span {
  std::int32_t first;
  std::int32_t last;
};

/// The frequencies of a call, one per pair.
///
/// Split order has the even pairs before the odd ones, for the kernels that read two neighbours of a half as one word.
struct Frequencies {
  std::vector<std::uint32_t> low, high;              // halves of the fixed-point turns per position
  std::vector<std::uint32_t> split_low, split_high;  // the same, in split order
  std::vector<double> radians;                       // natural order, for floating positions and fp32 phases
};

/// What does not change from call to call: rope_kernels.core.spec.Spec, prepared for the kernels.
struct Spec {
  std::uint64_t id = 0;  // unique among the specs that a process parses
  FrequencyParams params;
  Rotation rotation;
  std::vector<std::vector<double>> multipliers;
  Frequencies initial;  // up to the switch length, and where no length is given
  Frequencies beyond;   // past the switch length; empty without one
  std::vector<Span> untouched;
  std::int32_t axes = 1;
  bool splits = false;  // whether half pairs can be read as words of two neighbours

  [[nodiscard]] Frequencies at(double alpha, bool is_long) const;
};

/// Which dimension of q and k is what; -1 where there is none. rope_kernels/core/layouts.py has the same table.
struct Layout {
  int batch, tokens, heads;

  [[nodiscard]] int rank() const { return batch < 0 ? 3 : 4; }
};

/// The norm of q's, k's or v's heads, as in rope_kernels/core/norms.py.
struct Norm {
  bool is_given = false;
  double eps = 0;
  double weight_offset = 0;
  bool after_rope = false;
};

/// A parsed text: what a call of the operator computes, and the layout of its tensors.
struct Operation {
  Spec spec;
  Layout layout;
  bool inverse = false;
  bool unscaled = false;
  Norm norms[3];  // of q, of k and of v
};

/// Parsers of the grammar in rope_kernels/core/spec.py. They throw std::invalid_argument, whose message begins with
/// "spec: " and names the key, the flag or the layout.
Spec parse_spec(std::string_view encoded);
Operation parse_text(std::string_view text);
Layout layout_of(std::string_view name);

}  // namespace rope
