// Defines the operators' schemas, so that a process without Python can call them once it has loaded the library.
// rope_kernels/ops/operators.py has the same texts, for where there is no library.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

#define ROPE_INDEX_TENSORS \
  "Tensor? positions, Tensor? offset, Tensor? seq_len, Tensor? from_seq_len, Tensor? cu_seqlens"
#define ROPE_TABLE "Tensor cos, Tensor sin, int rotary_dim, str pairing, str layout, bool inverse"
#define ROPE_OUTPUTS "Tensor(a!) q_out, Tensor(b!)? k_out"

namespace {

// In graphs: tagged as Python tags them.
constexpr const char* kOperators[] = {
    "rotate(Tensor q, Tensor? k, " ROPE_INDEX_TENSORS ", str spec) -> (Tensor, Tensor)",
    "rotate_(Tensor(a!) q, Tensor(b!)? k, " ROPE_INDEX_TENSORS ", str spec) -> ()",
    "rotate_out(Tensor q, Tensor? k, " ROPE_INDEX_TENSORS ", str spec, " ROPE_OUTPUTS ") -> ()",
    "rotate_table(Tensor q, Tensor? k, " ROPE_TABLE ") -> (Tensor, Tensor)",
};

// Called by Python's native backend only.
constexpr const char* kNativeOperators[] = {
    "native_rotate_out(Tensor q, Tensor? k, " ROPE_INDEX_TENSORS ", str spec, " ROPE_OUTPUTS ") -> ()",
    "native_rotate_table_out(Tensor q, Tensor? k, " ROPE_TABLE ", " ROPE_OUTPUTS ") -> ()",
};

/// Defines an operator with the tag pt2_compliant_tag. torch's stable ABI has had tags since 2.12; before, it has none.
AOTITorchError define_compliant(TorchLibraryHandle library, const char* schema) {
  using Define = AOTITorchError (*)(TorchLibraryHandle, const char*, const std::int32_t*, std::int32_t);
  using Tag = std::int32_t (*)();
  const auto define = reinterpret_cast<Define>(dlsym(RTLD_DEFAULT, "torch_library_def_with_tags"));
  const auto tag = reinterpret_cast<Tag>(dlsym(RTLD_DEFAULT, "torch_tag_pt2_compliant_tag"));
  if (define == nullptr || tag == nullptr) return aoti_torch_library_def(library, schema);
  const std::int32_t tags[] = {tag()};
  return define(library, schema, tags, 1);
}

/// The library's part of the namespace; as long as the process.
[[maybe_unused]] const bool defined = [] {
  TorchLibraryHandle library = nullptr;
  aoti_torch_library_init_fragment("rope_kernels", __FILE__, __LINE__, &library);
  bool done = true;
  for (const char* schema : kOperators) done = done && define_compliant(library, schema) == AOTI_TORCH_SUCCESS;
  for (const char* schema : kNativeOperators) {
    done = done && aoti_torch_library_def(library, schema) == AOTI_TORCH_SUCCESS;
  }
  return done;
}();

}  // namespace
