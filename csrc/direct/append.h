// The direct call that rotates and stores in a KV cache.
#pragma once

#include <initializer_list>

#include "direct/inputs.h"
#include "direct/overlap.h"
#include "direct/python_tensors.h"
#include "ops/append_job.h"
#include "ops/launch.h"
#include "ops/tensor_job.h"

namespace rope::direct {
namespace {

/// Whether no written tensor overlaps itself, another one, or what is read; an output may be the input itself.
bool is_safe(const AppendTensors& t) {
  const std::initializer_list<const View*> written = {&t.q_out, pointer_to(t.k_out), pointer_to(t.k_cache),
                                                      pointer_to(t.v_cache)};
  for (const View* y : written) {
    if (y == nullptr) continue;
    const Outer to(*y);
    if (!to.is_nested()) return false;
    for (const View* other : written) {
      if (other == y) break;
      if (other != nullptr && !are_apart(to, Outer(*other))) return false;
    }
    for (const View* x : {&t.q, pointer_to(t.k), pointer_to(t.v)}) {
      const bool is_own = (x == &t.q && y == &t.q_out) || (t.k && t.k_out && x == &*t.k && y == &*t.k_out);
      if (x != nullptr && !(is_own && is_same(*x, *y)) && !are_apart(to, Outer(*x))) return false;
    }
  }
  return true;
}

/// The arguments after those of Inputs.
enum AppendArgument : std::uint8_t {
  kV = Inputs::kCount,
  kQWeight,
  kKWeight,
  kVWeight,
  kSlots,
  kKScale,
  kVScale,
  kQOut,
  kKOut,
  kKCache,
  kVCache,
  kAppendCount
};

/// (arguments of Inputs, v, weights of q's, k's and v's norms, slots, k_scale, v_scale, q_out, k_out, k_cache,
/// v_cache), of which only q, slots and q_out must be given -> whether all has been written and stored.
PyObject* append(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return unless_unusual(Py_False, [arguments, count] {
    PyObject* const* a = arguments;
    if (count != kAppendCount) return refused(Py_False);
    if (!is_for_us(
            {a[0], a[1], a[kV], a[kQWeight], a[kKWeight], a[kVWeight], a[kQOut], a[kKOut], a[kKCache], a[kVCache]})) {
      return refused(Py_False);
    }
    const Inputs inputs(arguments, a + kQWeight);
    if (is_on_cuda(inputs.q)) throw NotUsual();
    const auto view = [a](AppendArgument i) { return a[i] == Py_None ? MaybeView() : MaybeView(view_of(a[i], 0)); };
    const AppendTensors tensors{inputs.q,      view_of(a[kSlots]), view_of(a[kQOut]), inputs.k,
                                view(kV),      inputs.q_weight,    inputs.k_weight,   maybe_weight_of(a[kVWeight]),
                                view(kKScale), view(kVScale),      view(kKOut),       view(kKCache),
                                view(kVCache)};
    for (const MaybeView* v : {&tensors.v, &tensors.v_weight, &tensors.k_scale, &tensors.v_scale, &tensors.k_out,
                               &tensors.k_cache, &tensors.v_cache}) {
      if (*v && !(*v)->is_with(inputs.q)) throw NotUsual();
    }
    if (!tensors.slots.is_with(inputs.q) || !tensors.q_out.is_with(inputs.q)) throw NotUsual();
    AppendJob job(tensors, inputs.at, inputs.text);
    if (!is_safe(tensors)) throw NotUsual();  // after the ranks have been checked
    std::int64_t longest = 0;
    inputs.complete(job.append.job, longest);
    if (!are_in_cache(job.append.slots)) throw NotUsual();
    run_beside_python([&job] { return launch_append_cpu(job.append), true; });
    count_version(a[kQOut], a[kKOut]);
    if (a[kKCache] == Py_None) {
      count_version(a[kVCache], Py_None);
    } else {
      count_version(a[kKCache], a[kVCache]);
    }
    return PyBool_FromLong(1);
  });
}

}  // namespace
}  // namespace rope::direct
