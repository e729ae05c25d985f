#pragma once
// One line for an error of a volume.

#include <string>

#include "core/base/log.h"
#include "core/base/result.h"

namespace replicad {

/// Logs `event` of a volume as an error. Any thread.
inline void log_failure(const char* event, const std::string& volume, const Error& error) {
  log(LogLevel::error, event, "volume={} error={}", volume, log_value(error.message));
}

}  // namespace replicad
