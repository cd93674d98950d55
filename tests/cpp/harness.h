// The tests of one program: TEST(name) { CHECK(what must hold, values to print if it does not); }
#pragma once

#include <cstdio>
#include <iostream>
#include <limits>
#include <vector>

namespace harness {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int failures = 0;  // of the running test

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

/// Counts a failure and prints the first few of a test: one wrong kernel fails millions of times.
template <class... Values>
void fail(const char* file, int line, const char* what, const Values&... values) {
  if (++failures > 5) return;
  std::cerr.precision(std::numeric_limits<long double>::max_digits10);
  std::cerr << file << ':' << line << ": " << what;
  ((std::cerr << " | " << values), ...);
  std::cerr << '\n';
}

}  // namespace harness

#define TEST(name)                                                        \
  static void name();                                                     \
  static const harness::Registration registration_of_##name(#name, name); \
  static void name()

#define CHECK(condition, ...)                                                                   \
  do {                                                                                          \
    if (!(condition)) harness::fail(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)

int main() {
  int failed = 0;
  for (const harness::Test& test : harness::tests()) {
    harness::failures = 0;
    test.run();
    std::printf("%-50s %s", test.name, harness::failures == 0 ? "ok\n" : "");
    if (harness::failures != 0) std::printf("FAILED %d times\n", harness::failures);
    failed += harness::failures != 0;
  }
  return failed == 0 ? 0 : 1;
}
