#pragma once
// The trail of a replica in its file, beside the volume's state (docs/disk-format.md, "Trail"). Blocking, any thread.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/store/trail.h"

namespace replicad {

/// What makes the file cover a point.
struct TrailUpdate {
  bool anew = false;  ///< in place of the file that is there
  std::vector<std::pair<std::uint64_t, std::vector<std::byte>>> pages;  ///< by offset in the file
  std::uint64_t header_offset = 0;
  std::vector<std::byte> header;
};

/// `changes`: taken of `trail`.
[[nodiscard]] TrailUpdate make_trail_update(const Trail& trail,
                                            const Trail::Changes& changes,
                                            std::string_view volume_uuid,
                                            std::uint64_t generation,
                                            const HistoryPoint& point);
/// Durable on return; until then the file covers what it did before, or nothing if it begins anew. Errors: errno's,
/// with the path.
[[nodiscard]] Status write_trail(const std::string& volume_dir, const TrailUpdate& update);
/// nullopt: nothing is known; a file that cannot be read says nothing.
[[nodiscard]] std::optional<TrailFound> load_trail(const std::string& volume_dir,
                                                   std::string_view volume_uuid,
                                                   const std::vector<std::uint64_t>& disk_bytes,
                                                   const HistoryPoint& covers);

/// What the activity file says of the images, which are at `covers` and are a replica's from now on, becomes their
/// trail, in place of the one that is there; then the file is removed, durably. Without an activity file nothing is
/// done. Errors: of a removal.
[[nodiscard]] Status convert_activity(const std::string& volume_dir,
                                      std::string_view volume_uuid,
                                      const std::vector<std::uint64_t>& disk_bytes,
                                      const HistoryPoint& covers);
/// Removes the trail, durably. One that is not there is fine.
[[nodiscard]] Status forget_trail(const std::string& volume_dir);

}  // namespace replicad
