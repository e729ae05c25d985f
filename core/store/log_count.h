#pragma once
// What a log that is in use has of each disk between two points: for those who lack it. Any thread.

#include <string>
#include <vector>

#include "core/store/log_recovery.h"

namespace replicad {

struct LoggedChanges {
  DiskIndex disk = 0;
  std::uint64_t writes = 0;  ///< changes of any kind
  std::uint64_t bytes = 0;   ///< that they name; what was changed twice counts twice
};

/// The frames with sequences after `after` up to `until`, by disk; disks without any are left out. Reads the segments
/// while they may be used again: every frame is checked. Nothing is changed. Errors: Errc::too_far_behind: the log does
/// not go back, or on, so far; those of `files`.
[[nodiscard]] Result<std::vector<LoggedChanges>> count_log(LogDirectory& files,
                                                           const std::string& volume_uuid,
                                                           Sequence after,
                                                           Sequence until);

}  // namespace replicad
