#pragma once
// The rule for names of volumes, disks and hosts. Pure, any thread.

#include <string_view>

namespace replicad {

/// [a-z0-9][a-z0-9._-]{0,63}; never contains a path separator.
[[nodiscard]] bool is_valid_name(std::string_view name);

}  // namespace replicad
