#include "replicad/stability_keeper.h"

#include <ctime>

#include <unistd.h>

#include "core/base/limits.h"
#include "core/base/log.h"
#include "io/file.h"

namespace replicad {

namespace {

constexpr std::size_t file_bytes_max = 4 * kib;

std::int64_t wall_clock_seconds() {
  return std::time(nullptr);
}

}  // namespace

Status StabilityKeeper::start() {
  const auto content = read_file(file(), file_bytes_max);
  if (content) {
    const auto counters = decode_stability(*content);
    if (counters) counters_ = *counters;
    if (!counters) {
      log(LogLevel::warn,
          "stability_lost",
          "path={} error={}",
          file(),
          log_value(counters.error().message));
    }
  }
  counters_ = fade(counters_, wall_clock_seconds());
  if (::access(marker().c_str(), F_OK) == 0) {
    counters_.unclean_restarts += 1;
    log(LogLevel::warn, "unclean_restart", "recent={:.1f}", counters_.unclean_restarts);
  }
  RD_TRY(write_file_durably(file(), encode_stability(counters_)));
  return write_file_durably(marker(), "removed when replicad ends cleanly\n");
}

void StabilityKeeper::count_link_loss() {
  const std::lock_guard lock(mutex_);
  counters_ = fade(counters_, wall_clock_seconds());
  counters_.link_losses += 1;
  changed_ = true;
}

void StabilityKeeper::count_disk_error() {
  const std::lock_guard lock(mutex_);
  counters_ = fade(counters_, wall_clock_seconds());
  counters_.disk_errors += 1;
  changed_ = true;
}

Stability StabilityKeeper::current() const {
  const std::lock_guard lock(mutex_);
  return fade(counters_, wall_clock_seconds());
}

void StabilityKeeper::save() {
  std::string content;
  {
    const std::lock_guard lock(mutex_);
    if (!changed_) return;
    changed_ = false;
    content = encode_stability(counters_);
  }
  if (const Status written = write_file_durably(file(), content); !written) {
    log(LogLevel::warn, "stability_not_written", "error={}", log_value(written.error().message));
  }
}

void StabilityKeeper::end() {
  save();
  if (::unlink(marker().c_str()) == 0) static_cast<void>(sync_directory(state_dir_));
}

}  // namespace replicad
