// The operators of rope_kernels by the native kernels, through torch's stable ABI.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <tuple>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/rotate.h"
#include "ops/launch.h"
#include "ops/outputs.h"
#include "ops/table_job.h"
#include "ops/tensor_job.h"

namespace rope::ops {
namespace {

IndexTensors index_tensors(const View& q, const MaybeTensor& positions, const MaybeTensor& offset,
                           const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens) {
  const auto view = [&q](const char* name, const MaybeTensor& t) {
    return t ? MaybeView(View(name, *t, &q)) : MaybeView();
  };
  return {view("positions", positions), view("offset", offset), view("seq_len", seq_len),
          view("from_seq_len", from_seq_len), view("cu_seqlens", cu_seqlens)};
}

/// A new tensor like `x` that owns its memory.
struct Output {
  View view;
  Tensor tensor;

  explicit Output(const View& x) : Output(new_like(x)) {}

 private:
  explicit Output(const Made& made) : view(made.view), tensor(made.tensor) {}
};

/// Runs a job on q's device.
void run(Job job, const View& q, bool given) {
#if defined(ROPE_WITH_CUDA)
  if (q.device_type == aoti_torch_device_type_cuda()) {
    return launch_each(job, [&](Job& each) { launch_cuda(each, q.device_index); });
  }
#endif
  STD_TORCH_CHECK(q.device_type == aoti_torch_device_type_cpu(), "q: there are no native kernels for its device");
  launch_each(job, [&](Job& each) { launch_cpu(each, given); });
}

std::tuple<Tensor, Tensor> rotate(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions,
                                  const MaybeTensor& offset, const MaybeTensor& seq_len,
                                  const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                                  const std::string& text) {
  const View qv("q", q);
  const IndexTensors at = index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens);
  STD_TORCH_CHECK(qv.dim == 3 || qv.dim == 4, "q: rank");
  const Output q_out(qv);
  if (!k) {
    run(job_of(qv, nullptr, q_out.view, nullptr, at, text), qv, false);
    return {q_out.tensor, torch::stable::new_empty(q, {0})};
  }
  const View kv("k", *k, &qv);
  STD_TORCH_CHECK(kv.dim == qv.dim, "k: rank");
  const Output k_out(kv);
  run(job_of(qv, &kv, q_out.view, &k_out.view, at, text), qv, false);
  return {q_out.tensor, k_out.tensor};
}

void rotate_into(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                 const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                 const std::string& text, const Tensor& q_out, const MaybeTensor& k_out) {
  STD_TORCH_CHECK(k.has_value() == k_out.has_value(), "out: k_out must be given exactly where k is");
  const View qv("q", q), qo("q_out", q_out, &qv);
  const IndexTensors at = index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens);
  if (!k) return run(job_of(qv, nullptr, qo, nullptr, at, text), qv, true);
  const View kv("k", *k, &qv), ko("k_out", *k_out, &qv);
  run(job_of(qv, &kv, qo, &ko, at, text), qv, true);
}

std::tuple<Tensor, Tensor> rotate_table(const Tensor& q, const MaybeTensor& k, const Tensor& cos, const Tensor& sin,
                                        std::int64_t rotary_dim, const std::string& pairing, const std::string& layout,
                                        bool inverse) {
  const Layout l = layout_of(layout);
  const View qv("q", q), cv("cos", cos, &qv), sv("sin", sin, &qv);
  STD_TORCH_CHECK(qv.dim == 3 || qv.dim == 4, "q: rank");
  STD_TORCH_CHECK(cv.dim == 3 && sv.dim == 3 && cv.size[2] == rotary_dim, "cos, sin: shape");
  const auto run_into = [&](const View* kv, const View& q_out, const View* k_out) {
    Job job = job_of_table(qv, kv, q_out, k_out, cv, sv, l, pairing);
    job.inverse = inverse;
    run(job, qv, false);
  };
  const Output q_out(qv);
  if (!k) {
    run_into(nullptr, q_out.view, nullptr);
    return {q_out.tensor, torch::stable::new_empty(q, {0})};
  }
  const View kv("k", *k, &qv);
  STD_TORCH_CHECK(kv.dim == qv.dim, "k: rank");
  const Output k_out(kv);
  run_into(&kv, q_out.view, &k_out.view);
  return {q_out.tensor, k_out.tensor};
}

