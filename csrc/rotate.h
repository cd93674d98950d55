// One call of the operator as raw pointers, and where the members of a pair are. No torch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "frequency.h"

namespace rope {

enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };
enum class Pairing : std::uint8_t { kHalf, kInterleaved, kInterleavedToHalf };
enum class Phase : std::uint8_t { kExact, kFloat32 };
enum class Number : std::uint8_t { kNone, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };

/// The geometry of one head and the arithmetic of its angles: see rope_kernels/rotation.py, whose fields these are.
struct Rotation {
  std::int32_t head_dim = 0;
  std::int32_t num_pairs = 0;
  std::int32_t distance = 0;
  std::int32_t rotary_offset = 0;
  std::int32_t blocks = 1;
  Pairing pairing = Pairing::kHalf;
  Phase phase = Phase::kExact;
  Number table_dtype = Number::kNone;
  std::vector<std::int32_t> axis;        // position row per pair; empty with one row of positions
  std::vector<std::int32_t> freq_index;  // frequency per pair; empty for the identity

  [[nodiscard]] std::int32_t frequency_of(std::int32_t pair) const {
    return freq_index.empty() ? pair : freq_index[static_cast<std::size_t>(pair)];
  }
};

/// Channels [first, last) that do not turn.
struct Span {
  std::int32_t first;
  std::int32_t last;
};

constexpr std::int32_t kMaxPairs = 1024;
constexpr std::int32_t kBlockTokens = 256;   // at most, that a head's are rotated of in one go: 64 KiB in bf16
constexpr std::int32_t kKindFloats = 20992;  // for their cosines, and as many for the sines: 82 KiB
static_assert(kKindFloats > kMaxPairs + 64);

/// The frequencies of a call, in the order in which a kernel keeps its cosines.
///
/// `split` order has the even pairs before the odd ones, for kernels that read two neighbours of a half as one word.
struct Frequencies {
  std::vector<std::uint32_t> low, high;              // halves of the fixed-point turns per position
  std::vector<std::uint32_t> split_low, split_high;  // the same, in split order
  std::vector<double> radians;                       // natural order, for floating positions and fp32 phases
};

/// Everything of a spec that does not change from call to call.
struct Plan {
  std::uint64_t id = 0;  // no two parsed specs of a process share one
  FrequencyParams params;
  Rotation rotation;
  std::vector<std::vector<double>> multipliers;
  Frequencies initial;  // what counts up to the switch, or where no length is given
  Frequencies beyond;   // the long row; empty where there is none
  std::vector<Span> untouched;
  std::int32_t axes = 1;
  bool splits = false;  // whether the half pairs can be read as words of two neighbours

  [[nodiscard]] Frequencies at(double alpha, bool is_long) const;
};

/// The frequencies at one length, kept until another length or plan comes by: the layers of a decode step share both.
class FrequencyCache {
 public:
  const Frequencies& at(const Plan& plan, std::int64_t length);

 private:
  std::uint64_t plan_ = 0;
  std::int64_t length_ = 0;
  Frequencies made_;
};

/// Cosines and sines of a block of tokens, and those of second members.
struct alignas(64) Floats {
  float data[4 * kKindFloats];
};

/// What a thread keeps from call to call, and knows of its machine.
struct Thread {
  explicit Thread(bool machine_reads_ahead) : reads_ahead(machine_reads_ahead) {}

  FrequencyCache frequencies, frequencies_before;
  std::unique_ptr<Floats> floats = std::make_unique_for_overwrite<Floats>();
  bool reads_ahead;  // the machine by itself, as long as it is asked for one line after the other
};

/// Parses rope_kernels.spec's text. Throws std::invalid_argument naming the field.
Plan parse_plan(const std::string& spec);

struct Strides {
  std::int64_t batch = 0;
  std::int64_t token = 0;
  std::int64_t head = 0;
};

/// q or k, and where it goes: in elements, from the first channel of the first head.
struct Rows {
  const void* in = nullptr;
  void* out = nullptr;
  std::int64_t heads = 0;
  Strides from;
  Strides to;
};

struct Positions {
  const void* data = nullptr;
  Number kind = Number::kNone;  // kNone: counted
  std::int64_t axis = 0;
  std::int64_t batch = 0;
  std::int64_t token = 0;
};

/// An int64 per group, or one for all.
struct PerGroup {
  const std::int64_t* data = nullptr;
  std::int64_t count = 0;
  std::int64_t stride = 0;

  [[nodiscard]] std::int64_t operator[](std::int64_t group) const { return data[count > 1 ? group * stride : 0]; }
};

struct Packed {
  const void* bounds = nullptr;
  bool wide = false;  // int64
  std::int64_t sequences = 0;
  std::int64_t stride = 1;

  [[nodiscard]] std::int64_t bound(std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(bounds)[i * stride]
                : static_cast<const std::int32_t*>(bounds)[i * stride];
  }
};

/// A caller's cosines and sines, one kind of number: (batch or 1, tokens, rotary_dim), channels under `head`.
struct Table {
  const void* cosine = nullptr;
  const void* sine = nullptr;
  Number kind = Number::kNone;
  Strides cosine_strides, sine_strides;
};

/// One call: see rope_kernels/backends/inputs.py for what the fields mean.
struct Job {
  const Plan* plan = nullptr;
  Rows rows[2];
  std::int32_t num_rows = 0;
  DType dtype = DType::kFloat32;
  std::int64_t batch = 0;
  std::int64_t tokens = 0;
  Positions positions;
  PerGroup offset, seq_len, from_seq_len;
  Packed packed;
  Table table;  // where given, what turns, instead of positions and frequencies
  bool inverse = false;
  bool unscaled = false;
  bool in_place = false;
  bool words = false;      // all rows are aligned to words of two 16-bit elements
  bool streaming = false;  // stores pass by the caches: for given buffers larger than those

  /// Whether a head's next token is nearer than the token's next head: then a head's tokens are rotated in one go.
  [[nodiscard]] bool is_head_first() const {
    return packed.bounds == nullptr && rows[0].heads > 1 && rows[0].from.token < rows[0].from.head;
  }
};

/// Rotates tokens [first, last) of the flattened (batch, tokens), on the best instruction set of this machine.
void rotate_cpu(const Job& job, std::int64_t first, std::int64_t last);

/// Names of the instruction sets built in, best first, and which one runs. `force_isa("")` returns to the best.
std::vector<std::string> isas();
std::string current_isa();
bool force_isa(const std::string& name);

}  // namespace rope
