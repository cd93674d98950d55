// Chooses the instruction set: the best one of this machine, unless another is forced.
#include <algorithm>
#include <atomic>
#include <string_view>

#include "core/append.h"
#include "core/job.h"
#include "cpu/rotate.h"
#include "cpu/scratch.h"

namespace rope {

// Best first. setup.py names fewer for a build that only has to run on one machine.
#if !defined(ROPE_ISAS)
#if defined(__x86_64__)
#define ROPE_ISAS(each) each(avx512_bf16) each(avx512) each(avx2) each(portable)
#else
#define ROPE_ISAS(each) each(portable)
#endif
#endif

#define ROPE_DECLARE(isa)                                                                        \
  namespace isa {                                                                                \
  void rotate(const Job& job, std::int64_t first, std::int64_t last, ThreadState& thread);       \
  void append(const Append& append, std::int64_t first, std::int64_t last, ThreadState& thread); \
  }
ROPE_ISAS(ROPE_DECLARE)

namespace {

struct Isa {
  const char* name;
  void (*rotate)(const Job&, std::int64_t, std::int64_t, ThreadState&);
  void (*append)(const Append&, std::int64_t, std::int64_t, ThreadState&);
  bool (*runs)();
};

#if defined(__x86_64__)
bool is_amd() { return __builtin_cpu_is("amd") != 0; }
[[maybe_unused]] bool has_avx512() {
  return __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0;
}
[[maybe_unused]] bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16") != 0; }
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
         __builtin_cpu_supports("f16c") != 0;
}
#else
bool is_amd() { return false; }
#endif
[[maybe_unused]] bool has_portable() { return true; }

#define ROPE_ENTRY(isa) {#isa, isa::rotate, isa::append, has_##isa},
constexpr Isa kIsas[] = {ROPE_ISAS(ROPE_ENTRY)};

/// The instruction sets of this machine, best first.
const std::vector<const Isa*>& machine() {
  static const auto found = [] {
    std::vector<const Isa*> isas;
    for (const Isa& isa : kIsas) {
      if (isa.runs()) isas.push_back(&isa);
    }
    // Converting two vectors to bf16 by one instruction takes 1.3 cycles on AMD; on Intel it takes longer than five
    // integer instructions.
    if (isas.size() > 1 && isas[0]->name == std::string_view("avx512_bf16") && !is_amd()) std::swap(isas[0], isas[1]);
    return isas;
  }();
  return found;
}

std::atomic<const Isa*> forced{nullptr};

const Isa& current() {
  const Isa* isa = forced.load(std::memory_order_relaxed);
  return isa != nullptr ? *isa : *machine().front();
}

ThreadState& this_thread() {
  // On AMD, software prefetch on top of the hardware's costs a tenth of the time.
  thread_local ThreadState thread(is_amd());
  return thread;
}

}  // namespace

void rotate_cpu(const Job& job, std::int64_t first, std::int64_t last) {
  current().rotate(job, first, last, this_thread());
}

void append_cpu(const Append& append, std::int64_t first, std::int64_t last) {
  current().append(append, first, last, this_thread());
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa* isa : machine()) names.emplace_back(isa->name);
  return names;
}

std::string current_isa() { return current().name; }

bool force_isa(const std::string& name) {
  const auto found = std::find_if(machine().begin(), machine().end(), [&](const Isa* i) { return name == i->name; });
  if (!name.empty() && found == machine().end()) return false;
  forced = name.empty() ? nullptr : *found;
  return true;
}

}  // namespace rope
