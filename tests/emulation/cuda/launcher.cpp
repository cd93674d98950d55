// The CUDA launcher for ctypes.
#include <exception>
#include <string>

#include "call.h"

/// Launches a call; nullptr, or what went wrong, valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* standin_launch(const char* text,
                                                                             const standin::Int* fields,
                                                                             standin::Int count) {
  static std::string refused;
  if (count != standin::kFields) {
    refused = "call: " + std::to_string(count) + " fields, not " + std::to_string(standin::kFields);
    return refused.c_str();
  }
  try {
    const rope::Spec spec = rope::parse_spec(text);
    return standin::launch(*reinterpret_cast<const standin::Call*>(fields), spec);
  } catch (const std::exception& error) {
    refused = error.what();
    return refused.c_str();
  }
}
