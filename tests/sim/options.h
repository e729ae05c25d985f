#pragma once
// What one seed draws: the size of the world, its load, which faults exist in it and how often.

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "core/base/modes.h"
#include "core/base/time.h"

namespace replicad::sim {

enum class Fault : std::uint8_t {
  plugin_crash,  ///< kill -9 of the primary's plugin
  daemon_crash,  ///< kill -9 of a host's replicad; the page cache stays
  power_loss,    ///< of a host: what was not synced is lost, torn or garbage
  pause,         ///< a host's programs stand still, its kernel goes on
  link_reset,    ///< the connections between two hosts break, in the middle of a frame
  one_way,       ///< nothing gets from one host to another, for a while
  partition,     ///< a host is cut off in both directions
  slow_link,     ///< what goes from one host to another takes long
  disk_error,    ///< EIO of a host's log and images, for a while
  disk_full,     ///< ENOSPC of a host's log and images
  slow_disk,     ///< every I/O of a host takes long
  clock_jump,    ///< a host's clock goes forward or back
  disk_swap,     ///< a replica's host comes back with old copies of its images, the rest stays
};
constexpr std::size_t fault_count = 13;
[[nodiscard]] std::string_view fault_name(Fault fault);

/// Bugs that may be planted into the world, to show that the checkers see them.
enum class Planted : std::uint8_t {
  none,
  sync_without_effect,   ///< P1: a replica's log is called durable before it is
  trusted_cache,         ///< P1: after a crash what the page cache holds is taken for durable
  mark_without_effect,   ///< P2: a copy begins before the replica's mark is on record
  unrecognised_images,   ///< P2: an old copy of the images is taken for what this host wrote
  forgotten_promise,     ///< P3: a voter keeps no promise
  shared_term,           ///< P3: a replica answers before its promise of the term is on record
  unwatched_term,        ///< P3: an async primary does not ask whether a majority still follows it
  flush_without_effect,  ///< P4: the primary answers a flush without syncing its images
  overtaking_writes,     ///< P5: changes of one place are applied in any order
  stale_read,            ///< P5: a read is served from what is on stable storage
  no_second_connection,  ///< P6: a primary never connects again
  unmarked_writes,       ///< P7: writes do not make their regions hot
  cold_too_early,        ///< P7: regions go cold, whatever the members have
  untold_trail,          ///< P7: a replica's trail leaves out what it is told
  unlaid_stage,          ///< P6: a replica compares its images without what its stage has for them
  forgotten_heat,        ///< P2: a former primary's trail leaves out what was hot
  cut_frame,             ///< P8: a frame loses its end, the connection goes on
  unasked_answer         ///< P8: an event that cannot be
};

struct Options {
  std::uint64_t seed = 1;
  unsigned hosts = 3;      ///< data members
  unsigned witnesses = 0;  ///< behind them: votes only
  unsigned disks = 1;
  unsigned blocks = 64;  ///< of 512 bytes, per disk
  Mode mode = Mode::sync;
  Congestion congestion = Congestion::throttle;
  std::uint64_t ring_bytes = std::uint64_t{64} << 10;
  std::uint64_t segment_bytes = std::uint64_t{32} << 10;
  unsigned log_segments = 4;
  Duration ack_timeout = std::chrono::milliseconds(1000);
  unsigned writes = 200;  ///< changes that the guest makes
  unsigned depth = 4;     ///< requests in flight
  unsigned write_blocks_max = 8;
  Duration think_max = std::chrono::milliseconds(10);
  Duration io_max = std::chrono::microseconds(500);
  Duration latency_max = std::chrono::milliseconds(1);
  /// Of changes: they end what a recent one wrote, as one does with temporary files. The disk then is as it was.
  unsigned cleaned_percent = 0;
  /// With each failover the guest is another one: it repeats nothing, and works at another place.
  bool guest_moves = false;
  unsigned copy_cut_percent = 0;  ///< of copies: their connection breaks in the middle
  Duration fault_interval = std::chrono::milliseconds(300);
  std::array<unsigned, fault_count> fault_weights{};
  unsigned faults_max = 30;
  unsigned operator_percent = 30;  ///< of the disturbances are actions of an operator instead
  bool garbage = true;             ///< power loss may leave garbage in sectors that were not synced
  std::set<unsigned> skipped_faults;  ///< by number; for shrinking
  Planted planted = Planted::none;

  /// Everything but `seed` from it.
  [[nodiscard]] static Options draw(std::uint64_t seed);
  [[nodiscard]] std::string describe() const;
};

}  // namespace replicad::sim
