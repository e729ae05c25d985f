#pragma once
// A file of lost writes as bytes: what a member held that the history it rewinds to lacks. A header, then
// copy_data and copy_zero frames with the old content. Layout, crash orders and golden bytes: docs/disk-format.md.
// Pure functions, any thread.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/wire/messages.h"

namespace replicad {

constexpr std::size_t lost_header_bytes = 8 * kib;

struct LostHeader {
  struct Disk {
    std::string name;
    std::uint64_t bytes = 0;
    friend bool operator==(const Disk&, const Disk&) = default;
  };
  std::string volume;
  std::string volume_uuid;
  std::string host;  ///< the member whose content this is
  std::vector<Disk> disks;
  HistoryPoint left;                ///< where that member's own history ended
  Epoch term;                       ///< of the last writes of that history
  std::string primary;              ///< who is the primary of the history that replaces it
  Epoch epoch;                      ///< and its epoch
  std::uint64_t begun_seconds = 0;  ///< since 1970, by the member's clock

  friend bool operator==(const LostHeader&, const LostHeader&) = default;
};

/// Exactly lost_header_bytes. Names are of valid lengths (limits.h).
[[nodiscard]] std::vector<std::byte> encode_lost_header(const LostHeader& header);
/// Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
[[nodiscard]] Result<LostHeader> decode_lost_header(std::span<const std::byte> from);

/// The header of the record for `range` with this old content; all zero: without a payload.
[[nodiscard]] FrameHeader lost_record(const Range& range, std::span<const std::byte> content);
/// The header of a record of a file that began with `file`: the kind, and a range within its disk. Errors:
/// Errc::corrupt. Any bytes are safe.
[[nodiscard]] Result<FrameHeader> decode_lost_record(
    const LostHeader& file, std::span<const std::byte, frame_header_bytes> from);

/// "%08llu.lost"
[[nodiscard]] std::string lost_file_name(std::uint64_t number);
/// nullopt for any other name.
[[nodiscard]] std::optional<std::uint64_t> lost_number_from_name(std::string_view name);

}  // namespace replicad
