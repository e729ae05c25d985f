#pragma once
// When it pays for a reactor to look for work for a moment before it sleeps: a wake-up across cores costs more than
// writing and sending 4 KiB, and a guest that waits for each write waits for four of them. Looking costs a core that
// nobody else wants at that moment: a look that took time from others ends it for a while. Not thread-safe.

#include <chrono>

#include "core/base/time.h"

namespace replicad {

class PollPolicy {
 public:
  /// How long a reactor looks before it sleeps.
  static constexpr Duration look_time = std::chrono::microseconds(100);
  /// So many waits in a row that were shorter than that.
  static constexpr unsigned short_waits_needed = 8;
  /// A look that took longer than this had to wait for the core.
  static constexpr Duration look_time_max = std::chrono::microseconds(30);
  static constexpr Duration rest_time = std::chrono::milliseconds(100);

  [[nodiscard]] bool pays(Instant now) const {
    return short_waits_ >= short_waits_needed && now >= rests_until_;
  }
  /// The reactor had nothing to do for `time`, whether it looked or slept.
  void waited(Duration time) {
    if (time >= look_time) {
      short_waits_ = 0;
    } else if (short_waits_ < short_waits_needed) {
      ++short_waits_;
    }
  }
  /// One look, with the core offered to others, took from `begin` to `end`. False: sleep now.
  [[nodiscard]] bool looked(Instant begin, Instant end) {
    if (end - begin <= look_time_max) return true;
    rests_until_ = end + rest_time;
    return false;
  }

 private:
  unsigned short_waits_ = 0;
  Instant rests_until_{};
};

}  // namespace replicad
