// Calls the operators in a process without Python, from a package of AOTInductor or by torch's dispatcher.
//
// main LIBRARY WHAT INPUTS OUTPUTS: the native library; a package (.pt2), or the operator's text, by which q and k are
// then rotated; a list of tensors as torch.save writes it; where the tuple of results goes, as torch.load reads it. An
// error is printed, and the exit status is then 1.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<at::Tensor> read_tensors(const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const c10::IValue list = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : list.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

void write_tensors(const char* path, const std::vector<at::Tensor>& tensors) {
  const std::vector<c10::IValue> values(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(values));
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::vector<at::Tensor> rotated(const std::vector<at::Tensor>& qk, const std::string& text) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rope_kernels::rotate", "");
  const c10::IValue none;
  torch::jit::Stack stack{qk.at(0), qk.at(1), none, none, none, none, none, text};
  op.callBoxed(stack);
  return {stack.at(0).toTensor(), stack.at(1).toTensor()};
}

void run(const char* library, const std::string& what, const char* inputs, const char* outputs) {
  if (dlopen(library, RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  const std::vector<at::Tensor> given = read_tensors(inputs);
  const c10::InferenceMode inference;
  const bool is_package = what.size() > 4 && what.compare(what.size() - 4, 4, ".pt2") == 0;
  write_tensors(outputs, is_package ? torch::inductor::AOTIModelPackageLoader(what).run(given) : rotated(given, what));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  try {
    run(argv[1], argv[2], argv[3], argv[4]);
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << std::endl;
    return 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
