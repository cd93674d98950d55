// The part of DLPack 1.x that is used here, by which a framework shows its tensors to C. Code for torch's stable ABI
// cannot include torch's own copy of the header. Source: github.com/dmlc/dlpack, include/dlpack/dlpack.h (Apache-2.0).
#pragma once

#include <cstdint>

namespace rope::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
constexpr const char* kCapsuleName = "dlpack_exchange_api";
constexpr std::int32_t kCpu = 1, kCuda = 2;
constexpr std::uint8_t kInt = 0, kFloat = 2, kBfloat = 4, kFloat8E4M3 = 10, kFloat8E5M2 = 12;

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  std::int32_t device_type, device_index;
  std::int32_t dim;
  DataType type;
  std::int64_t *size, *stride;
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  std::uint32_t major_version, minor_version;
  ExchangeApi* previous;
  void* managed_tensor_functions[3];
  int (*tensor_from_py_object)(void* py_object, Tensor* out);  // borrowed; -1 with a Python exception set
  void* current_work_stream;
};

}  // namespace rope::dlpack
