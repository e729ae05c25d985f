#include "nbd-plugin/copy_job.h"

#include <algorithm>
#include <cstring>

namespace replicad {

namespace {

bool all_zero(std::span<const std::byte> bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace

CopyJob::CopyJob(Reactor& reactor,
                 Bridge& bridge,
                 const std::vector<DiskImage>& images,
                 PeerIndex peer,
                 Hooks hooks)
    : reactor_(reactor),
      bridge_(bridge),
      images_(images),
      peer_(peer),
      hooks_(std::move(hooks)),
      buffer_(frame_header_bytes + data_payload_bytes_max) {
  for (const DiskImage& image : images_)
    total_bytes_ += image.bytes();
}

void CopyJob::start() {
  next();
}

void CopyJob::next() {
  if (stopped_) return;
  while (disk_ < images_.size() && offset_bytes_ == images_[disk_].bytes()) {
    ++disk_;
    offset_bytes_ = 0;
  }
  if (disk_ == images_.size()) {
    hooks_.on_end();
    return;
  }
  const DiskImage::Extent extent = images_[disk_].extent_at(offset_bytes_);
  const std::uint64_t length_max = extent.is_hole ? range_bytes_max : data_payload_bytes_max;
  locked_ = Range{disk_, offset_bytes_, std::min(extent.length_bytes, length_max)};
  bridge_.step(primary_event::CopyLock{peer_, locked_});
}

void CopyJob::on_locked() {
  if (stopped_) return;
  // What it is counts under the lock.
  const DiskImage::Extent extent = images_[disk_].extent_at(offset_bytes_);
  const std::uint64_t length = std::min(extent.length_bytes, locked_.length_bytes);
  if (extent.is_hole) {
    finish_piece(FrameType::copy_zero, length);
  } else {
    read_data(std::min<std::uint64_t>(length, data_payload_bytes_max), 0);
  }
}

void CopyJob::read_data(std::uint64_t length, std::uint64_t filled) {
  const auto rest = std::span(buffer_).subspan(frame_header_bytes + filled, length - filled);
  const auto self = shared_from_this();
  reactor_.read(
      images_[disk_].fd(), rest, offset_bytes_ + filled, [self, length, filled](int result) {
        if (self->stopped_) return;
        if (result <= 0) {
          self->hooks_.on_error(errno_to_error(result < 0 ? -result : EIO,
                                               fmt::format("read {} at {} for a copy",
                                                           self->images_[self->disk_].path(),
                                                           self->offset_bytes_ + filled)));
          return;
        }
        const std::uint64_t now_filled = filled + static_cast<std::uint64_t>(result);
        if (now_filled < length) {
          self->read_data(length, now_filled);
          return;
        }
        const auto payload =
            std::span<const std::byte>(self->buffer_).subspan(frame_header_bytes, length);
        self->finish_piece(all_zero(payload) ? FrameType::copy_zero : FrameType::copy_data, length);
      });
}

void CopyJob::finish_piece(FrameType type, std::uint64_t length) {
  FrameHeader header;
  header.type = type;
  header.range = Range{disk_, offset_bytes_, length};
  if (type == FrameType::copy_data) {
    header.payload_bytes = static_cast<std::uint32_t>(length);
    header.payload_crc32c =
        crc32c(std::span<const std::byte>(buffer_).subspan(frame_header_bytes, length));
  }
  encode_header(header, std::span(buffer_).first<frame_header_bytes>());
  piece_ = std::span<const std::byte>(buffer_).first(frame_header_bytes + header.payload_bytes);
  offset_bytes_ += length;
  done_bytes_ += length;
  // The piece is handed over before the lock goes: writes admitted from here on are sent behind it.
  hooks_.on_piece();
  bridge_.step(primary_event::CopyUnlock{peer_});
}

void CopyJob::piece_sent() {
  piece_ = {};
  next();
}

void CopyJob::stop() {
  stopped_ = true;
}

}  // namespace replicad
