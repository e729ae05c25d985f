#pragma once
// A simulated host without its programs: clock, disk, and the kernel that does their I/O and goes on when they die.

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/store/activity_file.h"
#include "core/store/trail.h"
#include "core/store/volume_state.h"
#include "tests/sim/disk.h"
#include "tests/sim/options.h"
#include "tests/sim/world.h"

namespace replicad::sim {

using HostIndex = std::size_t;

/// "a", "b" ...
[[nodiscard]] std::string host_name(HostIndex index);
[[nodiscard]] HostIndex host_index(std::string_view name);

enum class Program : std::uint8_t { daemon, plugin };

/// The activity file of a primary, as it is on stable storage.
struct ActivityRecord {
  std::optional<ActivityHeader> header;  ///< none: there is no file
  std::vector<std::vector<ActivityEntry>> entries;
};

/// The trail of a replica, likewise: two headers that take turns, and the pages by disk.
struct TrailRecord {
  std::array<std::optional<TrailHeader>, 2> headers;
  std::vector<std::vector<std::vector<Sequence>>> pages;
};

/// Small ones, of activity map and trail.
constexpr std::uint64_t small_region_bytes = 2 * compare_block_bytes;

/// Makes the record that of `trail`, which leads to `covers`.
void put_trail(TrailRecord& record, Trail trail, const HistoryPoint& covers);
/// What the record says of the images at `covers`, if it speaks of that point.
[[nodiscard]] std::optional<TrailFound> find_trail(const TrailRecord& record,
                                                   const std::vector<std::uint64_t>& disk_bytes,
                                                   const HistoryPoint& covers);

class Machine {
 public:
  using Action = Task;
  /// errno, 0 = done.
  using IoDone = std::function<void(int)>;

  Machine(World& world, const Options& options, HostIndex index);

  const HostIndex index;
  const std::string name;
  std::vector<Image> images;
  Directory log;
  VolumeState state;  ///< the state file: as it is on stable storage
  ActivityRecord activity;
  TrailRecord trail;
  Sequence told_durable = 0;  ///< highest sequence that a replica here has called durable
  /// The most that a replica here has told a primary, by epoch.
  std::map<std::uint64_t, Watermarks> told;

  /// What it has told in that epoch or a later one.
  [[nodiscard]] Watermarks told_since(std::uint64_t epoch) const;

  /// What a program reads as the time.
  [[nodiscard]] Instant clock() const { return world_.now() + clock_offset_; }
  void jump_clock(Duration by) {
    clock_offset_ += by;
    jumped_at_ = world_.now();
  }
  /// What measures a host's time in the product does not jump.
  [[nodiscard]] bool has_jumped_since(Instant time) const {
    return jumped_at_ && *jumped_at_ >= time;
  }
  /// Like World::after, for a program: waits while the machine is paused, and is dropped when power is lost.
  template <typename Function>
  void after(Duration delay, Function&& function) {
    world_.after(delay, std::forward<Function>(function), gate_);
  }
  /// I/O: `effect` happens even if the program that asked is dead by then (unless power is lost or the I/O fails);
  /// `done` follows. `takes_space`: fails on a full disk.
  void io(Action effect, IoDone done, bool takes_space = false, Program owner = Program::daemon);
  /// I/O that dead programs have left behind.
  [[nodiscard]] bool has_io_in_flight() const {
    return has_io_in_flight(Program::daemon) || has_io_in_flight(Program::plugin);
  }
  [[nodiscard]] bool has_io_in_flight(Program owner) const {
    return io_in_flight_[static_cast<std::size_t>(owner)] > 0;
  }
  [[nodiscard]] bool draw_error();  ///< whether an I/O fails now
  [[nodiscard]] bool is_full() const { return world_.now() < full_until_; }
  [[nodiscard]] bool is_paused() const { return world_.now() < gate_.paused_until; }

  [[nodiscard]] bool is_powered() const { return powered_; }
  void lose_power();
  void power_up() { powered_ = true; }
  void pause(Duration length) { gate_.paused_until = world_.now() + length; }
  void disturb_disk(Duration length) { errors_until_ = world_.now() + length; }
  void fill_disk(Duration length) { full_until_ = world_.now() + length; }
  void slow_disk(Duration length) { slow_until_ = world_.now() + length; }
  /// Somebody keeps copies of the images, now and then; a swap puts the last ones in their place.
  void back_up();
  [[nodiscard]] bool has_backup() const { return !backup_.empty(); }
  void swap_disk();
  /// What the file system tells of an image: another one after a swap.
  [[nodiscard]] std::string image_identity() const;
  /// Why the images are not those that the state file marks (the product's own code says so).
  [[nodiscard]] std::optional<std::string> why_other_images() const;
  /// They are of an earlier time, and nobody has been told yet.
  [[nodiscard]] bool has_old_images() const { return old_images_; }
  void accept_images() { old_images_ = false; }
  void heal();
  /// Changes at every start of the machine.
  [[nodiscard]] std::string boot_id() const;

 private:
  World& world_;
  const Options& options_;
  std::vector<Blocks> backup_;
  std::uint64_t images_made_ = 1;
  bool old_images_ = false;
  Duration clock_offset_{};
  std::optional<Instant> jumped_at_;
  Instant errors_until_{};
  Instant full_until_{};
  Instant slow_until_{};
  struct Io {
    Action effect;
    IoDone done;
    bool takes_space = false;
    Program owner = Program::daemon;
  };
  void finish_io(Io& io);

  Slots<Io> ios_;
  bool powered_ = true;
  Gate gate_;
  std::array<std::size_t, 2> io_in_flight_{};
};

}  // namespace replicad::sim
