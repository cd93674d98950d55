// What the direct calls take from Python: their tensors, lengths and text, and whether a call is theirs to do.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <optional>

#include "core/frequency.h"
#include "core/job.h"
#include "core/spec.h"
#include "direct/overlap.h"
#include "direct/python_tensors.h"
#include "ops/choice.h"
#include "ops/launch.h"
#include "ops/norm_job.h"
#include "ops/tensor_job.h"

namespace rope::direct {
namespace {

using namespace ops;

bool is_same(const View& a, const View& b) {
  return a.data == b.data && a.dim == b.dim && std::equal(a.stride, a.stride + a.dim, b.stride);
}

/// max(position) + 1 over given positions.
std::int64_t longest_given(const View& positions) {
  std::int64_t size[3] = {1, 1, 1}, stride[3] = {0, 0, 0}, most = std::numeric_limits<std::int64_t>::min();
  std::copy(positions.size, positions.size + positions.dim, size);
  std::copy(positions.stride, positions.stride + positions.dim, stride);
  const bool wide = positions.dtype == aoti_torch_dtype_int64();
  for (std::int64_t i = 0; i < size[0]; ++i) {
    for (std::int64_t j = 0; j < size[1]; ++j) {
      for (std::int64_t k = 0; k < size[2]; ++k) {
        const std::int64_t at = i * stride[0] + j * stride[1] + k * stride[2];
        most = std::max(most, wide ? static_cast<const std::int64_t*>(positions.data)[at]
                                   : static_cast<const std::int32_t*>(positions.data)[at]);
      }
    }
  }
  return most + 1;
}

/// The same over counted positions, as in rope_kernels/api/lengths.py: 0 for a sequence without tokens.
std::int64_t longest_counted(const Job& job) {
  const Packed& packed = job.packed;
  std::int64_t most = std::numeric_limits<std::int64_t>::min();
  for (std::int64_t i = 0, n = packed.bounds != nullptr ? packed.sequences : job.batch; i < n; ++i) {
    const std::int64_t tokens = packed.bounds != nullptr ? packed.bound(i + 1) - packed.bound(i) : job.tokens;
    most = std::max(most, tokens > 0 ? tokens + (job.offset.count ? job.offset[i] : 0) : 0);
  }
  return most;
}

/// The backend for a call on q. Throws NotUsual if it runs in Python.
Backend compiled_backend(const View& q) {
  const Backend backend = backend_for(q);
  if (backend != Backend::kNative && backend != Backend::kTriton) throw NotUsual();
  return backend;
}

/// Calls `body` without the GIL, so that other threads can run Python. Throws NotUsual if it returns false: Python must
/// then do the call, of which nothing has been done.
template <class BODY>
void run_beside_python(const BODY& body) {
  PyThreadState* thread = PyEval_SaveThread();
  bool done = false;
  try {
    done = body();
  } catch (...) {
    PyEval_RestoreThread(thread);
    throw;
  }
  PyEval_RestoreThread(thread);
  if (!done) throw NotUsual();
}

/// Whether the bounds of packed sequences, if there are any, rise from 0 to at most the number of tokens.
bool is_rising(const Job& job) {
  const Packed& packed = job.packed;
  if (packed.bounds == nullptr) return true;
  std::int64_t last = 0;
  for (std::int64_t i = 0; i <= packed.sequences; ++i) {
    if (packed.bound(i) < last || (i == 0 && packed.bound(i) != 0)) return false;
    last = packed.bound(i);
  }
  return last <= job.tokens;
}

/// An offset or seq_len: one number for all, one per sequence, or None.
struct Lengths {
  MaybeView view;
  std::optional<std::int64_t> number;

  explicit Lengths(PyObject* object) : number(maybe_number(object)) {
    if (!number && object != Py_None) view = view_of(object, 0);
    if (view && !is_on_cuda(*view) && view->dim == 0 && view->dtype == aoti_torch_dtype_int64()) {
      number = *static_cast<const std::int64_t*>(view->data);
      view.reset();
    }
  }

  [[nodiscard]] bool is_given() const { return view || number; }
  [[nodiscard]] PerGroup number_for_all() const { return {&*number, 1, 0, true}; }
};

/// Whether given outputs overlap neither each other nor an input, which an output may be. The ranks have been checked.
bool is_safe(const View& q, const MaybeView& k, const View& q_out, const MaybeView& k_out) {
  if (!q_out.is_with(q) || (k_out && !k_out->is_with(q))) return false;
  const Outer q_to(q_out), q_from(q);
  const bool q_stays = is_same(q, q_out);
  if (!q_to.is_nested() || !(q_stays || are_apart(q_to, q_from))) return false;
  if (!k) return true;
  const Outer k_to(*k_out), k_from(*k);
  const bool k_stays = is_same(*k, *k_out);
  return k_to.is_nested() && are_apart(q_to, k_to) && (k_stays || are_apart(k_to, k_from)) &&
         (k_stays || are_apart(q_to, k_from)) && (q_stays || are_apart(k_to, q_from));
}

/// The arguments of a call: q, k or None, positions, offset, seq_len, cu_seqlens, each of which may be None, and text.
/// If heads are normed, the weights of q's and k's norms, or None, are the last arguments of a function.
struct Inputs {
  static constexpr Py_ssize_t kCount = 7;
  View q;
  Backend backend;
  MaybeView k;
  Lengths offset, seq_len;
  IndexTensors at;
  std::string_view text;
  MaybeView q_weight, k_weight;

