// Launches of the kernels that Triton has compiled.
#include "ops/compiled.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/job.h"
#include "ops/stream.h"

namespace rope::ops {
namespace {

constexpr std::size_t kMaxJobs = 1024;

/// Everything that decides a launch: what Triton specializes a kernel by (alignment, strides of 1), what the launch
/// plan is made of, and what the parameters say. Addresses count by their alignment only.
struct Key {
  static constexpr std::size_t kWords = 64;
  std::array<std::int64_t, kWords> words;
  std::size_t used = 0;

  Key(const Job& job, std::int32_t device_index) {
    add(device_index, static_cast<std::int64_t>(job.spec->id), static_cast<int>(job.dtype), job.inverse, job.unscaled);
    add(job.batch, job.tokens, job.num_operands);
    for (const Operand& operand : job.operands) {
      add(operand.heads, alignment(operand.in), alignment(operand.out), operand.in == operand.out);
      add_strides(operand.from, job);
      add_strides(operand.to, job);
    }
    add(static_cast<int>(job.positions.kind), job.positions.axis, job.positions.batch, job.positions.token);
    add(alignment(job.positions.data));
    for (const PerGroup& values : {job.offset, job.seq_len, job.from_seq_len}) {
      add(values.count, values.stride, values.is_number, values.is_number ? 0 : alignment(values.data));
    }
    add(job.packed.sequences, job.packed.stride, job.packed.wide, alignment(job.packed.bounds));
    add(static_cast<int>(job.table.kind), job.table.rows, alignment(job.table.cosine), alignment(job.table.sine));
    add_strides(job.table.cosine_strides, job);
    add_strides(job.table.sine_strides, job);
  }

  bool operator==(const Key& other) const {
    return used == other.used && std::equal(words.begin(), words.begin() + used, other.words.begin());
  }

 private:
  static std::int64_t alignment(const void* address) {
    return address == nullptr ? -1 : static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address) % 16);
  }
  template <class... T>
  void add(T... values) {
    ((words[used++] = static_cast<std::int64_t>(values)), ...);
  }
  void add_strides(const Strides& s, const Job& job) { add(job.batch > 1 ? s.batch : 0, s.token, s.head); }
};

struct Hash {
  std::size_t operator()(const Key& key) const {
    const auto* bytes = reinterpret_cast<const char*>(key.words.data());
    return std::hash<std::string_view>()({bytes, key.used * sizeof(key.words[0])});
  }
};

using Launches = std::shared_ptr<const std::vector<CompiledLaunch>>;

struct Kept {
  Launches launches;
  std::shared_ptr<void> owned;
};

struct Store {
  std::mutex mutex;
  std::atomic<std::uint64_t> changes{0};  // raised when a job is added or forgotten
  std::unordered_map<Key, Kept, Hash> jobs;
  std::deque<Key> by_age;
  std::vector<std::shared_ptr<void>> captured;  // what launches in CUDA graphs need: replays read it, so it stays
};

/// Never destroyed: threads may still launch while the process ends.
Store& store() {
  static auto* made = new Store();
  return *made;
}

/// The functions of CUDA's driver, which Triton has loaded.
struct Driver {
  using Launch = int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                         void**);
  Launch launch = nullptr;
  int (*current)(void**) = nullptr;
  int (*retain)(void**, int) = nullptr;
  int (*make_current)(void*) = nullptr;
  int (*error)(int, const char**) = nullptr;
  int (*capturing)(void*, int*) = nullptr;

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) throw std::runtime_error("rope_kernels on CUDA: CUDA's driver has not been loaded");
    const auto find = [library](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) throw std::runtime_error(std::string("rope_kernels on CUDA: the driver has no ") + name);
    };
    find("cuLaunchKernel", launch);
    find("cuCtxGetCurrent", current);
    find("cuDevicePrimaryCtxRetain", retain);
    find("cuCtxSetCurrent", make_current);
    find("cuGetErrorString", error);
    find("cuStreamIsCapturing", capturing);
  }

  void check(int result) const {
    if (result == 0) return;
    const char* text = nullptr;
    error(result, &text);
    throw std::runtime_error(std::string("rope_kernels on CUDA: ") + (text != nullptr ? text : "unknown error"));
  }
};

/// A thread that has not used CUDA yet has no context, without which the driver launches nothing.
void ensure_context(const Driver& driver, std::int32_t device_index) {
  void* context = nullptr;
  driver.check(driver.current(&context));
  if (context != nullptr) return;
  driver.check(driver.retain(&context, device_index));
  driver.check(driver.make_current(context));
}

