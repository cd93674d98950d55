// How threads share the tokens of a call: each begins with a part of its own, and then helps with the others'.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace rope {

class WorkSharing {
 public:
  /// `count` parts of `tokens`; threads take `chunk` tokens at a time.
  WorkSharing(std::int64_t tokens, std::int64_t count, std::int64_t chunk)
      : count_(count), chunk_(chunk), parts_(new Part[static_cast<std::size_t>(count)]) {
    for (std::int64_t i = 0; i < count; ++i) {
      parts_[i].next = tokens * i / count;
      parts_[i].end = tokens * (i + 1) / count;
    }
  }

  /// Calls `body(first, last)` for chunks, from `part` on, until all are taken. To be called once for each part.
  template <class BODY>
  void work(std::int64_t part, const BODY& body) {
    for (std::int64_t i = 0; i < count_; ++i) {
      Part& from = parts_[(part + i) % count_];
      for (;;) {
        const std::int64_t first = from.next.fetch_add(chunk_, std::memory_order_relaxed);
        if (first >= from.end) break;
        body(first, std::min(first + chunk_, from.end));
      }
    }
  }

 private:
  struct alignas(64) Part {
    std::atomic<std::int64_t> next;
    std::int64_t end;
  };
  std::int64_t count_, chunk_;
  std::unique_ptr<Part[]> parts_;
};

}  // namespace rope