  /// `weights`: nullptr without norms.
  Inputs(PyObject* const* arguments, PyObject* const* weights)
      : q(view_of(arguments[0])),
        backend(compiled_backend(q)),
        k(maybe_view_of(arguments[1])),
        offset(arguments[3]),
        seq_len(arguments[4]) {
    if (weights != nullptr) {
      q_weight = maybe_weight_of(weights[0]);
      k_weight = maybe_weight_of(weights[1]);
    }
    at = {maybe_view_of(arguments[2]), offset.view, seq_len.view, {}, maybe_view_of(arguments[5])};
    if (at.positions && (!is_integer(*at.positions) || offset.is_given())) throw NotUsual();
    if (at.cu_seqlens && (q.dim != 3 || (at.positions && !seq_len.view))) throw NotUsual();
    for (const MaybeView* v : {&k, &at.positions, &at.offset, &at.seq_len, &at.cu_seqlens, &q_weight, &k_weight}) {
      if (*v && !(*v)->is_with(q)) throw NotUsual();
    }
    text = text_of(arguments[6]);
  }

  /// Rotates into the outputs. Throws NotUsual if `given` outputs might overlap each other or an input.
  void rotate(const View& q_out, const MaybeView& k_out, bool given) const {
    Job job = job_of(q, pointer_to(k), q_out, pointer_to(k_out), at, text);
    const NormWeights weights(job, operation_of(text), q, q_weight, k_weight);
    if (given && !is_safe(q, k, q_out, k_out)) throw NotUsual();
    std::int64_t longest = 0;
    complete(job, longest);
    run_beside_python([&] { return run(job, q, backend, given); });
  }

  /// Gives a job the numbers of offset and seq_len; without the latter it points to `longest`, which is written. Throws
  /// NotUsual if the bounds of packed sequences are wrong.
  void complete(Job& job, std::int64_t& longest) const {
    if (!is_on_cuda(q) && !is_rising(job)) throw NotUsual();
    if (offset.number) job.offset = offset.number_for_all();
    if (!depends_on_length(job.spec->params)) {
      job.seq_len = {};
    } else if (seq_len.number) {
      job.seq_len = seq_len.number_for_all();
    } else if (!seq_len.view) {
      longest = longest_of(job);
      job.seq_len = {&longest, 1, 0, true};
    }
  }

 private:
  /// The length of the longest sequence. Throws NotUsual if that depends on what is on a GPU.
  [[nodiscard]] std::int64_t longest_of(const Job& job) const {
    if (is_on_cuda(q) && (at.positions || at.cu_seqlens || at.offset)) throw NotUsual();
    return at.positions ? longest_given(*at.positions) : longest_counted(job);
  }
};

/// Raises the version counters of the written tensors as the dispatcher would.
void count_version(PyObject* first, PyObject* second) {
  const Owned both(second == Py_None ? PyTuple_Pack(1, first) : PyTuple_Pack(2, first, second));
  const Owned done(PyObject_CallFunctionObjArgs(torch_python.increment_version, both.get(), nullptr));
  if (done.get() == nullptr) PyErr_Clear();
}

/// Whether a call on these tensors is for a kernel alone: nothing is recorded or watched.
bool is_for_us(std::initializer_list<PyObject*> tensors) {
  return torch_python.exchange != nullptr && !is_recorded(tensors) && !is_watched();
}

PyObject* refused(PyObject* how) {
  Py_IncRef(how);
  return how;
}

/// Runs `body`; if it throws, refuses the call: the operator will word the error.
template <class BODY>
PyObject* unless_unusual(PyObject* otherwise, const BODY& body) {
  try {
    return body();
  } catch (const NotUsual&) {
  } catch (const std::exception&) {
  }
  PyErr_Clear();
  return refused(otherwise);
}

/// The weights that follow the first `usual` arguments, or nullptr. Throws NotUsual if they need a gradient.
PyObject* const* weights_after(PyObject* const* arguments, Py_ssize_t count, Py_ssize_t usual) {
  if (count == usual) return nullptr;
  if (count != usual + 2 || is_recorded({arguments[usual], arguments[usual + 1]})) throw NotUsual();
  return arguments + usual;
}

}  // namespace
}  // namespace rope::direct