void rotate_in_place(const Tensor& q, const MaybeTensor& k, const MaybeTensor& positions, const MaybeTensor& offset,
                     const MaybeTensor& seq_len, const MaybeTensor& from_seq_len, const MaybeTensor& cu_seqlens,
                     const std::string& text) {
  const View qv("q", q);
  const IndexTensors at = index_tensors(qv, positions, offset, seq_len, from_seq_len, cu_seqlens);
  if (!k) return run(job_of(qv, nullptr, qv, nullptr, at, text), qv, true);
  const View kv("k", *k, &qv);
  run(job_of(qv, &kv, qv, &kv, at, text), qv, true);
}

bool forwards_by_default() {
  const char* backend = std::getenv("ROPE_KERNELS_BACKEND");
  return backend != nullptr && *backend != '\0' && std::strcmp(backend, "native") != 0;
}

/// Asks Python which backend the calling context has chosen; null until anybody in the process chooses one.
using AskPython = int (*)();
std::atomic<AskPython> ask_python{nullptr};

}  // namespace

bool is_forwarding() {
  static const bool by_default = forwards_by_default();
  const AskPython ask = ask_python.load(std::memory_order_acquire);
  return ask == nullptr ? by_default : ask() != 0;
}

namespace {

/// The error of a failed call through the dispatcher; torch has exported it since 2.13.
std::string last_error() {
  using What = const char* (*)();
  const auto what = reinterpret_cast<What>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* text = what != nullptr ? what() : nullptr;
  return text != nullptr ? text : "the backend chosen with rope_kernels.use_backend failed (torch printed why)";
}

using Boxed = void (*)(StableIValue*, std::uint64_t, std::uint64_t);

/// Runs the operator; if the calling context has chosen another backend, forwards the call to the operator in Python
/// instead.
template <Boxed NATIVE>
void or_forward(const char* python, StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  if (is_forwarding()) {
    if (torch_call_dispatcher(python, "", stack, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) {
      throw std::runtime_error(last_error());
    }
  } else {
    NATIVE(stack, arguments, outputs);
  }
}

void boxed_rotate(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate)>("rope_kernels::python_rotate", stack, arguments, outputs);
}
void boxed_rotate_in_place(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate_in_place)>("rope_kernels::python_rotate_", stack, arguments, outputs);
}
void boxed_rotate_out(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate_into)>("rope_kernels::python_rotate_out", stack, arguments, outputs);
}
void boxed_rotate_table(StableIValue* stack, std::uint64_t arguments, std::uint64_t outputs) {
  or_forward<TORCH_BOX(&rotate_table)>("rope_kernels::python_rotate_table", stack, arguments, outputs);
}

}  // namespace
}  // namespace rope::ops

#define ROPE_EXPORT extern "C" __attribute__((visibility("default")))

/// Python (ctypes) gives the function that tells whether the calling context has chosen another backend than this one.
ROPE_EXPORT void rope_kernels_ask_python(int (*ask)()) { rope::ops::ask_python = ask; }

/// The architectures that the CUDA kernels were compiled for, separated by commas; empty without them.
ROPE_EXPORT const char* rope_kernels_cuda_archs() {
#if defined(ROPE_WITH_CUDA)
#define ROPE_TEXT_OF(...) #__VA_ARGS__
#define ROPE_TEXT(...) ROPE_TEXT_OF(__VA_ARGS__)
  return ROPE_TEXT(ROPE_WITH_CUDA);
#else
  return "";
#endif
}

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

STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CPU, m) {
  m.impl("rotate", &rope::ops::boxed_rotate);
  m.impl("rotate_", &rope::ops::boxed_rotate_in_place);
  m.impl("rotate_out", &rope::ops::boxed_rotate_out);
  m.impl("rotate_table", &rope::ops::boxed_rotate_table);
  m.impl("native_rotate_out", TORCH_BOX(&rope::ops::rotate_into));
}

#if defined(ROPE_WITH_CUDA)
// Python's dispatch rule chooses the kernels for CUDA tensors, and calls this operator if it chooses these.
STABLE_TORCH_LIBRARY_IMPL(rope_kernels, CUDA, m) { m.impl("native_rotate_out", TORCH_BOX(&rope::ops::rotate_into)); }
#endif
