// Which instruction set runs: the best this machine has, unless one is forced.
#include <algorithm>
#include <atomic>

#include "rotate.h"

namespace rope {

#define ROPE_DECLARE(isa)                                                                          \
  namespace isa {                                                                                  \
  void rotate(const Job& job, std::int64_t first, std::int64_t last, FrequencyCache (&caches)[2]); \
  }
ROPE_DECLARE(portable)
#if defined(__x86_64__)
ROPE_DECLARE(avx2)
ROPE_DECLARE(avx512)
#endif

namespace {

struct Isa {
  const char* name;
  void (*rotate)(const Job&, std::int64_t, std::int64_t, FrequencyCache (&)[2]);
  bool (*runs)();
};

constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {"avx512", avx512::rotate,
     [] {
       return __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
              __builtin_cpu_supports("avx512bw") != 0;
     }},
    {"avx2", avx2::rotate,
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
              __builtin_cpu_supports("f16c") != 0;
     }},
#endif
    {"portable", portable::rotate, [] { return true; }},
};

const Isa* best() {
  static const Isa* found = std::find_if(std::begin(kIsas), std::end(kIsas), [](const Isa& i) { return i.runs(); });
  return found;
}

std::atomic<const Isa*> forced{nullptr};

const Isa& current() {
  const Isa* isa = forced.load(std::memory_order_relaxed);
  return isa != nullptr ? *isa : *best();
}

}  // namespace

void rotate_cpu(const Job& job, std::int64_t first, std::int64_t last) {
  thread_local FrequencyCache caches[2];
  current().rotate(job, first, last, caches);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.runs()) names.emplace_back(isa.name);
  }
  return names;
}

std::string current_isa() { return current().name; }

bool force_isa(const std::string& name) {
  if (name.empty()) {
    forced = nullptr;
    return true;
  }
  const auto* isa = std::find_if(std::begin(kIsas), std::end(kIsas), [&](const Isa& i) { return name == i.name; });
  if (isa == std::end(kIsas) || !isa->runs()) return false;
  forced = isa;
  return true;
}

}  // namespace rope
