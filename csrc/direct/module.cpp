// Fast path for plain CPU and CUDA tensors, from Python to the kernels: torch's dispatcher takes longer than a decode
// step.
//
// A function here does the whole call, or returns False or None without having written anything. The caller then calls
// the operator, which handles the other cases and words the errors.
#include "core/job.h"
#include "core/spec.h"
#include "direct/append.h"
#include "direct/cached.h"
#include "direct/compiled_launches.h"
#include "direct/dlpack.h"
#include "direct/inputs.h"
#include "direct/python_tensors.h"
#include "ops/choice.h"
#include "ops/compiled.h"
#include "ops/outputs.h"
#include "ops/table_job.h"
#include "ops/tensor_job.h"

namespace rope::direct {
namespace {

/// (arguments of Inputs) -> whether q and k have been rotated in place.
PyObject* rotate_in_place(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    PyObject* const* weights = weights_after(arguments, count, Inputs::kCount);
    if (!is_for_us({arguments[0], arguments[1]})) return refused(Py_False);
    const Inputs inputs(arguments, weights);
    inputs.rotate(inputs.q, inputs.k, true);
    count_version(arguments[0], arguments[1]);
    return PyBool_FromLong(1);
  });
}

/// (arguments of Inputs, q_out, k_out) -> whether the outputs have been written.
PyObject* rotate_out(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    PyObject* const* outputs = arguments + Inputs::kCount;
    PyObject* const* weights = weights_after(arguments, count, Inputs::kCount + 2);
    if ((arguments[1] == Py_None) != (outputs[1] == Py_None)) return refused(Py_False);
    if (!is_for_us({arguments[0], arguments[1], outputs[0], outputs[1]})) return refused(Py_False);
    const Inputs inputs(arguments, weights);
    inputs.rotate(view_of(outputs[0]), maybe_view_of(outputs[1]), true);
    count_version(outputs[0], outputs[1]);
    return PyBool_FromLong(1);
  });
}

/// New tensors for the results; owned until release().
class Outputs {
 public:
  Outputs(const View& q, const MaybeView& k) {
    if (q.dim > kMaxRank || (k && k->dim != q.dim)) throw NotUsual();
    q_ = new_like(q);
    if (k) k_ = new_like(*k);
  }
  ~Outputs() {
    for (const Made& made : {q_, k_}) {
      if (made.tensor != nullptr) aoti_torch_delete_tensor_object(made.tensor);
    }
  }
  Outputs(const Outputs&) = delete;
  Outputs& operator=(const Outputs&) = delete;

  [[nodiscard]] const View& q() const { return q_.view; }
  [[nodiscard]] MaybeView k() const { return k_.tensor == nullptr ? MaybeView() : MaybeView(k_.view); }

  /// (q, k or None) as Python's tensors.
  PyObject* release() {
    const Owned q(PyCapsule_New(q_.tensor, nullptr, nullptr));
    const Owned k(k_.tensor == nullptr ? nullptr : PyCapsule_New(k_.tensor, nullptr, nullptr));
    const Owned handles(PyTuple_Pack(k.get() == nullptr ? 1 : 2, q.get(), k.get()));
    const Owned tensors(PyObject_CallFunctionObjArgs(torch_python.wrap, handles.get(), nullptr));
    if (tensors.get() == nullptr) throw NotUsual();
    const bool has_k = std::exchange(k_.tensor, nullptr) != nullptr;
    q_.tensor = nullptr;
    return has_k ? PyList_AsTuple(tensors.get()) : PyTuple_Pack(2, PyList_GetItem(tensors.get(), 0), Py_None);
  }

 private:
  Made q_, k_;
};

/// (arguments of Inputs) -> (q, k or None) rotated; or None.
PyObject* rotate(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_None, [arguments, count] {
    PyObject* const* weights = weights_after(arguments, count, Inputs::kCount);
    if (!is_for_us({arguments[0], arguments[1]})) return refused(Py_None);
    const Inputs inputs(arguments, weights);
    Outputs outputs(inputs.q, inputs.k);
    inputs.rotate(outputs.q(), outputs.k(), false);
    return outputs.release();
  });
}

/// The layout of q, from the dimension of its heads in cos and sin: see rope_kernels/api/table.py.
Layout layout_of_table(const View& q, const View& cos, const View& sin, PyObject* unsqueeze_dim) {
  const std::optional<std::int64_t> given = maybe_number(unsqueeze_dim);
  const bool alike = cos.dim == sin.dim && std::equal(cos.size, cos.size + cos.dim, sin.size);
  if (!given || *given < -kMaxRank || *given > kMaxRank || !alike || (q.dim == 3 && cos.dim == 3)) throw NotUsual();
  const std::int64_t dim = *given + (*given < 0 ? cos.dim + 1 : 0) + (cos.dim == 2 ? q.dim - 3 : 0);
  if (dim != 1 && (dim != 2 || q.dim == 3)) throw NotUsual();
  return layout_of(q.dim == 3 ? "thd" : dim == 1 ? "bhsd" : "bshd");
}

