#pragma once
// Compares this host's images with one replica's, beside live writes (docs/protocol.md, "Verify"). It changes nothing.
// Reactor thread only; the images are read on a worker's.
//
// First pass: all disks, in pieces, without a lock. A block found equal is equal: of each byte either both sides were
// seen at the same point, or a numbered frame brings it there. A block found different may only have been written to.
//
// Second pass, over those: lock the run (no write in it is in flight, new ones wait), read it, send its checksums, and
// keep the lock until the answer or for lock_hold_max. With the lock still held, different means different. Else the
// run is tried again later, rounds_max times in all; then it counts as not compared: the replica is too far behind.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "io/medium_sums.h"
#include "io/reactor.h"
#include "io/worker.h"
#include "nbd-plugin/bridge.h"

namespace replicad {

class VerifyJob : public std::enable_shared_from_this<VerifyJob> {
 public:
  static constexpr Duration lock_hold_max = std::chrono::seconds(1);
  static constexpr unsigned rounds_max = 3;
  /// More is no bit rot.
  static constexpr std::uint64_t different_blocks_max = 65'536;

  /// Outlive the job.
  struct Context {
    Reactor& reactor;
    Worker& worker;
    Bridge& bridge;
    const std::vector<DiskImage>& images;
    PeerIndex peer;
  };
  struct Hooks {
    std::function<void(std::vector<std::byte> frame)> on_sums;  ///< send this frame, any time
    std::function<void()> on_sync;  ///< let the replica make durable, and so apply, what it has
    std::function<void()> on_end;   ///< the passes are over; nothing is locked or unanswered
  };

  VerifyJob(const Context& context, Hooks hooks);

  /// Both passes over everything. Once.
  void start();
  /// The second pass over blocks that were found different and written anew since. Once, after start() has ended well.
  void recheck(const BlockMap& blocks);
  /// The effect CopyLocked.
  void on_locked();
  /// A `block_diffs` frame. Errors: Errc::protocol if it answers no frame of ours.
  [[nodiscard]] Status on_diffs(const Range& range, std::span<const std::byte> payload);
  /// Ends when what is under way has ended.
  void stop(const Error& error);
  /// The connection is gone, and its lock: ends now.
  void lost(const Error& error);

  [[nodiscard]] bool is_over() const { return over_; }
  /// Why it ended early, or cannot go on; nullopt: it has looked at all it was to look at.
  [[nodiscard]] const std::optional<Error>& error() const { return error_; }
  [[nodiscard]] std::uint64_t total_bytes() const { return total_bytes_; }
  /// Found equal, or what they are was found out.
  [[nodiscard]] std::uint64_t done_bytes() const;
  [[nodiscard]] const BlockMap& found() const { return found_; }          ///< different, at first
  [[nodiscard]] const BlockMap& different() const { return different_; }  ///< still
  [[nodiscard]] const BlockMap& not_compared() const { return not_compared_; }
  [[nodiscard]] std::uint64_t repaired_blocks() const { return repaired_blocks_; }
  /// Of the last block that cannot be read here.
  [[nodiscard]] const std::optional<Error>& read_error() const { return read_error_; }

 private:
  /// A frame of the first pass that is not answered.
  struct Sweep {
    Range range;
    std::vector<bool> unreadable;
  };
  /// A run of the second pass.
  struct Probe {
    Range range;
    bool locked = false;
    bool sent = false;
    std::optional<Reactor::TimerId> timer;
    std::vector<bool> unreadable;
  };

  void next();
  void begin_sweeps();
  [[nodiscard]] std::optional<Range> next_piece();
  void read(const Range& range, std::function<void(MediumSums)> then);
  void on_swept(const Range& range, MediumSums sums);
  void begin_probe();
  void on_probed(MediumSums sums);
  void end_probe(std::span<const std::byte> payload);
  void unlock();
  void take_unreadable(const Range& range, const std::vector<bool>& unreadable, BlockMap& from);
  void end();

  Context context_;
  Hooks hooks_;
  std::map<DiskIndex, MediumReader> readers_;  ///< on the worker's thread only
  std::uint64_t total_bytes_ = 0;
  std::uint64_t swept_bytes_ = 0;
  DiskIndex disk_ = 0;              ///< the next piece of the first pass
  std::uint64_t offset_bytes_ = 0;  ///< likewise
  bool swept_ = false;              ///< all of it has begun
  std::size_t reads_in_flight_ = 0;
  std::vector<Sweep> unanswered_;
  std::optional<Probe> probe_;
  unsigned round_ = 1;
  bool rechecks_ = false;
  BlockMap suspects_;  ///< for the second pass
  BlockMap again_;     ///< for its next round
  BlockMap found_;
  BlockMap different_;
  BlockMap not_compared_;
  std::uint64_t repaired_blocks_ = 0;
  std::optional<Error> read_error_;
  std::optional<Error> error_;
  bool over_ = false;
};

}  // namespace replicad
