// What the direct calls need of Python and of torch in Python. By Python's stable ABI, whose symbols are weak, so that
// the library also loads where there is no Python.
#pragma once

#define Py_LIMITED_API 0x030a0000
#include <Python.h>

#include <algorithm>
#include <initializer_list>

#include "direct/dlpack.h"
#include "ops/tensor_job.h"

#pragma weak PyBool_FromLong
#pragma weak PyBytes_AsStringAndSize
#pragma weak PyCapsule_GetPointer
#pragma weak PyCapsule_New
#pragma weak PyErr_Clear
#pragma weak PyErr_Occurred
#pragma weak PyEval_RestoreThread
#pragma weak PyEval_SaveThread
#pragma weak PyList_AsTuple
#pragma weak PyList_GetItem
#pragma weak PyLong_AsLong
#pragma weak PyLong_AsLongLong
#pragma weak PyLong_AsUnsignedLongLong
#pragma weak PyLong_FromSize_t
#pragma weak PyLong_Type
#pragma weak PyModuleDef_Init
#pragma weak PyObject_CallFunctionObjArgs
#pragma weak PyObject_CallNoArgs
#pragma weak PyObject_GetAttr
#pragma weak PyObject_IsTrue
#pragma weak PyTuple_GetItem
#pragma weak PyTuple_Pack
#pragma weak PyTuple_Size
#pragma weak PyUnicode_AsUTF8AndSize
#pragma weak PyUnicode_InternFromString
#pragma weak Py_DecRef
#pragma weak Py_IncRef
#pragma weak _Py_FalseStruct
#pragma weak _Py_NoneStruct
#pragma weak _Py_TrueStruct

namespace rope::direct {

using ops::MaybeView, ops::View;

/// Objects of torch in Python; set once, by rope_kernels.ops.direct.
struct Torch {
  const dlpack::ExchangeApi* exchange = nullptr;
  PyObject* tensor_type = nullptr;
  PyObject* parameter_type = nullptr;
  PyObject* watchers = nullptr;  // functions; if one returns a true value, operators must not be bypassed
  PyObject* forward_ad = nullptr;
  PyObject* increment_version = nullptr;
  PyObject* wrap = nullptr;  // a tuple of tensors' handles in capsules -> a list of the tensors
};
inline Torch torch_python;

/// An owned reference. It calls functions, since the macros of this ABI know nothing of immortal objects.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  ~Owned() { Py_DecRef(object_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  [[nodiscard]] PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

/// Thrown if a call is not for the fast path, in place of a Python exception.
struct NotUsual {};

inline bool is_true(PyObject* made) {
  const Owned value(made);
  const int truth = value.get() == nullptr ? -1 : PyObject_IsTrue(value.get());
  if (truth < 0) throw NotUsual();
  return truth != 0;
}

/// Whether an attribute of a tensor is true.
inline bool has(PyObject* tensor, PyObject* name) { return is_true(PyObject_GetAttr(tensor, name)); }

/// Whether reverse mode would record a call on these tensors, some of which may be None.
inline bool is_recorded(std::initializer_list<PyObject*> tensors) {
  static PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  return aoti_torch_grad_mode_is_enabled() && std::any_of(tensors.begin(), tensors.end(), [](PyObject* tensor) {
           return tensor != Py_None && has(tensor, requires_grad);
         });
}

/// Whether a transform, a mode, a tracer or a profiler must see this call.
inline bool is_watched() {
  for (Py_ssize_t i = 0, n = PyTuple_Size(torch_python.watchers); i < n; ++i) {
    if (is_true(PyObject_CallNoArgs(PyTuple_GetItem(torch_python.watchers, i)))) return true;
  }
  static PyObject* level = PyUnicode_InternFromString("_current_level");
  const Owned current(PyObject_GetAttr(torch_python.forward_ad, level));
  return current.get() == nullptr || PyLong_AsLong(current.get()) >= 0;
}

inline std::int32_t dtype_of(const dlpack::DataType& type) {
  const bool is_float = type.code == dlpack::kFloat, is_int = type.code == dlpack::kInt;
  if (type.code == dlpack::kBfloat && type.bits == 16) return aoti_torch_dtype_bfloat16();
  if (is_float && type.bits == 16) return aoti_torch_dtype_float16();
  if (is_float && type.bits == 32) return aoti_torch_dtype_float32();
  if (is_float && type.bits == 64) return aoti_torch_dtype_float64();
  if (is_int && type.bits == 32) return aoti_torch_dtype_int32();
  if (is_int && type.bits == 64) return aoti_torch_dtype_int64();
  if (is_int && type.bits == 8) return aoti_torch_dtype_int8();
  if (type.code == dlpack::kFloat8E4M3) return aoti_torch_dtype_float8_e4m3fn();
  if (type.code == dlpack::kFloat8E5M2) return aoti_torch_dtype_float8_e5m2();
  throw NotUsual();
}

/// A tensor in CPU or CUDA memory, of a rank of `least` or more. Throws NotUsual for one of a type that may do
/// anything.
inline View view_of(PyObject* object, int least, bool is_tensor) {
  dlpack::Tensor t;
  if (!is_tensor || torch_python.exchange->tensor_from_py_object(object, &t) != 0) throw NotUsual();
  const bool on_cuda = t.device_type == dlpack::kCuda;
  if (!(on_cuda || t.device_type == dlpack::kCpu) || t.data == nullptr || t.dim < least) throw NotUsual();
  View view;
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  view.size = t.size;
  view.stride = t.stride;
  view.dim = t.dim;
  view.dtype = dtype_of(t.type);
  view.device_type = on_cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  view.device_index = on_cuda ? t.device_index : -1;
  return view;
}

inline bool is_of(PyObject* object, PyObject* type) { return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type; }

/// The same of a plain tensor.
inline View view_of(PyObject* object, int least = 1) {
  return view_of(object, least, is_of(object, torch_python.tensor_type));
}

/// The weight of a norm, which may be a module's parameter.
inline MaybeView maybe_weight_of(PyObject* object) {
  if (object == Py_None) return {};
  const bool is_tensor = is_of(object, torch_python.tensor_type) || is_of(object, torch_python.parameter_type);
  return view_of(object, 1, is_tensor);
}

inline bool is_integer(const View& v) {
  return v.dtype == aoti_torch_dtype_int64() || v.dtype == aoti_torch_dtype_int32();
}

/// The value of an int; nothing for another type.
inline std::optional<std::int64_t> maybe_number(PyObject* object) {
  if (Py_TYPE(object) != &PyLong_Type) return std::nullopt;
  const long long number = PyLong_AsLongLong(object);
  if (number == -1 && PyErr_Occurred() != nullptr) throw NotUsual();
  return number;
}

inline std::string_view text_of(PyObject* object) {
  Py_ssize_t length = 0;
  const char* characters = PyUnicode_AsUTF8AndSize(object, &length);
  if (characters == nullptr) throw NotUsual();
  return {characters, static_cast<std::size_t>(length)};
}

inline MaybeView maybe_view_of(PyObject* object) {
  return object == Py_None ? MaybeView() : MaybeView(view_of(object));
}

}  // namespace rope::direct
