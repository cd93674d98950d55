// How threads share tokens: every token is taken once, even if a thread comes late or never.
#include "cpu/work_sharing.h"

#include <thread>

#include "harness.h"

namespace {

using Counts = std::vector<std::atomic<int>>;

void count(rope::WorkSharing& sharing, std::int64_t part, Counts& taken) {
  sharing.work(part, [&taken](std::int64_t first, std::int64_t last) {
    CHECK(first < last && last <= static_cast<std::int64_t>(taken.size()), first, last);
    for (std::int64_t i = first; i < last; ++i) ++taken[static_cast<std::size_t>(i)];
  });
}

void check_each_once(const Counts& taken, const char* how) {
  for (std::size_t i = 0; i < taken.size(); ++i) CHECK(taken[i] == 1, how, taken.size(), i, taken[i]);
}

TEST(one_thread_does_the_parts_of_all) {
  for (const std::int64_t tokens : {1, 2, 7, 64, 1000}) {
    for (const std::int64_t parts : {1, 2, 3, 7}) {
      for (const std::int64_t chunk : {1, 3, 64, 5000}) {
        Counts taken(static_cast<std::size_t>(tokens));
        rope::WorkSharing sharing(tokens, parts, chunk);
        count(sharing, parts - 1, taken);
        count(sharing, 0, taken);  // nothing is left
        check_each_once(taken, "alone");
      }
    }
  }
}

TEST(threads_take_every_token_once) {
  constexpr std::int64_t kParts = 4;
  for (int repeat = 0; repeat < 50; ++repeat) {
    Counts taken(4099);
    rope::WorkSharing sharing(4099, kParts, 3);
    std::vector<std::thread> threads;
    for (std::int64_t part = 0; part < kParts; ++part)
      threads.emplace_back(count, std::ref(sharing), part, std::ref(taken));
    for (std::thread& thread : threads) thread.join();
    check_each_once(taken, "together");
  }
}

TEST(a_thread_begins_with_its_own_part) {
  rope::WorkSharing sharing(100, 4, 10);
  std::vector<std::int64_t> order;
  sharing.work(2, [&order](std::int64_t first, std::int64_t) { order.push_back(first); });
  CHECK((order == std::vector<std::int64_t>{50, 60, 70, 75, 85, 95, 0, 10, 20, 25, 35, 45}), order.size());
}

}  // namespace
