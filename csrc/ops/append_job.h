// From the tensors of a call that stores in a KV cache to an Append.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/append.h"
#include "core/job.h"
#include "core/spec.h"
#include "ops/norm_job.h"
#include "ops/tensor_job.h"

namespace rope::ops {

/// The tensors of such a call, as in rope_kernels/ops/append_operators.py.
struct AppendTensors {
  View q, slots, q_out;
  MaybeView k, v, q_weight, k_weight, v_weight, k_scale, v_scale, k_out, k_cache, v_cache;
};

inline Stored stored_as(const View& cache, const View& q) {
  if (cache.dtype == q.dtype) return Stored::kAsIs;
  if (cache.dtype == aoti_torch_dtype_float8_e4m3fn()) return Stored::kFloat8E4M3;
  if (cache.dtype == aoti_torch_dtype_float8_e5m2()) return Stored::kFloat8E5M2;
  STD_TORCH_CHECK(cache.dtype == aoti_torch_dtype_int8(), "cache: dtype");
  return Stored::kInt8;
}

inline PagedCache cache_of(const char* name, const View& cache, const MaybeView& scale, const View& q,
                           std::int64_t heads, std::int64_t width) {
  STD_TORCH_CHECK(cache.dim == 4 && cache.size[2] == heads && cache.size[3] == width && cache.stride[3] == 1, name,
                  ": must be (pages, page_size, heads, width), with last stride 1");
  PagedCache made{cache.data, cache.stride[0], cache.stride[1], cache.stride[2], stored_as(cache, q)};
  STD_TORCH_CHECK(scale.has_value() == (made.stored != Stored::kAsIs), name, ": a scale goes with numbers of 8 bits");
  if (!scale) return made;
  const bool fits = scale->dim == 0 || (scale->dim == 1 && (scale->size[0] == 1 || scale->size[0] == heads));
  STD_TORCH_CHECK(fits && scale->dtype == aoti_torch_dtype_float32(), name, ": scale must be float32 (1,) or (heads,)");
  made.scale = static_cast<const float*>(scale->data);
  made.scale_stride = scale->dim == 1 && scale->size[0] > 1 ? scale->stride[0] : 0;
  return made;
}

inline Slots slots_of(const View& slots, const View& cache, const Job& job, const Layout& l) {
  const bool wide = slots.dtype == aoti_torch_dtype_int64();
  const bool is_flat = slots.dim == 1 && slots.size[0] <= job.batch * job.tokens;
  const bool is_grid = l.batch >= 0 && slots.dim == 2 && slots.size[0] == job.batch && slots.size[1] == job.tokens &&
                       (slots.stride[0] == slots.size[1] * slots.stride[1] || job.batch == 1);
  STD_TORCH_CHECK((is_flat || is_grid) && (wide || slots.dtype == aoti_torch_dtype_int32()),
                  "slots: must be int32 or int64, (tokens,) or fewer, or (batch, seq)");
  Slots made{slots.data,    wide,         slots.stride[slots.dim - 1], slots.size[0] * (is_grid ? slots.size[1] : 1),
             cache.size[0], cache.size[1]};
  return made;
}

/// Whether each slot is negative or one of the cache's. Reads the memory of slots.
inline bool are_in_cache(const Slots& slots) {
  const std::int64_t end = slots.pages * slots.page_size;
  for (std::int64_t i = 0; i < slots.count; ++i) {
    if (slots[i] >= end) return false;
  }
  return true;
}

/// A call's Append, and the factors of its norms. Everything about the tensors is checked, but for slots' values.
class AppendJob {
 public:
  Append append;

  AppendJob(const AppendTensors& t, const IndexTensors& at, std::string_view text)
      : AppendJob(t, at, text, operation_of(text)) {}

 private:
  NormWeights weights_;

  AppendJob(const AppendTensors& t, const IndexTensors& at, std::string_view text, const Operation& operation)
      : append(of_job(
            job_of(t.q, pointer_to(t.k), t.q_out, t.k ? pointer_to(t.k_out ? t.k_out : t.k) : nullptr, at, text))),
        weights_(append.job, operation, t.q, t.q_weight, t.k_weight) {
    const Job& job = append.job;
    const Layout& l = operation.layout;
    STD_TORCH_CHECK(
        t.k.has_value() == t.k_cache.has_value() && t.v.has_value() == t.v_cache.has_value() && (t.k || t.v),
        "cache: must have k where k is given, and v where v is");
    STD_TORCH_CHECK((t.k || !t.k_out) && !job.inverse && job.from_seq_len.count == 0, "spec: a cache holds rotated k");
    if (t.k && !t.k_out) append.job.operands[1].out = nullptr;
    if (t.k) {
      append.k_cache =
          cache_of("k_cache", *t.k_cache, t.k_scale, t.q, job.operands[1].heads, job.spec->rotation.head_dim);
    }
    if (t.v) give_v(*t.v, t, operation, l);
    const View& cache = t.k_cache ? *t.k_cache : *t.v_cache;
    if (t.k_cache && t.v_cache) {
      const bool same = t.k_cache->size[0] == t.v_cache->size[0] && t.k_cache->size[1] == t.v_cache->size[1];
      STD_TORCH_CHECK(same, "v_cache: must have k_cache's pages and page size");
    }
    append.slots = slots_of(t.slots, cache, job, l);
  }

  static Append of_job(const Job& job) {
    Append made;
    made.job = job;
    return made;
  }

  void give_v(const View& v, const AppendTensors& t, const Operation& operation, const Layout& l) {
    const View& q = t.q;
    const bool fits = v.dim == q.dim && v.dtype == q.dtype && v.size[l.tokens] == q.size[l.tokens] &&
                      rope::ops::at(v.size, l.batch, 1) == rope::ops::at(q.size, l.batch, 1) &&
                      (v.stride[v.dim - 1] == 1 || v.is_empty());
    STD_TORCH_CHECK(fits, "v: does not match q");
    append.v = v.data;
    append.v_heads = v.size[l.heads];
    append.v_width = v.size[v.dim - 1];
    append.v_strides = strides_of(v, l);
    append.v_cache = cache_of("v_cache", *t.v_cache, t.v_scale, q, append.v_heads, append.v_width);
    weights_.give(append.v_norm, 2, operation.norms[2], t.v_weight, append.v_width);
  }
};

}  // namespace rope::ops
