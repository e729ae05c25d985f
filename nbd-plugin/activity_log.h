#pragma once
// The activity map of a serving primary: which regions (4 MiB) of its images may differ from some member's, kept
// in a file so that it is still known after a crash (docs/disk-format.md, "Activity file"). A region is marked
// *hot*, durably, before the first write into it; it goes cold again when nobody has written to it for a while and
// every member has it durable, or its lack is on record in the same file.
//
// Threads: mark() is for guests' threads and costs one load once a region is hot; the rest is for one thread at a
// time, which may be another one.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "core/repl/primary.h"
#include "core/store/activity_file.h"
#include "io/fd.h"

namespace replicad {

class ActivityLog {
 public:
  struct Setup {
    std::string path;
    std::string volume_uuid;
    std::vector<std::uint64_t> disk_bytes;
    std::vector<std::string> members;  ///< hosts of the other members
    Epoch epoch;                       ///< of the term that begins
    HistoryPoint history;              ///< where it begins
    bool unclean = false;              ///< the term before did not end cleanly
  };
  /// What the file knew of the terms before, for PrimaryConfig. Empty if it is new, damaged or not of this
  /// history.
  struct Known {
    std::vector<Term> terms;
    std::vector<KnownLack> lacks;
    /// Where the images were changed and perhaps never synced, after an unclean end.
    std::vector<Range> unsynced;
    /// How the images came to where this host became the primary, if that is known. May be null.
    std::shared_ptr<const Trail> trail;
  };
  /// What a pass asks of the core and the images.
  struct Environment {
    /// Runs the function on the primary, under the bridge's lock.
    std::function<void(const std::function<void(const Primary&)>&)> look;
    std::function<bool()> sync_images;  ///< fdatasync of all; false on error
  };

  /// Reads the file, or begins a new one, and records that the term has begun: durable on return. Blocking.
  /// Errors: errno's, with the path.
  [[nodiscard]] static Result<std::unique_ptr<ActivityLog>> open(const Setup& setup, Known& known);

  /// Guest: `range` is about to be changed, its write is admitted. On return its regions are hot on stable
  /// storage. Result: 0 or errno, then nothing may be written.
  [[nodiscard]] int mark(const Range& range);

  /// Lets regions go cold that have been left alone since the last pass, and forgets the lacks of members that
  /// have everything. Blocking; call every few seconds.
  void cool(const Environment& environment);

  /// The term ends cleanly at `point`: every image is durable, nothing is being written any more. Durable on
  /// return, blocking.
  [[nodiscard]] Status finish(const HistoryPoint& point, const std::vector<KnownLack>& lacks);

  /// Any thread, never waits.
  [[nodiscard]] std::size_t hot_regions() const { return hot_count_; }

 private:
  enum class Heat : std::uint8_t { cold, left_alone, written };
  struct Region {
    DiskIndex disk = 0;
    std::uint64_t index = 0;
    friend auto operator<=>(const Region&, const Region&) = default;
  };
  struct Cooling {
    Region region;
    Sequence through = 0;  ///< no later change is in the region; 0: not known yet
    bool synced = false;   ///< this host's images have it durable
    int tries = 0;
  };
  struct Disk {
    std::unique_ptr<std::atomic<Heat>[]> heat;
    std::vector<ActivityEntry> entries;  ///< as on the disk
    std::uint64_t first_page = 0;        ///< in the file
  };
  using Pages = std::set<std::pair<DiskIndex, std::uint64_t>>;

  ActivityLog(const Setup& setup, Fd file);

  [[nodiscard]] Status load(const Setup& setup, Known& known);
  void load_pages();
  [[nodiscard]] std::shared_ptr<const Trail> load_trail(const Setup& setup,
                                                        const HistoryPoint& covers) const;
  void note_unsynced(bool is_continued, Known& known) const;
  [[nodiscard]] KnownLack lack_of_slot(std::size_t slot) const;
  [[nodiscard]] Status begin_term(const Setup& setup, bool is_continued);
  [[nodiscard]] Range range_of(const Region& region) const;
  [[nodiscard]] int mark_slowly(const Range& range);
  [[nodiscard]] bool is_hot(const Range& range);
  [[nodiscard]] std::vector<Region> regions_of(const Range& range) const;
  void choose_cooling();
  void settle_cooling(const Environment& environment);
  [[nodiscard]] std::size_t slot_of(const std::string& host) const;
  void assign_slots(const std::vector<std::string>& hosts, Pages& pages);
  void clear_slot(std::size_t slot, Pages& pages);
  void note_page(const Region& region, Pages& pages) const;
  [[nodiscard]] Status write_pages(const Pages& pages);
  [[nodiscard]] Status write_header();

  std::string path_;
  Fd file_;
  std::vector<std::uint64_t> disk_bytes_;

  std::atomic<std::size_t> hot_count_{0};
  std::mutex mutex_;  ///< guards the file and all below but for Disk::heat
  ActivityHeader header_;
  bool header_written_ = true;  ///< the last attempt to write it has worked
  std::vector<Disk> disks_;
  int passes_ = 0;
  /// What a term that did not end cleanly has written may be in the kernel's memory alone until the images are synced
  /// in this one: a loss of power would take it from here, and leave it at the members.
  bool inherited_synced_ = true;
  Sequence cold_through_ = 0;     ///< no cold region has a later change
  std::vector<Region> hot_;       ///< in the order they became hot
  std::vector<Cooling> cooling_;  ///< of hot_: marked cold in memory, still hot on disk

  std::mutex wanted_mutex_;     ///< inside mutex_
  std::vector<Region> wanted_;  ///< by guests that wait for mutex_: the first one marks for all
};

}  // namespace replicad
