#pragma once
// The state directory's lock: one program at a time, the daemon or one of the offline commands.

#include <string>

#include "core/base/result.h"
#include "io/fd.h"

namespace replicad {

/// Holds while the descriptor is open. Errors: Errc::busy if another process has it, Errc::not_found
/// if the directory is not there.
[[nodiscard]] Result<Fd> lock_state_dir(const std::string& state_dir);

}  // namespace replicad
