// The CPU kernels: rotate a job on the best instruction set of this machine. No torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../core/append.h"
#include "../core/job.h"

namespace rope {

/// Rotates tokens [first, last) of the flattened (batch, tokens), on the best instruction set of this machine.
void rotate_cpu(const Job& job, std::int64_t first, std::int64_t last);

/// Rotates tokens [first, last), and stores them in a KV cache.
void append_cpu(const Append& append, std::int64_t first, std::int64_t last);

/// Names of the instruction sets built in, best first, and which one runs. `force_isa("")` returns to the best.
std::vector<std::string> isas();
std::string current_isa();
bool force_isa(const std::string& name);

}  // namespace rope
