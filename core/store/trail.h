#pragma once
// What a replica knows of the way that its images have come: for each region the last sequence that changed it. So it
// can tell, for any point of its history from `base` on, where its images may differ from what they were there. When
// it becomes the primary, that is what the others may lack. Kept in a file with the checkpoint (docs/disk-format.md,
// "Trail"). Pure; not thread-safe.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/store/activity_file.h"
#include "core/wire/messages.h"

namespace replicad {

constexpr std::size_t trail_header_bytes = 16 * kib;  ///< of each of the two
constexpr std::size_t trail_page_bytes = 4096;
constexpr std::size_t trail_entries_per_page = 510;
constexpr std::size_t trail_terms_max = 64;
constexpr std::uint64_t trail_region_bytes = std::uint64_t{4} << 20;
constexpr std::string_view trail_file_name = "trail";

/// A term of the history and the first sequence that is known to be of it.
struct TrailTerm {
  Epoch epoch;
  Sequence first = 0;

  friend bool operator==(const TrailTerm&, const TrailTerm&) = default;
};

struct TrailHeader {
  std::uint64_t generation = 0;  ///< counts headers written; the higher of two valid ones counts
  std::string volume_uuid;
  std::vector<std::uint64_t> disk_bytes;
  Sequence base = 0;             ///< nothing is known of how the images were below that
  std::vector<TrailTerm> terms;  ///< at most trail_terms_max
  HistoryPoint covers;           ///< everything up to this point is in the pages

  friend bool operator==(const TrailHeader&, const TrailHeader&) = default;
};

/// Exactly trail_header_bytes.
[[nodiscard]] std::vector<std::byte> encode_trail_header(const TrailHeader& header);
/// Errors: Errc::corrupt, Errc::version_mismatch (a later format). Any bytes are safe.
[[nodiscard]] Result<TrailHeader> decode_trail_header(std::span<const std::byte> from);
/// `entries`: trail_entries_per_page of them. `disk` and `page` number the page.
void encode_trail_page(DiskIndex disk,
                       std::uint32_t page,
                       std::span<const Sequence> entries,
                       std::span<std::byte, trail_page_bytes> to);
/// A page of zeroes was never written. Errors: Errc::corrupt. Any bytes are safe.
[[nodiscard]] Result<std::vector<Sequence>> decode_trail_page(
    DiskIndex disk, std::uint32_t page, std::span<const std::byte, trail_page_bytes> from);

class Trail {
 public:
  /// What a file does not say yet.
  struct Changes {
    std::set<std::pair<DiskIndex, std::uint32_t>> pages;  ///< by disk, then page
    bool anew = false;  ///< begun anew: the file that is there would take these pages for its own

    void add(const Changes& others);
  };

  explicit Trail(std::vector<std::uint64_t> disk_bytes = {},
                 std::uint64_t bytes_per_region = trail_region_bytes);

  /// The images are at `point`; nothing is known of the way there.
  void begin(const HistoryPoint& point);
  /// They are changed by this numbered frame, the next of the history or one that was told before.
  void note(const FrameHeader& header);
  /// Goes on from what a file says. `header` is of these disks, and covers the point at which the images are.
  void adopt(const TrailHeader& header);
  /// A page of the file; `entries` empty: it is damaged, its regions may have been changed by anything.
  void adopt_page(DiskIndex disk, std::uint32_t page, std::span<const Sequence> entries);

  /// What to write so that the file covers `point`, which the images have reached: first the pages, durably.
  [[nodiscard]] TrailHeader header(const HistoryPoint& point) const;
  [[nodiscard]] std::vector<Sequence> entries(DiskIndex disk, std::uint32_t page) const;
  [[nodiscard]] std::uint32_t pages(DiskIndex disk) const;
  /// Of a page, counted over all disks.
  [[nodiscard]] std::uint64_t file_page(DiskIndex disk, std::uint32_t page) const;
  /// Those that have changed since the last call, all after begin() and adopt(); also those of earlier calls whose
  /// outcome is not known yet: a header counts for all pages, and theirs may not get there.
  [[nodiscard]] Changes take_changed();
  /// What the earliest such call has taken was written, or was not. In the order of the calls.
  void end_save(bool written);

