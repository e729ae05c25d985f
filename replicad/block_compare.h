#pragma once
// Compares a range of an image with the checksums of the primary's blocks: reads it in one piece,
// lays over it what a stage holds that is gone on with, and hashes block by block. Changes that are
// on their way to the same range may or may not be seen; docs/protocol.md says why that does no harm.
// Reactor thread only; the read in flight keeps the object alive.

#include <functional>
#include <memory>
#include <vector>

#include "core/base/checksum.h"
#include "replicad/replica_images.h"
#include "replicad/resync_stage.h"

namespace replicad {

class BlockCompare : public std::enable_shared_from_this<BlockCompare> {
 public:
  /// Per block of the range: whether it differs. Errors: Errc::io_error and the like, with the path.
  /// `in_stage`: the stage could not be read.
  struct Failure {
    Error error;
    bool in_stage = false;
  };
  using Done = std::function<void(tl::expected<std::vector<bool>, Failure>)>;

  /// `range` lies within its disk, begins at a block and has `sums.size()` blocks (the last one may
  /// be short).
  static std::shared_ptr<BlockCompare> create(Reactor& reactor,
                                              std::shared_ptr<ImageSet> images,
                                              const Range& range,
                                              std::vector<Digest> sums);
  /// `done` runs later, once. `overlay` may be null.
  void start(std::shared_ptr<const StageOverlay> overlay, Done done);

 private:
  BlockCompare(Reactor& reactor,
               std::shared_ptr<ImageSet> images,
               const Range& range,
               std::vector<Digest> sums);
  void lay_over();
  [[nodiscard]] std::vector<bool> compare() const;

  Reactor& reactor_;
  std::shared_ptr<ImageSet> images_;
  Range range_;
  std::vector<Digest> sums_;
  std::vector<std::byte> bytes_;
  std::shared_ptr<const StageOverlay> overlay_;
  std::vector<StageIndex::Piece> pieces_;
  std::size_t next_piece_ = 0;
  Done done_;
};

}  // namespace replicad
