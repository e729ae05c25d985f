#pragma once
// What `place` and `create` have in common on the command line.

#include <cstdint>
#include <vector>

#include "core/control/placement.h"
#include "ctl/commands.h"

namespace replicad::ctl {

/// --copies, --primary, --on; bytes are left 0. Errors: Errc::invalid_argument.
[[nodiscard]] Result<PlacementRequest> read_placement(const OptionValues& values);
/// --size: 1 to 16 disks, each a multiple of 512 bytes. Errors: Errc::invalid_argument.
[[nodiscard]] Result<std::vector<std::uint64_t>> read_sizes(const OptionValues& values);
/// One disk's size. Errors: Errc::invalid_argument.
[[nodiscard]] Status check_disk_bytes(std::uint64_t bytes);

}  // namespace replicad::ctl
