#include "io/clock.h"

#include <ctime>

#include "core/base/check.h"

namespace replicad {

Instant boot_time_now() {
  timespec now{};
  RD_CHECK(::clock_gettime(CLOCK_BOOTTIME, &now) == 0);
  return Instant(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
}

}  // namespace replicad
