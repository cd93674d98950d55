// The threads of a block as fibers that run one at a time, from first to last or backwards.
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "host.h"

namespace standin {

uint3 thread_index, block_index;
bool backwards = false;
float offered[1024];

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;

struct Fiber {
  ucontext_t context{};
  void* fake_stack = nullptr;  // AddressSanitizer's
  std::unique_ptr<char[]> stack;
  unsigned index = 0;
};

enum class State { kFinished, kWaits };

/// What the threads of a block run, and the running one.
struct Running {
  const std::function<void()>* thread = nullptr;
  ucontext_t scheduler{};
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  Fiber* fiber = nullptr;
  State state = State::kFinished;
} running;

void back_to_scheduler(State state) {
  running.state = state;
  Fiber& fiber = *running.fiber;
  __sanitizer_start_switch_fiber(state == State::kFinished ? nullptr : &fiber.fake_stack, running.bottom,
                                 running.bytes);
  swapcontext(&fiber.context, &running.scheduler);
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &running.bottom, &running.bytes);
}

void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &running.bottom, &running.bytes);
  (*running.thread)();
  back_to_scheduler(State::kFinished);
}

State resume(Fiber& fiber) {
  running.fiber = &fiber;
  thread_index = {fiber.index, 0, 0};
  __sanitizer_start_switch_fiber(&running.fake_stack, fiber.stack.get(), kStackBytes);
  swapcontext(&running.scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(running.fake_stack, nullptr, nullptr);
  return running.state;
}

/// A fiber for thread `index`, on a stack that is free.
Fiber made(unsigned index, std::vector<std::unique_ptr<char[]>>& stacks) {
  Fiber fiber;
  fiber.index = index;
  if (stacks.empty()) {
    fiber.stack = std::make_unique<char[]>(kStackBytes);
  } else {
    fiber.stack = std::move(stacks.back());
    stacks.pop_back();
  }
  __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
  return fiber;
}

void start(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

void run_block(unsigned threads) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<std::unique_ptr<Fiber>> waiting;
  for (unsigned i = 0; i < threads; ++i) {
    auto fiber = std::make_unique<Fiber>(made(backwards ? threads - 1 - i : i, stacks));
    start(*fiber);
    if (resume(*fiber) == State::kWaits) {
      waiting.push_back(std::move(fiber));
    } else {
      stacks.push_back(std::move(fiber->stack));
    }
  }
  std::size_t finished = threads - waiting.size();
  while (!waiting.empty()) {
    if (finished > 0) {
      std::fprintf(stderr, "block %u: %zu threads wait at a barrier that others never reach\n", block_index.x,
                   waiting.size());
      std::abort();
    }
    for (auto& fiber : waiting) {
      if (resume(*fiber) == State::kWaits) continue;
      stacks.push_back(std::move(fiber->stack));
      fiber.reset();
      ++finished;
    }
    std::erase(waiting, nullptr);
    if (waiting.empty()) finished = 0;
  }
}

}  // namespace

void run_grid(dim3 grid, dim3 block, const std::function<void()>& thread) {
  running.thread = &thread;
  for (unsigned i = 0; i < grid.x; ++i) {
    block_index = {backwards ? grid.x - 1 - i : i, 0, 0};
    run_block(block.x);
  }
}

void wait_for_block() { back_to_scheduler(State::kWaits); }

}  // namespace standin

extern "C" cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 48;
  return cudaSuccess;
}
extern "C" cudaError_t cudaGetLastError(void) { return cudaSuccess; }
extern "C" const char* cudaGetErrorString(cudaError_t) { return "no error"; }