/// Whether a table may be taken as it is. One of half a head's width can mean two things, unless the caller said that
/// it is full. One with gaps between its numbers may be the imaginary part of a conjugate, whose sign torch has yet to
/// flip.
bool is_clear(const View& q, const View& cos, const View& sin, PyObject* is_full) {
  const std::int64_t width = cos.size[cos.dim - 1];
  return (is_full == Py_True || 2 * width != q.size[q.dim - 1]) && cos.stride[cos.dim - 1] == 1 &&
         sin.stride[sin.dim - 1] == 1;
}

/// (q, k or None, cos, sin, unsqueeze_dim, pairing, is_full) -> (q, k or None) rotated by the table; or None.
PyObject* rotate_table(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_None, [arguments, count] {
    if (count != 7 || !is_for_us({arguments[0], arguments[1], arguments[2], arguments[3]})) return refused(Py_None);
    const View q = view_of(arguments[0]), cos = view_of(arguments[2]), sin = view_of(arguments[3]);
    const Backend backend = compiled_backend(q);
    const MaybeView k = maybe_view_of(arguments[1]);
    const Layout layout = layout_of_table(q, cos, sin, arguments[4]);
    if (!is_clear(q, cos, sin, arguments[6])) throw NotUsual();
    if (!cos.is_with(q) || !sin.is_with(q) || (k && !k->is_with(q))) throw NotUsual();
    Outputs outputs(q, k);
    const MaybeView k_out = outputs.k();
    Job job = job_of_table(q, k ? &*k : nullptr, outputs.q(), k_out ? &*k_out : nullptr, cos, sin, layout,
                           text_of(arguments[5]));
    run_beside_python([&] { return run(job, q, backend, false); });
    return outputs.release();
  });
}

/// (q, k, positions, offset, seq_len, from_seq_len, cu_seqlens, text, q_out, k_out, launches, what they need) ->
/// whether the launches are remembered for such calls; see compiled_launches.h.
PyObject* remember(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    if (count != 12) throw NotUsual();
    const View q = view_of(arguments[0]), q_out = view_of(arguments[8]);
    const MaybeView k = maybe_view_of(arguments[1]), k_out = maybe_view_of(arguments[9]);
    const IndexTensors at{maybe_view_of(arguments[2]), maybe_view_of(arguments[3]), maybe_view_of(arguments[4]),
                          maybe_view_of(arguments[5]), maybe_view_of(arguments[6])};
    Job job = job_of(q, k ? &*k : nullptr, q_out, k_out ? &*k_out : nullptr, at, text_of(arguments[7]));
    ops::remember(job, q.device_index, launches_of(arguments[10]), kept_alive(arguments[11]));
    return PyBool_FromLong(1);
  });
}

/// (q, k, cos, sin, layout, pairing, inverse, q_out, k_out, launches, what they need) -> the same for calls by a table.
PyObject* remember_table(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    if (count != 11) throw NotUsual();
    const View q = view_of(arguments[0]), cos = view_of(arguments[2]), sin = view_of(arguments[3]);
    const View q_out = view_of(arguments[7]);
    const MaybeView k = maybe_view_of(arguments[1]), k_out = maybe_view_of(arguments[8]);
    Job job = job_of_table(q, k ? &*k : nullptr, q_out, k_out ? &*k_out : nullptr, cos, sin,
                           layout_of(text_of(arguments[4])), text_of(arguments[5]));
    job.inverse = arguments[6] == Py_True;
    ops::remember(job, q.device_index, launches_of(arguments[9]), kept_alive(arguments[10]));
    return PyBool_FromLong(1);
  });
}

/// -> how many calls are remembered.
PyObject* num_remembered(PyObject*, PyObject* const*, Py_ssize_t) { return PyLong_FromSize_t(ops::num_remembered()); }

/// (DLPack's exchange capsule, Tensor, Parameter, watchers, torch.autograd.forward_ad, _increment_version, wrap)
PyObject* bind(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 7) return PyBool_FromLong(0);
  const void* capsule = PyCapsule_GetPointer(arguments[0], dlpack::kCapsuleName);
  if (capsule == nullptr) return nullptr;
  const auto* exchange = static_cast<const dlpack::ExchangeApi*>(capsule);
  if (exchange->major_version != dlpack::kMajorVersion) return PyBool_FromLong(0);
  for (int i = 1; i < 7; ++i) Py_IncRef(arguments[i]);
  torch_python = {exchange, arguments[1], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6]};
  return PyBool_FromLong(1);
}

template <PyObject* (*FUNCTION)(PyObject*, PyObject* const*, Py_ssize_t)>
constexpr PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(FUNCTION)), METH_FASTCALL, nullptr};
}

}  // namespace
}  // namespace rope::direct

PyMODINIT_FUNC PyInit__native() {
  using namespace rope::direct;
  static PyMethodDef methods[] = {
      method<bind>("bind"),
      method<rotate_in_place>("rotate_"),
      method<rotate_out>("rotate_out"),
      method<rotate>("rotate"),
      method<rotate_table>("rotate_table"),
      method<append>("append"),
      method<rotate_cached>("rotate_cached"),
      method<remember>("remember"),
      method<remember_table>("remember_table"),
      method<remember_cached>("remember_cached"),
      method<num_remembered>("num_remembered"),
      {},
  };
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_native", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModuleDef_Init(&definition);
}
