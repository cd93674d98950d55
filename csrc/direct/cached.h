// The direct call that rotates by the rows of a table of cosines and sines.
#pragma once

#include <cstdint>
#include <optional>

#include "core/job.h"
#include "direct/compiled_launches.h"
#include "direct/inputs.h"
#include "direct/python_tensors.h"
#include "ops/choice.h"
#include "ops/compiled.h"
#include "ops/launch.h"
#include "ops/table_job.h"
#include "ops/tensor_job.h"

namespace rope::direct {
namespace {

std::int64_t bytes_of(std::int32_t dtype) {
  if (dtype == aoti_torch_dtype_float64()) return 8;
  return dtype == aoti_torch_dtype_float32() ? 4 : 2;
}

/// The halves of one table, cos | sin, or a table for each. Throws NotUsual for one that does not fit `rotary_dim`.
struct TableHalves {
  View cos, sin;
  std::int64_t num_pairs;

  TableHalves(PyObject* first, PyObject* second, PyObject* rotary_dim)
      : cos(view_of(first, 2)), sin(second == Py_None ? cos : view_of(second, 2)) {
    num_pairs = second == Py_None ? cos.size[1] / 2 : cos.size[1];
    const std::optional<std::int64_t> given = maybe_number(rotary_dim);
    if (cos.dim != 2 || sin.dim != 2 || (second == Py_None && cos.size[1] % 2 != 0)) throw NotUsual();
    if (given ? *given != 2 * num_pairs : rotary_dim != Py_None) throw NotUsual();
    // One with gaps between its numbers may be the imaginary part of a conjugate, whose sign torch has yet to flip.
    if (cos.stride[1] != 1 || sin.stride[1] != 1) throw NotUsual();
    if (second == Py_None) sin.data = static_cast<char*>(sin.data) + num_pairs * bytes_of(sin.dtype);
  }
};

/// The call's tensors: (q, k or None, positions, cos or both, sin or None, rotary_dim or None, pairing, layout, q_out,
/// k_out or None).
struct CachedCall {
  static constexpr Py_ssize_t kCount = 10;
  View q, positions, q_out;
  TableHalves table;
  MaybeView k, k_out;
  Job job;

  explicit CachedCall(PyObject* const* a)
      : q(view_of(a[0])),
        positions(view_of(a[2])),
        q_out(view_of(a[8])),
        table(a[3], a[4], a[5]),
        k(maybe_view_of(a[1])),
        k_out(maybe_view_of(a[9])) {
    if (k.has_value() != k_out.has_value()) throw NotUsual();
    for (const View* v : {&positions, &q_out, &table.cos, &table.sin}) {
      if (!v->is_with(q)) throw NotUsual();
    }
    for (const MaybeView* v : {&k, &k_out}) {
      if (*v && !(*v)->is_with(q)) throw NotUsual();
    }
    if (!is_integer(positions)) throw NotUsual();
    job = job_of_rows(q, pointer_to(k), q_out, pointer_to(k_out), positions, table.cos, table.sin, table.num_pairs,
                      layout_of(text_of(a[7])), text_of(a[6]));
  }
};

/// (arguments of CachedCall) -> whether the outputs have been written.
PyObject* rotate_cached(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    if (count != CachedCall::kCount) throw NotUsual();
    PyObject* const* a = arguments;
    if (!is_for_us({a[0], a[1], a[3], a[4], a[8], a[9]})) return refused(Py_False);
    CachedCall call(arguments);
    const Backend backend = compiled_backend(call.q);
    if (!is_safe(call.q, call.k, call.q_out, call.k_out)) throw NotUsual();
    if (!is_on_cuda(call.q) && !has_rows(call.job)) throw NotUsual();
    run_beside_python([&] { return run(call.job, call.q, backend, true); });
    count_version(a[8], a[9]);
    return PyBool_FromLong(1);
  });
}

/// (arguments of CachedCall, launches, what they need) -> whether the launches are remembered for such calls.
PyObject* remember_cached(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    if (count != CachedCall::kCount + 2) throw NotUsual();
    CachedCall call(arguments);
    PyObject* const* made = arguments + CachedCall::kCount;
    ops::remember(call.job, call.q.device_index, launches_of(made[0]), kept_alive(made[1]));
    return PyBool_FromLong(1);
  });
}

}  // namespace
}  // namespace rope::direct
