// The operators of rope_kernels by the native kernels, through torch's stable ABI.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/rotate.h"
#include "ops/choice.h"
#include "ops/launch.h"
#include "ops/outputs.h"
#include "ops/table_job.h"
#include "ops/tensor_job.h"

namespace rope::ops {
namespace {

/// A new tensor like `x` that owns its memory.
struct Output {
  View view;
  Tensor tensor;

  explicit Output(const View& x) : Output(new_like(x)) {}

 private:
  explicit Output(const Made& made) : view(made.view), tensor(made.tensor) {}
};

/// What the operator in Python raised last in this thread, as rope_kernels_python_error() was told.
thread_local std::string python_error;

/// The message of an error in Python, without the type and the stack that torch writes around it.
std::string message_of(std::string_view text) {
  text = text.substr(0, text.find("\n\nAt:\n"));
  for (const std::string_view type : {"RuntimeError: ", "ValueError: "}) {
    if (text.substr(0, type.size()) == type) text.remove_prefix(type.size());
  }
  return std::string(text);
}

/// The error of a failed call through the dispatcher; torch has exported it since 2.13.
std::string last_error() {
  if (!python_error.empty()) return python_error;
  using What = const char* (*)();
  const auto what = reinterpret_cast<What>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* text = what != nullptr ? what() : nullptr;
  if (text == nullptr) return "the backend chosen with rope_kernels.use_backend failed (torch printed why)";
  return message_of(text);
}

/// Why a call cannot run in a process without Python.
std::string without_python(const View& q) {
  const std::string begin = "rope_kernels: this process has no Python, and ";
  if (backend_for(q) != Backend::kNative) return begin + "ROPE_KERNELS_BACKEND chose a backend that runs in Python";
#if defined(ROPE_WITH_CUDA)
  return begin + "the CUDA kernels rotate no more than 2048 channels of a head";
#else
  return begin + "the library was built without CUDA kernels";
#endif
}

/// Calls the same operator in Python, which runs every backend, for tensors like `q`. Its results take the place of the
/// arguments.
template <class... ARGUMENTS>
std::array<StableIValue, sizeof...(ARGUMENTS)> in_python(const char* name, const View& q,
                                                         const ARGUMENTS&... arguments) {
  if (!has_python()) throw std::runtime_error(without_python(q));
  const std::string operation = std::string("rope_kernels::python_") + name;
  std::array<StableIValue, sizeof...(ARGUMENTS)> stack{torch::stable::detail::from(arguments)...};
  python_error.clear();
  if (torch_call_dispatcher(operation.c_str(), "", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(last_error());
  }
  return stack;
}

template <std::size_t COUNT>
std::tuple<Tensor, Tensor> two_tensors(const std::array<StableIValue, COUNT>& stack) {
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

/// Whether the arguments are checked before the call may go on to Python: always on CUDA, where autograd relies on it.
bool is_checked_here(const View& q, Backend backend) { return backend != Backend::kReference || is_on_cuda(q); }

std::tuple<Tensor, Tensor> rotate(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions,
                                  const MaybeTensor& offset, const MaybeTensor& seq_len,
                                  const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                                  const std::string& text) {
  const View qv("q", q);
  const Backend backend = backend_for(qv);
  if (is_checked_here(qv, backend)) {
    const IndexTensors at = index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens);
    STD_TORCH_CHECK(qv.dim == 3 || qv.dim == 4, "q: rank");
    const Output q_out(qv);
    if (!k) {
      Job job = job_of(qv, nullptr, q_out.view, nullptr, at, text);
      if (run(job, qv, backend, false)) return {q_out.tensor, torch::stable::new_empty(q, {0})};
    } else {
      const View kv("k", *k, &qv);
      STD_TORCH_CHECK(kv.dim == qv.dim, "k: rank");
      const Output k_out(kv);
      Job job = job_of(qv, &kv, q_out.view, &k_out.view, at, text);
      if (run(job, qv, backend, false)) return {q_out.tensor, k_out.tensor};
    }
  }
  return two_tensors(in_python("rotate", qv, q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text));
}

/// Rotates into given outputs, if a native kernel can: see run().
bool rotated_into(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                  const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                  const std::string& text, const Tensor& q_out, const MaybeTensor& k_out, Backend backend) {
  STD_TORCH_CHECK(k.has_value() == k_out.has_value(), "out: k_out must be given exactly where k is");
  const View qv("q", q), qo("q_out", q_out, &qv);
  const IndexTensors at = index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens);
  const MaybeView kv = k ? MaybeView(View("k", *k, &qv)) : MaybeView();
  const MaybeView ko = k ? MaybeView(View("k_out", *k_out, &qv)) : MaybeView();
  Job job = job_of(qv, kv ? &*kv : nullptr, qo, ko ? &*ko : nullptr, at, text);
  return run(job, qv, backend, true);
}

void rotate_into(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                 const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                 const std::string& text, const Tensor& q_out, const MaybeTensor& k_out) {
  const View qv("q", q);
  const Backend backend = backend_for(qv);
  if (is_checked_here(qv, backend) &&
      rotated_into(q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text, q_out, k_out, backend)) {
    return;
  }
  in_python("rotate_out", qv, q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text, q_out, k_out);
}

void rotate_in_place(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                     const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                     const std::string& text) {
  const View qv("q", q);
  const Backend backend = backend_for(qv);
  if (is_checked_here(qv, backend) &&
      rotated_into(q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text, q, k, backend)) {
    return;
  }
  in_python("rotate_", qv, q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text);
}

/// By the native kernels, whatever the calling context has chosen: Python's native backend calls this.
void native_rotate_into(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                        const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                        const std::string& text, const Tensor& q_out, const MaybeTensor& k_out) {
  const bool done =
      rotated_into(q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text, q_out, k_out, Backend::kNative);
  STD_TORCH_CHECK(done, "q: there are no native kernels for its device");
}

/// A caller's table, and what else a call by it has besides q, k and their outputs.
struct TableCall {
  View cos, sin;
  std::string_view pairing, layout;
  bool inverse;

