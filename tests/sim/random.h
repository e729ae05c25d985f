#pragma once
// The simulator's only source of chance: the same numbers for the same seed on every machine and compiler.

#include <cstdint>

#include "core/base/time.h"

namespace replicad::sim {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {  // splitmix64
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  /// 0 .. bound-1; `bound` > 0.
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  /// first .. last, both included.
  std::uint64_t between(std::uint64_t first, std::uint64_t last) {
    return first + below(last - first + 1);
  }
  bool chance(unsigned percent) { return below(100) < percent; }
  /// 0 .. longest, short ones more often.
  Duration delay(Duration longest) {
    const auto limit = static_cast<std::uint64_t>(longest.count()) + 1;
    return Duration(static_cast<Duration::rep>(below(below(limit) + 1)));
  }

 private:
  std::uint64_t state_;
};

}  // namespace replicad::sim
