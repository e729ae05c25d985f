#include "replicad/block_compare.h"

#include <algorithm>
#include <cerrno>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "io/read_fully.h"

namespace replicad {

BlockCompare::BlockCompare(Reactor& reactor,
                           std::shared_ptr<ImageSet> images,
                           const Range& range,
                           std::vector<Digest> sums)
    : reactor_(reactor),
      images_(std::move(images)),
      range_(range),
      sums_(std::move(sums)),
      bytes_(range.length_bytes) {}

std::shared_ptr<BlockCompare> BlockCompare::create(Reactor& reactor,
                                                   std::shared_ptr<ImageSet> images,
                                                   const Range& range,
                                                   std::vector<Digest> sums) {
  return std::shared_ptr<BlockCompare>(
      new BlockCompare(reactor, std::move(images), range, std::move(sums)));
}

void BlockCompare::start(std::shared_ptr<const StageOverlay> overlay, Done done) {
  overlay_ = std::move(overlay);
  done_ = std::move(done);
  read_fully(reactor_,
             images_->fd(range_.disk),
             bytes_,
             range_.offset_bytes,
             [self = shared_from_this()](int sys_errno) {
               if (sys_errno == 0) {
                 if (self->overlay_) self->pieces_ = self->overlay_->index.pieces(self->range_);
                 return self->lay_over();
               }
               Error error = errno_to_error(sys_errno == ENODATA ? EIO : sys_errno,
                                            fmt::format("read {} at {} to compare it",
                                                        self->images_->path(self->range_.disk),
                                                        self->range_.offset_bytes));
               self->done_(tl::unexpected(Failure{std::move(error), false}));
             });
}

void BlockCompare::lay_over() {
  while (next_piece_ < pieces_.size()) {
    const StageIndex::Piece& piece = pieces_[next_piece_++];
    const auto part = std::span(bytes_).subspan(piece.range.offset_bytes - range_.offset_bytes,
                                                piece.range.length_bytes);
    if (!piece.file_offset) {
      std::ranges::fill(part, std::byte{0});
      continue;
    }
    read_fully(reactor_,
               overlay_->fd->get(),
               part,
               *piece.file_offset,
               [self = shared_from_this()](int sys_errno) {
                 if (sys_errno == 0) return self->lay_over();
                 Error error = errno_to_error(sys_errno == ENODATA ? EIO : sys_errno,
                                              "read " + self->overlay_->path);
                 self->done_(tl::unexpected(Failure{std::move(error), true}));
               });
    return;
  }
  done_(compare());
}

std::vector<bool> BlockCompare::compare() const {
  std::vector<bool> differs;
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    const std::size_t at = i * compare_block_bytes;
    RD_CHECK(at < bytes_.size());
    const std::size_t length = std::min<std::size_t>(compare_block_bytes, bytes_.size() - at);
    differs.push_back(block_sum(std::span(bytes_).subspan(at, length)) != sums_[i]);
  }
  return differs;
}

}  // namespace replicad
