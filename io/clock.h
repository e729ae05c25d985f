#pragma once
// The one place that reads the clock for the core: CLOCK_BOOTTIME, which goes on during suspend and is never set.

#include "core/base/time.h"

namespace replicad {

[[nodiscard]] Instant boot_time_now();

}  // namespace replicad
