#pragma once
// Time as the core sees it: handed in with each event, never read. The runtime takes it from
// CLOCK_BOOTTIME (io/clock.h), the tests make it up.

#include <chrono>

namespace replicad {

using Duration = std::chrono::nanoseconds;

/// A clock without now(): the core cannot read time.
struct EventClock {
  using rep = Duration::rep;
  using period = Duration::period;
  using duration = Duration;
  using time_point = std::chrono::time_point<EventClock>;
  static constexpr bool is_steady = true;
};

using Instant = EventClock::time_point;

}  // namespace replicad
