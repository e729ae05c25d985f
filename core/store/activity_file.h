#pragma once
// The activity file of a primary as bytes: two headers that take turns, then pages with an entry for
// each region (4 MiB) of each disk. Layout, crash orders and golden bytes: docs/disk-format.md. Pure
// functions, any thread.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/wire/messages.h"

namespace replicad {

constexpr std::size_t activity_header_bytes = 32 * kib;  ///< of each of the two
constexpr std::size_t activity_page_bytes = 4096;
constexpr std::size_t activity_entries_per_page = 2040;
/// Members that have a bit of their own: all but the primary.
constexpr std::size_t activity_slots = members_max - 1;
constexpr std::size_t activity_terms_max = 64;
constexpr std::uint64_t activity_region_bytes = std::uint64_t{4} << 20;

/// What an entry says of its region. Bit i below `activity_hot`: the member of slot i may lack
/// something in it.
using ActivityEntry = std::uint16_t;
constexpr ActivityEntry activity_hot = 1U << 15;  ///< any member may differ in it
constexpr ActivityEntry activity_all = 0xffff;

struct ActivityMember {
  std::string host;   ///< empty: the slot is free
  Sequence base = 0;  ///< the file says nothing of what the member lacks below that

  friend bool operator==(const ActivityMember&, const ActivityMember&) = default;
};

struct ActivityHeader {
  std::uint64_t generation = 0;  ///< counts headers written; the higher of two valid ones counts
  std::string volume_uuid;
  std::vector<std::uint64_t> disk_bytes;
  std::vector<ActivityMember> members;  ///< by slot, at most activity_slots
  /// Terms in which this host was the primary, one after the other with no other primary between,
  /// and the last sequence of each; the newest one's is not known yet.
  struct Term {
    Epoch epoch;
    Sequence end = 0;
    friend bool operator==(const Term&, const Term&) = default;
  };
  std::vector<Term> terms;
  std::optional<HistoryPoint> clean;  ///< where the newest term ended cleanly
  /// Where the first of `terms` that this host was the primary in began, if there is a trail that covers it.
  std::optional<HistoryPoint> trail = {};

  friend bool operator==(const ActivityHeader&, const ActivityHeader&) = default;
};

struct ActivityContent {
  ActivityHeader header;
  std::vector<std::vector<ActivityEntry>> entries;  ///< by disk and region
};
/// The whole of a file. A damaged page says that anything in it may differ; one that was never written, nothing.
/// nullopt: no header is whole. Any bytes are safe; `disk_bytes` must be what the header says.
[[nodiscard]] std::optional<ActivityContent> read_activity(
    std::span<const std::byte> file, const std::vector<std::uint64_t>& disk_bytes);
/// Longest file for such disks.
[[nodiscard]] std::uint64_t activity_file_bytes(const std::vector<std::uint64_t>& disk_bytes);

/// Exactly activity_header_bytes.
[[nodiscard]] std::vector<std::byte> encode_activity_header(const ActivityHeader& header);
/// Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
[[nodiscard]] Result<ActivityHeader> decode_activity_header(std::span<const std::byte> from);

/// `entries`: activity_entries_per_page of them. `disk` and `page` number the page.
void encode_activity_page(DiskIndex disk,
                          std::uint32_t page,
                          std::span<const ActivityEntry> entries,
                          std::span<std::byte, activity_page_bytes> to);
/// A page of zeroes was never written: nothing is known in it. Errors: Errc::corrupt. Any bytes are
/// safe.
[[nodiscard]] Result<std::vector<ActivityEntry>> decode_activity_page(
    DiskIndex disk, std::uint32_t page, std::span<const std::byte, activity_page_bytes> from);

}  // namespace replicad
