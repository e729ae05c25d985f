#pragma once
// What must be true: the histories that primaries have written, as they would be on an ideal disk, and what the guest
// may see. It knows nothing of the code under test but what it is told: each sealed frame, each request and its
// answer.

#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/repl/primary.h"
#include "tests/sim/disk.h"
#include "tests/sim/world.h"

namespace replicad::sim {

/// Content of all disks after each point of each history.
class Histories {
 public:
  Histories(World& world, unsigned disks, unsigned blocks);

  /// A history begins: the images are `images` at `point`.
  void begin(const HistoryPoint& point, const Images& images);
  /// `after` follows `before` by a frame that puts `stamps` on `range` (none for a flush).
  void extend(const HistoryPoint& before,
              const HistoryPoint& after,
              const Range& range,
              std::vector<Stamp> stamps);
  /// Violation if `point` is on no history.
  [[nodiscard]] Images at(const HistoryPoint& point) const;
  /// Whether `point` is `of` or before it.
  [[nodiscard]] bool is_prefix(const HistoryPoint& point, const HistoryPoint& of) const;

 private:
  struct Node {
    HistoryPoint point;
    const Node* before = nullptr;
    Range range;
    std::vector<Stamp> stamps;
    std::shared_ptr<const Images> images;  ///< of some
  };
  /// nullptr if `point` is on no history.
  [[nodiscard]] const Node* find(const HistoryPoint& point) const;
  [[nodiscard]] const Node& node(const HistoryPoint& point) const;

  World& world_;
  Images empty_;
  struct Hash {
    std::size_t operator()(const Digest& digest) const { return digest.low; }
  };
  std::unordered_map<Digest, Node, Hash> nodes_;
};

void apply_stamps(Images& images, const Range& range, const std::vector<Stamp>& stamps);

/// A request of the guest.
struct GuestOp {
  enum class Kind : std::uint8_t { write, zero, trim, flush, read };
  std::uint64_t id = 0;
  Kind kind = Kind::write;
  Range range;
  bool fua = false;
  std::vector<Stamp> stamps;  ///< of a change
  Instant issued;
  std::uint64_t flush_covers =
      0;  ///< flush: writes answered before it was issued have answers up to this one
};

/// What the guest was told, per block.
class GuestHistory {
 public:
  GuestHistory(World& world, unsigned disks, unsigned blocks);

  void issued(GuestOp& op);
  /// Errors are answers of unknown effect.
  void answered(const GuestOp& op, bool failed);
  /// Checks what a read that was issued at `op.issued` got.
  void check_read(const GuestOp& op, const std::vector<Stamp>& got);
  /// A primary went on from a disk that lost power: what was answered and not flushed may be gone.
  void lose_unflushed();
  /// What was answered may be gone (async failover).
  void lose_all();
  /// `images` as if the guest read all of it now.
  void check_images(const Images& images, std::string_view where);

 private:
  struct Write {
    Stamp stamp = 0;
    std::uint64_t issued = 0;    ///< order of events seen by the guest
    std::uint64_t answered = 0;  ///< 0: not, or lost by right
    bool flushed = false;
    std::uint64_t op = 0;
  };
  using Block = std::vector<Write>;
  struct Answered {
    std::uint64_t op = 0;
    std::uint64_t at = 0;
    Range range;
  };
  void mark_flushed(const Answered& answered);
  void check_block(
      DiskIndex disk, std::size_t block, Stamp got, std::uint64_t begun, std::string_view where);

  World& world_;
  std::uint64_t clock_ = 0;
  std::vector<std::vector<Block>> disks_;
  std::map<std::uint64_t, std::uint64_t> begun_;  ///< of requests in flight, by id
  std::vector<Answered> unflushed_;
};

}  // namespace replicad::sim
