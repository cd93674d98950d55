// Launches of Triton's compiled kernels, as Python hands them over; see rope_kernels/backends/triton/compiled.py.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "direct/python_tensors.h"
#include "ops/compiled.h"

namespace rope::direct {

inline std::uint64_t number_at(PyObject* tuple, Py_ssize_t index) {
  const unsigned long long number = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, index));
  if (PyErr_Occurred() != nullptr) throw NotUsual();
  return number;
}

struct Bytes {
  char* data = nullptr;
  Py_ssize_t size = 0;

  explicit Bytes(PyObject* object) {
    if (PyBytes_AsStringAndSize(object, &data, &size) != 0) throw NotUsual();
  }
};

/// A tuple of (function, grid x, y, z, threads, shared bytes, parameters: bytes of 8 each, addresses: pairs of bytes,
/// the number of a parameter and the Address in it).
inline std::vector<ops::CompiledLaunch> launches_of(PyObject* tuple) {
  std::vector<ops::CompiledLaunch> launches;
  for (Py_ssize_t i = 0, n = PyTuple_Size(tuple); i < n; ++i) {
    PyObject* const given = PyTuple_GetItem(tuple, i);
    ops::CompiledLaunch& launch = launches.emplace_back();
    launch.function = reinterpret_cast<void*>(number_at(given, 0));
    for (unsigned axis = 0; axis < 3; ++axis) launch.grid[axis] = static_cast<unsigned>(number_at(given, 1 + axis));
    launch.threads = static_cast<unsigned>(number_at(given, 4));
    launch.shared_bytes = static_cast<unsigned>(number_at(given, 5));
    const Bytes parameters(PyTuple_GetItem(given, 6)), addresses(PyTuple_GetItem(given, 7));
    launch.parameters.resize(static_cast<std::size_t>(parameters.size) / sizeof(std::uint64_t));
    std::memcpy(launch.parameters.data(), parameters.data, launch.parameters.size() * sizeof(std::uint64_t));
    for (Py_ssize_t j = 0; j + 1 < addresses.size; j += 2) {
      launch.addresses.emplace_back(static_cast<unsigned char>(addresses.data[j]),
                                    static_cast<ops::Address>(addresses.data[j + 1]));
    }
  }
  return launches;
}

/// A reference that ends with the last owner. Owners end only where the GIL is held: see ops::remember().
inline std::shared_ptr<void> kept_alive(PyObject* object) {
  Py_IncRef(object);
  return {object, [](void* kept) { Py_DecRef(static_cast<PyObject*>(kept)); }};
}

}  // namespace rope::direct
