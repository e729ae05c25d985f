#pragma once
// Compares a range of an image with the checksums of the primary's blocks: reads it in one piece and
// hashes block by block. Changes that are on their way to the same range may or may not be seen;
// docs/protocol.md says why that does no harm. Reactor thread only; the read in flight keeps the
// object alive.

#include <functional>
#include <memory>
#include <vector>

#include "core/base/checksum.h"
#include "replicad/replica_images.h"

namespace replicad {

class BlockCompare : public std::enable_shared_from_this<BlockCompare> {
 public:
  /// Per block of the range: whether it differs. Errors: Errc::io_error and the like, with the path.
  using Done = std::function<void(Result<std::vector<bool>>)>;

  /// `range` lies within its disk, begins at a block and has `sums.size()` blocks (the last one may
  /// be short).
  static std::shared_ptr<BlockCompare> create(Reactor& reactor,
                                              std::shared_ptr<ImageSet> images,
                                              const Range& range,
                                              std::vector<Digest> sums);
  /// `done` runs later, once.
  void start(Done done);

 private:
  BlockCompare(Reactor& reactor,
               std::shared_ptr<ImageSet> images,
               const Range& range,
               std::vector<Digest> sums);
  [[nodiscard]] std::vector<bool> compare() const;

  Reactor& reactor_;
  std::shared_ptr<ImageSet> images_;
  Range range_;
  std::vector<Digest> sums_;
  std::vector<std::byte> bytes_;
  Done done_;
};

}  // namespace replicad