  [[nodiscard]] Sequence base() const { return base_; }
  [[nodiscard]] const std::vector<TrailTerm>& terms() const { return terms_; }
  [[nodiscard]] const std::vector<std::uint64_t>& disk_bytes() const { return disk_bytes_; }
  /// Where the file that it was read from covers it to.
  [[nodiscard]] const HistoryPoint& covers() const { return covers_; }
  /// Terms of the history up to covers(), with their last sequences there.
  struct Past {
    Epoch epoch;
    Sequence end = 0;
  };
  [[nodiscard]] std::vector<Past> past() const;
  /// Anything may have changed the images in this region, at any time.
  void note_any(DiskIndex disk, std::uint64_t region);
  /// Where the histories part, for one with these terms: how far its newest term that is in this trail, too, goes on
  /// both, and that term. nullopt: nothing is known of how the images were there.
  struct Parting {
    Epoch epoch;
    Sequence sequence = 0;
  };
  /// `last`: of the history that the images stand on.
  [[nodiscard]] std::optional<Parting> parting(const std::vector<HistoryTerm>& theirs,
                                               Sequence last) const;
  /// Where the images may have been changed behind `sequence`, which is not below base(); in order, none touches
  /// another.
  [[nodiscard]] std::vector<Range> changed_since(Sequence sequence) const;

 private:
  [[nodiscard]] std::uint64_t regions(std::size_t disk) const;

  std::vector<std::uint64_t> disk_bytes_;
  std::uint64_t region_bytes_;
  std::vector<std::vector<Sequence>> last_;  ///< by disk and region
  Sequence base_ = 0;
  std::vector<TrailTerm> terms_;
  HistoryPoint covers_;
  Changes changed_;
  std::deque<Changes> taken_;  ///< and not known to be written
};

/// What the activity file of a former primary says of its images, as a trail that leads to where they are now,
/// `covers`. `entries`: by disk and region, of `bytes_per_region`. nullopt: nothing.
[[nodiscard]] std::optional<Trail> trail_of_activity(
    const ActivityHeader& activity,
    const std::vector<std::vector<ActivityEntry>>& entries,
    const HistoryPoint& covers,
    std::uint64_t bytes_per_region = trail_region_bytes);

/// Where in the file: two headers that take turns, then the pages.
[[nodiscard]] constexpr std::uint64_t trail_header_offset(std::uint64_t generation) {
  return generation % 2 == 0 ? 0 : trail_header_bytes;
}
[[nodiscard]] constexpr std::uint64_t trail_page_offset(std::uint64_t file_page) {
  return 2 * trail_header_bytes + file_page * trail_page_bytes;
}
/// Longest file for such disks.
[[nodiscard]] std::uint64_t trail_file_bytes(const std::vector<std::uint64_t>& disk_bytes);

/// What a member with this trail, whose images and log end at `standing`, tells a primary with these terms. nullopt:
/// nothing is known, or it is too much, or it has gone on behind nothing that it shares.
[[nodiscard]] std::optional<AttachedMessage::Parted> tell_parting(
    const Trail& trail, const std::vector<HistoryTerm>& theirs, const HistoryPoint& standing);

struct TrailFound {
  Trail trail;
  std::uint64_t generation = 0;
};
/// The trail of the volume in the whole of a file, if it covers exactly `covers`. nullopt: nothing is known. Any bytes
/// are safe.
[[nodiscard]] std::optional<TrailFound> read_trail(std::span<const std::byte> file,
                                                   std::string_view volume_uuid,
                                                   const std::vector<std::uint64_t>& disk_bytes,
                                                   const HistoryPoint& covers);

}  // namespace replicad
