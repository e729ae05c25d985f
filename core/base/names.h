#pragma once
// The rule for names of volumes, disks and hosts. Pure, any thread.

#include <string_view>

namespace replicad {

/// [a-z0-9][a-z0-9._-]{0,63}; never contains a path separator.
[[nodiscard]] bool is_valid_name(std::string_view name);

/// In place of a volume's uuid at a host that cannot read its state file: only the name is known there.
inline constexpr std::string_view unknown_uuid = "00000000-0000-0000-0000-000000000000";

}  // namespace replicad
