// One call that rotates q and k and stores k and v in a paged KV cache, as raw pointers. No torch.
#pragma once

#include <cstdint>

#include "job.h"

namespace rope {

/// What a cache holds: elements of q's dtype, or numbers of 8 bits that are multiplied by a scale.
enum class Stored : std::uint8_t { kAsIs, kFloat8E4M3, kFloat8E5M2, kInt8 };

/// The cache of k's or v's heads: a pointer to the first channel of the first slot, strides in elements.
struct PagedCache {
  void* data = nullptr;  // nullptr: there is none
  std::int64_t page = 0, entry = 0, head = 0;
  Stored stored = Stored::kAsIs;
  const float* scale = nullptr;  // of head h: scale[h * scale_stride]
  std::int64_t scale_stride = 0;
};

/// Where tokens go, in the order of the flattened (batch, tokens): page * page_size + entry; a negative one is not
/// stored, nor are the tokens past `count`.
struct Slots {
  const void* data = nullptr;
  bool wide = false;  // int64, else int32
  std::int64_t stride = 1, count = 0;
  std::int64_t pages = 0, page_size = 0;

  [[nodiscard]] std::int64_t operator[](std::int64_t token) const {
    return wide ? static_cast<const std::int64_t*>(data)[token * stride]
                : static_cast<const std::int32_t*>(data)[token * stride];
  }
};

/// The job of q and k, and what is stored. Without an output of its own, k goes to its cache alone.
struct Append {
  Job job;
  PagedCache k_cache, v_cache;
  Slots slots;
  const void* v = nullptr;
  std::int64_t v_heads = 0, v_width = 0;
  Strides v_strides;
  HeadNorm v_norm;
  bool k_streaming = false, v_streaming = false;  // on the CPU: rows go to the cache by non-temporal stores
};

}  // namespace rope
