// One call of the operator as raw pointers. No torch.
#pragma once

#include <cstdint>

#include "spec.h"

namespace rope {

enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

struct Strides {
  std::int64_t batch = 0;
  std::int64_t token = 0;
  std::int64_t head = 0;
};

/// q or k and its output: pointers to the first channel of the first head, strides in elements.
struct Operand {
  const void* in = nullptr;
  void* out = nullptr;
  std::int64_t heads = 0;
  Strides from;
  Strides to;

  [[nodiscard]] bool is_in_place() const { return in == out; }
};

struct Positions {
  const void* data = nullptr;
  Number kind = Number::kNone;  // kNone: counted from `offset`
  std::int64_t axis = 0;
  std::int64_t batch = 0;
  std::int64_t token = 0;
};

/// An int64 per group, or one for all. A group is a sequence: a batch entry, or one of the packed sequences.
struct PerGroup {
  const std::int64_t* data = nullptr;
  std::int64_t count = 0;
  std::int64_t stride = 0;
  bool is_number = false;  // one for all, in the memory of this process: a launch on a GPU takes it along

  [[nodiscard]] std::int64_t operator[](std::int64_t group) const { return data[count > 1 ? group * stride : 0]; }
};

/// cu_seqlens: the bounds of packed sequences.
struct Packed {
  const void* bounds = nullptr;
  bool wide = false;  // the bounds are int64, else int32
  std::int64_t sequences = 0;
  std::int64_t stride = 1;

  [[nodiscard]] std::int64_t bound(std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(bounds)[i * stride]
                : static_cast<const std::int32_t*>(bounds)[i * stride];
  }
};

/// A caller's cosines and sines, both of dtype `kind`: (batch or 1, tokens, rotary_dim), or with `rows` one for each
/// position, (rows, pairs), from which a call takes the rows of its positions. Strides::head is that of the channels.
struct Table {
  const void* cosine = nullptr;
  const void* sine = nullptr;
  Number kind = Number::kNone;
  Strides cosine_strides, sine_strides;
  std::int64_t rows = 0;
};

/// The norm of an operand's heads, and for the way back what its gradients need. A backward job's operands are the
/// gradients of the outputs and of the inputs.
struct HeadNorm {
  bool is_given = false;
  bool after_rope = false;
  float eps = 0;
  const float* factors = nullptr;  // on the CPU, of each channel; nullptr: 1
  const void* weight = nullptr;    // on a GPU, of each channel, to which `weight_offset` is added; nullptr: 1
  Number weight_kind = Number::kFloat32;
  std::int64_t weight_stride = 1;
  float weight_offset = 0;
  const void* x = nullptr;  // backward: the heads that were normed
  Strides x_strides;
  float* weight_grad = nullptr;  // backward: (parts, head_dim), the sums over each part's tokens
};

/// One call: see rope_kernels/backends/inputs.py for what the fields mean.
struct Job {
  const Spec* spec = nullptr;
  Operand operands[2];
  std::int32_t num_operands = 0;
  DType dtype = DType::kFloat32;
  std::int64_t batch = 0;
  std::int64_t tokens = 0;
  Positions positions;
  PerGroup offset, seq_len, from_seq_len;
  Packed packed;
  Table table;        // if given, it replaces frequencies, and without `rows` positions too
  HeadNorm norms[2];  // of the operands
  bool backward = false;
  std::int64_t parts = 1;  // backward, on a GPU: into how many parts the weights' gradients are summed
  bool inverse = false;
  bool unscaled = false;
  bool in_place = false;   // some operand is
  bool words = false;      // all operands are aligned to words of two 16-bit elements
  bool streaming = false;  // non-temporal stores: for given buffers larger than the caches

  [[nodiscard]] bool is_normed() const { return norms[0].is_given || norms[1].is_given; }

  /// Whether the tokens of a head lie closer together than the heads of a token. The CPU kernel then takes a block of
  /// tokens, and rotates it head by head.
  [[nodiscard]] bool is_head_first() const {
    return packed.bounds == nullptr && operands[0].heads > 1 && operands[0].from.token < operands[0].from.head;
  }
};

}  // namespace rope
