// From torch tensors, read through the stable ABI, to a Job.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/job.h"
#include "core/spec.h"

namespace rope::ops {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

/// A tensor's metadata, read once: each accessor is a call through the ABI.
struct View {
  void* data = nullptr;
  const std::int64_t* size = nullptr;
  const std::int64_t* stride = nullptr;
  std::int64_t dim = 0;
  std::int32_t dtype = 0;
  std::int32_t device_type = 0;
  std::int32_t device_index = 0;

  View() = default;

  [[nodiscard]] bool is_empty() const { return std::find(size, size + dim, 0) != size + dim; }

  [[nodiscard]] bool is_with(const View& q) const {
    return device_type == q.device_type && device_index == q.device_index;
  }

  /// `q`: the tensor whose device this one must be on.
  View(const char* name, const Tensor& t, const View* q = nullptr) {
    std::int64_t *sizes, *strides;
    aoti_torch_get_device_type(t.get(), &device_type);
    aoti_torch_get_device_index(t.get(), &device_index);
    STD_TORCH_CHECK(q == nullptr || is_with(*q), name, ": is not on q's device");
    aoti_torch_get_data_ptr(t.get(), &data);
    aoti_torch_get_sizes(t.get(), &sizes);
    aoti_torch_get_strides(t.get(), &strides);
    aoti_torch_get_dim(t.get(), &dim);
    aoti_torch_get_dtype(t.get(), &dtype);
    size = sizes;
    stride = strides;
  }
};

constexpr std::size_t kKeptOperations = 1024;  // as many as parse_text of rope_kernels/core/spec.py keeps

/// Parses a text, or finds it among those parsed lately. A thread nearly always repeats its last text.
///
/// The result is valid until this thread asks for another text. When the table is full it is emptied; each thread still
/// holds the operation it uses.
inline const Operation& operation_of(std::string_view text) {
  thread_local std::string last;
  thread_local std::shared_ptr<const Operation> operation;
  if (operation != nullptr && text == last) return *operation;
  static std::mutex mutex;
  static auto* operations = new std::unordered_map<std::string, std::shared_ptr<const Operation>>();
  const std::lock_guard lock(mutex);
  auto found = operations->find(std::string(text));
  if (found == operations->end()) {
    auto made = std::make_shared<const Operation>(parse_text(text));
    if (operations->size() >= kKeptOperations) operations->clear();
    found = operations->emplace(text, std::move(made)).first;
  }
  last = text;
  operation = found->second;
  return *operation;
}

inline std::int64_t at(const std::int64_t* of, int dim, std::int64_t missing) { return dim < 0 ? missing : of[dim]; }

inline Strides strides_of(const View& v, const Layout& l) {
  return {at(v.stride, l.batch, 0), v.stride[l.tokens], v.stride[l.heads]};
}

inline DType dtype_of(std::int32_t dtype) {
  static const std::int32_t f32 = aoti_torch_dtype_float32(), f16 = aoti_torch_dtype_float16();
  static const std::int32_t bf16 = aoti_torch_dtype_bfloat16();
  if (dtype == bf16) return DType::kBFloat16;
  if (dtype == f32) return DType::kFloat32;
  STD_TORCH_CHECK(dtype == f16, "q: dtype, allowed are float32, float16, bfloat16");
  return DType::kFloat16;
}

inline Number number_of(std::int32_t dtype) {
  if (dtype == aoti_torch_dtype_int64()) return Number::kInt64;
  if (dtype == aoti_torch_dtype_int32()) return Number::kInt32;
  if (dtype == aoti_torch_dtype_float32()) return Number::kFloat32;
  if (dtype == aoti_torch_dtype_float64()) return Number::kFloat64;
  if (dtype == aoti_torch_dtype_float16()) return Number::kFloat16;
  STD_TORCH_CHECK(dtype == aoti_torch_dtype_bfloat16(), "positions: dtype");
  return Number::kBFloat16;
}

inline Operand operand_of(const char* name, const View& x, const View& y, const View& q, const Layout& l) {
  const bool fits = x.dim == q.dim && x.dtype == q.dtype && x.size[x.dim - 1] == q.size[q.dim - 1] &&
                    x.size[l.tokens] == q.size[l.tokens] && at(x.size, l.batch, 1) == at(q.size, l.batch, 1);
  STD_TORCH_CHECK(fits, name, ": does not match q");
  // No element of an empty tensor is read, and contiguous() does not change its strides.
  STD_TORCH_CHECK((x.stride[x.dim - 1] == 1 && y.stride[y.dim - 1] == 1) || x.is_empty(), name,
                  ": last stride must be 1");
  STD_TORCH_CHECK(y.dim == x.dim && y.dtype == x.dtype && !std::memcmp(y.size, x.size, sizeof(*x.size) * x.dim), name,
                  ": the output does not match it");
  return {x.data, y.data, x.size[l.heads], strides_of(x, l), strides_of(y, l)};
}

/// (axes, batch or 1, tokens) strides of the forms that the public API takes; see rope_kernels/core/layouts.py.
inline Positions positions_of(const View& p, const Job& job, const Layout& l) {
  const std::int32_t axes = job.spec->axes;
  const auto fits_batch = [&](std::int64_t size) { return size == 1 || size == job.batch; };
  bool fits = p.dim >= 1 && p.size[p.dim - 1] == job.tokens;
  if (p.dim == 2) fits = fits && (l.batch < 0 ? axes > 1 && p.size[0] == axes : fits_batch(p.size[0]));
  if (p.dim == 3) fits = fits && l.batch >= 0 && axes > 1 && p.size[0] == axes && fits_batch(p.size[1]);
  STD_TORCH_CHECK(fits && p.dim <= 3, "positions: shape");
  const auto stride = [&](std::int64_t dim) { return p.size[dim] == 1 ? 0 : p.stride[dim]; };
  Positions out{p.data, number_of(p.dtype), 0, 0, p.stride[p.dim - 1]};
  if (p.dim == 3) out.axis = stride(0);
  if (p.dim == 2 && l.batch < 0) out.axis = stride(0);
  if (p.dim >= 2 && l.batch >= 0) out.batch = stride(p.dim - 2);
  return out;
}

using MaybeView = std::optional<View>;

/// A tensor on q's device, if it is given.
inline MaybeView maybe_view(const char* name, const MaybeTensor& t, const View& q) {
  return t ? MaybeView(View(name, *t, &q)) : MaybeView();
}

inline const View* pointer_to(const MaybeView& v) { return v ? &*v : nullptr; }

inline PerGroup per_group(const char* name, const MaybeView& v, std::int64_t groups) {
  if (!v) return {};
  const bool fits = v->dim == 1 && (v->size[0] == 1 || v->size[0] == groups);
  STD_TORCH_CHECK(fits && v->dtype == aoti_torch_dtype_int64(), name, ": must be int64, with 1 or ", groups,
                  " entries");
  return {static_cast<const std::int64_t*>(v->data), v->size[0], v->stride[0]};
}

inline Packed packed_of(const MaybeView& v) {
  if (!v) return {};
  const bool integer = v->dtype == aoti_torch_dtype_int64() || v->dtype == aoti_torch_dtype_int32();
  STD_TORCH_CHECK(v->dim == 1 && v->size[0] >= 2 && integer, "cu_seqlens: must be (sequences + 1,), int32 or int64");
  return {v->data, v->dtype == aoti_torch_dtype_int64(), v->size[0] - 1, v->stride[0]};
}

/// A job of q and k, without positions, frequencies or a table.
inline Job job_of_operands(const View& q, const View* k, const View& q_out, const View* k_out, const Layout& l) {
  STD_TORCH_CHECK(q.dim == l.rank(), "q: rank");
  Job job;
  job.dtype = dtype_of(q.dtype);
  job.batch = at(q.size, l.batch, 1);
  job.tokens = q.size[l.tokens];
  job.operands[0] = operand_of("q", q, q_out, q, l);
  job.num_operands = 1;
  if (k != nullptr) job.operands[job.num_operands++] = operand_of("k", *k, *k_out, q, l);
  return job;
}

/// What a call has besides q and k, on q's device.
struct IndexTensors {
  MaybeView positions, offset, seq_len, from_seq_len, cu_seqlens;
};

inline IndexTensors index_tensors(const View& q, const MaybeTensor& positions, const MaybeTensor& offset,
                                  const MaybeTensor& seq_len, const MaybeTensor& from_seq_len,
                                  const MaybeTensor& cu_seqlens) {
  const auto view = [&q](const char* name, const MaybeTensor& t) { return maybe_view(name, t, q); };
  return {view("positions", positions), view("offset", offset), view("seq_len", seq_len),
          view("from_seq_len", from_seq_len), view("cu_seqlens", cu_seqlens)};
}

/// The job of a call. Everything about the tensors is checked here, so nothing is written if it throws.
inline Job job_of(const View& q, const View* k, const View& q_out, const View* k_out, const IndexTensors& given,
                  std::string_view text) {
  const Operation& operation = operation_of(text);
  const Layout& l = operation.layout;
  Job job = job_of_operands(q, k, q_out, k_out, l);
  job.spec = &operation.spec;
  STD_TORCH_CHECK(q.size[q.dim - 1] == job.spec->rotation.head_dim, "q: head_dim");
  if (given.positions) job.positions = positions_of(*given.positions, job, l);
  job.packed = packed_of(given.cu_seqlens);
  STD_TORCH_CHECK(job.packed.bounds == nullptr || job.batch == 1, "cu_seqlens: packed sequences have no batch");
  const std::int64_t groups = job.packed.bounds != nullptr ? job.packed.sequences : job.batch;
  job.offset = per_group("offset", given.offset, groups);
  job.seq_len = per_group("seq_len", given.seq_len, groups);
  job.from_seq_len = per_group("from_seq_len", given.from_seq_len, groups);
  job.inverse = operation.inverse;
  job.unscaled = operation.unscaled;
  return job;
}

}  // namespace rope::ops