  TableCall(const View& q, const Tensor& cos_, const Tensor& sin_, std::int64_t rotary_dim, std::string_view pairing_,
            std::string_view layout_, bool inverse_)
      : cos("cos", cos_, &q), sin("sin", sin_, &q), pairing(pairing_), layout(layout_), inverse(inverse_) {
    STD_TORCH_CHECK(q.dim == 3 || q.dim == 4, "q: rank");
    STD_TORCH_CHECK(cos.dim == 3 && sin.dim == 3 && cos.size[2] == rotary_dim, "cos, sin: shape");
  }

  /// Rotates, if a native kernel can: see run().
  [[nodiscard]] bool rotated_into(const View& q, const View* k, const View& q_out, const View* k_out, Backend backend,
                                  bool given) const {
    Job job = job_of_table(q, k, q_out, k_out, cos, sin, layout_of(layout), pairing);
    job.inverse = inverse;
    return run(job, q, backend, given);
  }
};

std::tuple<Tensor, Tensor> rotate_table(const Tensor& q, const MaybeTensor& k, const Tensor& cos, const Tensor& sin,
                                        std::int64_t rotary_dim, const std::string& pairing, const std::string& layout,
                                        bool inverse) {
  const View qv("q", q);
  const Backend backend = backend_for(qv);
  if (is_checked_here(qv, backend)) {
    const TableCall call(qv, cos, sin, rotary_dim, pairing, layout, inverse);
    const Output q_out(qv);
    if (!k) {
      if (call.rotated_into(qv, nullptr, q_out.view, nullptr, backend, false)) {
        return {q_out.tensor, torch::stable::new_empty(q, {0})};
      }
    } else {
      const View kv("k", *k, &qv);
      STD_TORCH_CHECK(kv.dim == qv.dim, "k: rank");
      const Output k_out(kv);
      if (call.rotated_into(qv, &kv, q_out.view, &k_out.view, backend, false)) return {q_out.tensor, k_out.tensor};
    }
  }
  return two_tensors(in_python("rotate_table", qv, q, k, cos, sin, rotary_dim, pairing, layout, inverse));
}

/// By the native kernels, whatever the calling context has chosen: Python's native backend calls this.
void native_rotate_table_into(const Tensor& q, const MaybeTensor& k, const Tensor& cos, const Tensor& sin,
                              std::int64_t rotary_dim, const std::string& pairing, const std::string& layout,
                              bool inverse, const Tensor& q_out, const MaybeTensor& k_out) {
  STD_TORCH_CHECK(k.has_value() == k_out.has_value(), "out: k_out must be given exactly where k is");
  const View qv("q", q), qo("q_out", q_out, &qv);
  const MaybeView kv = k ? MaybeView(View("k", *k, &qv)) : MaybeView();
  const MaybeView ko = k ? MaybeView(View("k_out", *k_out, &qv)) : MaybeView();
  const TableCall call(qv, cos, sin, rotary_dim, pairing, layout, inverse);
  const bool done = call.rotated_into(qv, kv ? &*kv : nullptr, qo, ko ? &*ko : nullptr, Backend::kNative, true);
  STD_TORCH_CHECK(done, "q: there are no native kernels for its device");
}

}  // namespace
}  // namespace rope::ops

#define ROPE_EXPORT extern "C" __attribute__((visibility("default")))

/// The architectures that the CUDA kernels were compiled for, separated by commas, "120+PTX" for code that newer ones
/// compile for themselves; empty without kernels.
ROPE_EXPORT const char* rope_kernels_cuda_archs() {
#if defined(ROPE_WITH_CUDA)
#define ROPE_TEXT_OF(...) #__VA_ARGS__
#define ROPE_TEXT(...) ROPE_TEXT_OF(__VA_ARGS__)
  return ROPE_TEXT(ROPE_WITH_CUDA);
#else
  return "";
#endif
}

/// Python (ctypes) says what an operator in Python raises, before torch turns it into an error code.
ROPE_EXPORT void rope_kernels_python_error(const char* message) { rope::ops::python_error = message; }

ROPE_EXPORT int rope_kernels_force_isa(const char* name) { return rope::force_isa(name) ? 1 : 0; }
ROPE_EXPORT const char* rope_kernels_isa() {
  thread_local std::string name;
  name = rope::current_isa();
  return name.c_str();
}
ROPE_EXPORT const char* rope_kernels_isas() {
  static const std::string names = [] {
    std::string all;
    for (const std::string& name : rope::isas()) all += (all.empty() ? "" : ",") + name;
    return all;
  }();
  return names.c_str();
}

namespace {

/// Registers the operators for one kind of device: they find the device of each call themselves.
template <class LIBRARY>
void implement(LIBRARY& library) {
  library.impl("rotate", TORCH_BOX(&rope::ops::rotate));
  library.impl("rotate_", TORCH_BOX(&rope::ops::rotate_in_place));
  library.impl("rotate_out", TORCH_BOX(&rope::ops::rotate_into));
  library.impl("rotate_table", TORCH_BOX(&rope::ops::rotate_table));
  library.impl("native_rotate_out", TORCH_BOX(&rope::ops::native_rotate_into));
  library.impl("native_rotate_table_out", TORCH_BOX(&rope::ops::native_rotate_table_into));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CUDA, m) { implement(m); }
