#pragma once
// The name of the mark that an export leaves when a sync of its images has failed (docs/disk-format.md).

namespace replicad {

/// In the volume's directory, beside the state file.
constexpr const char* failed_sync_name = "sync-failed";

}  // namespace replicad
