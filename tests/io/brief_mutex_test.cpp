#include "io/brief_mutex.h"

#include <mutex>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace replicad {
namespace {

TEST_CASE("brief mutex: many threads take turns, and none is forgotten asleep") {
  constexpr int threads = 8;
  constexpr int turns = 20'000;
  BriefMutex mutex;
  int count = 0;
  std::vector<std::thread> crowd;
  for (int i = 0; i < threads; ++i) {
    crowd.emplace_back([&] {
      for (int turn = 0; turn < turns; ++turn) {
        const std::lock_guard lock(mutex);
        ++count;
      }
    });
  }
  for (std::thread& thread : crowd)
    thread.join();
  CHECK(count == threads * turns);
}

}  // namespace
}  // namespace replicad
