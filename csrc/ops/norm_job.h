// From the weights of norms, as torch tensors, to the factors of a Job.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/job.h"
#include "core/spec.h"
#include "ops/launch.h"
#include "ops/tensor_job.h"

namespace rope::ops {

inline float widen_fp16(std::uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  float value = 0;
  if (exponent == 31) {
    value = fraction != 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else {
    const int whole = exponent == 0 ? fraction : fraction + 1024;
    value = std::ldexp(static_cast<float>(whole), (exponent == 0 ? 1 : exponent) - 25);
  }
  return (half & 0x8000U) != 0 ? -value : value;
}

inline float element(const View& v, std::int64_t i) {
  const char* data = static_cast<const char*>(v.data);
  if (v.dtype == aoti_torch_dtype_float32()) return reinterpret_cast<const float*>(data)[i];
  const std::uint16_t bits = reinterpret_cast<const std::uint16_t*>(data)[i];
  if (v.dtype == aoti_torch_dtype_float16()) return widen_fp16(bits);
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline void check_weight(const View& v, std::int64_t head_dim) {
  const bool is_floating = v.dtype == aoti_torch_dtype_float32() || v.dtype == aoti_torch_dtype_float16() ||
                           v.dtype == aoti_torch_dtype_bfloat16();
  STD_TORCH_CHECK(v.dim == 1 && v.size[0] == head_dim && is_floating,
                  "weight: must be (head_dim,), float32, float16 or bfloat16");
}

/// The norms of a job and their weights; as long as the job that points to them. On the CPU, kernels take what channels
/// are multiplied by; on a GPU, they read the weights themselves.
class NormWeights {
 public:
  /// Throws if a weight does not fit; nothing has been written then.
  NormWeights(Job& job, const Operation& operation, const View& q, const MaybeView& q_weight, const MaybeView& k_weight)
      : on_cuda_(is_on_cuda(q)) {
    const MaybeView* const weights[] = {&q_weight, &k_weight};
    for (int i = 0; i < 2; ++i) {
      const Norm& norm = operation.norms[i];
      STD_TORCH_CHECK(!norm.is_given || i < job.num_operands, "k: missing, and normed");
      STD_TORCH_CHECK(!norm.is_given || (!job.inverse && job.from_seq_len.count == 0), "spec: a norm cannot be undone");
      give(job.norms[i], i, norm, *weights[i], job.spec->rotation.head_dim);
    }
  }
  NormWeights(const NormWeights&) = delete;
  NormWeights& operator=(const NormWeights&) = delete;

  /// The norm of q's heads (`i` is 0), of k's (1) or of v's (2).
  void give(HeadNorm& made, int i, const Norm& norm, const MaybeView& weight, std::int64_t head_dim) {
    STD_TORCH_CHECK(norm.is_given || !weight, "spec: a weight is given and no norm");
    if (!norm.is_given) return;
    made.is_given = true;
    made.after_rope = norm.after_rope;
    made.eps = static_cast<float>(norm.eps);
    made.weight_offset = static_cast<float>(norm.weight_offset);
    if (!weight) return;
    check_weight(*weight, head_dim);
    if (on_cuda_) {
      made.weight = weight->data;
      made.weight_kind = number_of(weight->dtype);
      made.weight_stride = weight->stride[0];
    } else {
      made.factors = of_weight(i, *weight, made.weight_offset);
    }
  }

 private:
  /// Each NaN becomes one whose lower 16 bits are zeros: see round_bf16 of cpu/floats.h.
  const float* of_weight(int i, const View& v, float offset) {
    std::vector<float>& factors = made_[i];
    factors.resize(static_cast<std::size_t>(v.size[0]));
    for (std::int64_t c = 0; c < v.size[0]; ++c) {
      const float factor = element(v, c * v.stride[0]) + offset;
      factors[static_cast<std::size_t>(c)] = factor == factor ? factor : std::numeric_limits<float>::quiet_NaN();
    }
    return factors.data();
  }

  bool on_cuda_;
  std::vector<float> made_[3];
};

}  // namespace rope::ops
