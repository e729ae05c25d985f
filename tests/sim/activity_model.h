#pragma once
// The activity map of a primary as the plugin keeps it (nbd-plugin/activity_log), on a simulated disk, with small
// regions. A model: what is written in which order is copied from there; the bits of the file are the real ones. Every
// write of the file is a step of its own, after which power may be lost.

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/repl/primary.h"
#include "core/store/activity_file.h"
#include "tests/sim/program.h"

namespace replicad::sim {

class ActivityModel : public std::enable_shared_from_this<ActivityModel> {
 public:
  struct Setup {
    std::vector<std::uint64_t> disk_bytes;
    std::vector<std::string> members;
    Epoch epoch;
    HistoryPoint history;
    bool unclean = false;
  };
  struct Known {
    std::vector<Term> terms;
    std::vector<KnownLack> lacks;
    std::shared_ptr<const Trail> trail;
  };
  /// What a pass asks of the plugin.
  struct Environment {
    std::function<const Primary&()> core;
    std::function<void(std::function<void(bool)>)> sync_images;
  };

  ActivityModel(World& world, Machine& machine, const Options& options, Life life, Setup setup);

  /// Reads what is on record and records that the term has begun; `done` gets an errno.
  void open(std::function<void(int, Known)> done);
  /// `done` gets 0 once the regions of `range` are hot on stable storage; at once if they are.
  void mark(const Range& range, std::function<void(int)> done);
  void cool(const Environment& environment);
  void finish(const HistoryPoint& point, std::vector<KnownLack> lacks, std::function<void()> done);

 private:
  enum class Heat : std::uint8_t { cold, left_alone, written };
  struct Region {
    DiskIndex disk = 0;
    std::uint64_t index = 0;
    friend auto operator<=>(const Region&, const Region&) = default;
  };
  struct Cooling {
    Region region;
    Sequence through = 0;
    bool synced = false;
    int tries = 0;
  };
  struct Settlement {
    std::vector<std::size_t> whole_slots;  ///< of members that lack nothing
    std::vector<ActivityEntry> lacking;    ///< by cooling region
    std::vector<bool> is_waiting;
  };
  /// Runs with the file to itself until it calls what it is given.
  using Job = std::function<void(std::function<void()> over)>;

  void enqueue(Job job);
  void run_next();
  void write_pages(std::function<void(int)> done);
  void empty_file(const std::function<void(int, Known)>& done);
  void write_header(std::function<void(int)> done);
  [[nodiscard]] Range range_of(const Region& region) const;
  [[nodiscard]] std::vector<Region> regions_of(const Range& range) const;
  [[nodiscard]] bool is_hot(const Range& range);
  [[nodiscard]] ActivityEntry& entry(const Region& region) {
    return entries_[region.disk][region.index];
  }
  [[nodiscard]] std::size_t slot_of(const std::string& host) const;
  void clear_slot(std::size_t slot);
  void mark_in_job(const Range& range, std::function<void(int)> done);
  void choose_cooling();
  void settle(const Environment& environment, std::function<void()> over);
  void settle_regions(const Settlement& settlement, std::function<void()> over);

  World& world_;
  Machine& machine_;
  Planted planted_;
  Life life_;
  Setup setup_;
  ActivityHeader header_;
  std::vector<std::vector<ActivityEntry>> entries_;
  std::vector<std::vector<Heat>> heat_;
  std::vector<Region> hot_;
  std::vector<Cooling> cooling_;
  Sequence cold_through_ = 0;
  int passes_ = 0;
  bool inherited_synced_ = true;
  bool is_cooling_ = false;  ///< or is to, behind what is under way
  std::deque<Job> jobs_;
  bool running_ = false;
};

}  // namespace replicad::sim