std::array<const void*, static_cast<std::size_t>(Address::kCount)> addresses_of(const Job& job) {
  const Operand &q = job.operands[0], &k = job.operands[1];
  return {q.in,
          k.in,
          q.out,
          k.out,
          job.positions.data,
          job.offset.data,
          job.seq_len.data,
          job.from_seq_len.data,
          job.packed.bounds,
          job.table.cosine,
          job.table.sine};
}

/// A thread nearly always repeats a job that it did lately.
struct Lately {
  static constexpr std::size_t kJobs = 4;
  std::array<std::optional<Key>, kJobs> keys;
  std::array<Launches, kJobs> launches;
  std::uint64_t changes = 0;
  std::size_t next = 0;
};

Launches launches_of(const Key& key) {
  thread_local Lately lately;
  Store& kept = store();
  const std::uint64_t changes = kept.changes.load(std::memory_order_acquire);
  if (lately.changes != changes) {
    lately = Lately();
    lately.changes = changes;
  }
  for (std::size_t i = 0; i < Lately::kJobs; ++i) {
    if (lately.keys[i] && *lately.keys[i] == key) return lately.launches[i];
  }
  const std::lock_guard lock(kept.mutex);
  const auto found = kept.jobs.find(key);
  if (found == kept.jobs.end()) return nullptr;
  lately.keys[lately.next] = key;
  lately.launches[lately.next] = found->second.launches;
  lately.next = (lately.next + 1) % Lately::kJobs;
  return found->second.launches;
}

/// Keeps what a job's launches need for good.
void keep_for_replays(const Key& key) {
  Store& kept = store();
  const std::lock_guard lock(kept.mutex);
  const auto found = kept.jobs.find(key);
  if (found != kept.jobs.end()) kept.captured.push_back(found->second.owned);
}

}  // namespace

void remember(const Job& job, std::int32_t device_index, std::vector<CompiledLaunch> launches,
              std::shared_ptr<void> owned) {
  for (const CompiledLaunch& launch : launches) {
    if (launch.parameters.size() > kMaxParameters) throw std::invalid_argument("a kernel with too many parameters");
  }
  Store& kept = store();
  const Key key(job, device_index);
  Kept added{std::make_shared<const std::vector<CompiledLaunch>>(std::move(launches)), std::move(owned)};
  Kept dropped;  // destroyed after the lock is released
  const std::lock_guard lock(kept.mutex);
  ++kept.changes;
  const auto [place, is_new] = kept.jobs.try_emplace(key);
  std::swap(place->second, added);
  if (!is_new) return;
  kept.by_age.push_back(key);
  if (kept.by_age.size() <= kMaxJobs) return;
  const auto oldest = kept.jobs.find(kept.by_age.front());
  std::swap(dropped, oldest->second);
  kept.jobs.erase(oldest);
  kept.by_age.pop_front();
}

bool launch_compiled(const Job& job, std::int32_t device_index) {
  const Key key(job, device_index);
  const Launches launches = launches_of(key);
  if (launches == nullptr) return false;
  static const Driver driver;
  namespace accelerator = torch::stable::accelerator;
  std::optional<accelerator::DeviceGuard> guard;
  if (accelerator::getCurrentDeviceIndex() != device_index) guard.emplace(device_index);
  ensure_context(driver, device_index);
  void* const stream = current_stream(device_index);
  int is_capturing = 0;
  driver.check(driver.capturing(stream, &is_capturing));
  if (is_capturing != 0) keep_for_replays(key);
  const auto addresses = addresses_of(job);
  for (const CompiledLaunch& launch : *launches) {
    std::array<std::uint64_t, kMaxParameters> cells;
    std::array<void*, kMaxParameters> parameters;
    std::copy(launch.parameters.begin(), launch.parameters.end(), cells.begin());
    for (std::size_t i = 0; i < launch.parameters.size(); ++i) parameters[i] = &cells[i];
    for (const auto& [cell, address] : launch.addresses) {
      cells[cell] = reinterpret_cast<std::uintptr_t>(addresses[static_cast<std::size_t>(address)]);
    }
    const auto [x, y, z] = launch.grid;
    driver.check(driver.launch(launch.function, x, y, z, launch.threads, 1, 1, launch.shared_bytes, stream,
                               parameters.data(), nullptr));
  }
  return true;
}

std::size_t num_remembered() {
  Store& kept = store();
  const std::lock_guard lock(kept.mutex);
  return kept.jobs.size();
}

}  // namespace rope::ops
