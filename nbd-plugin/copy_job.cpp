#include "nbd-plugin/copy_job.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/wire/messages.h"
#include "io/read_fully.h"

namespace replicad {

namespace {

// Pieces of blocks that are being read, or whose checksums are not answered.
constexpr std::size_t compares_max = 8;
static_assert(compares_max <= compares_in_flight_max);
constexpr std::uint64_t compare_bytes_max = compare_blocks_max * compare_block_bytes;

bool all_zero(std::span<const std::byte> bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

std::uint64_t blocks_of(std::uint64_t bytes) {
  return (bytes + block_bytes - 1) / block_bytes;
}

}  // namespace

CopyJob::CopyJob(Reactor& reactor,
                 Bridge& bridge,
                 const std::vector<DiskImage>& images,
                 PeerIndex peer,
                 std::shared_ptr<const ResyncPlan> plan,
                 Hooks hooks)
    : reactor_(reactor),
      bridge_(bridge),
      images_(images),
      peer_(peer),
      plan_(std::move(plan)),
      hooks_(std::move(hooks)),
      found_(plan_->send.disk_bytes()),
      total_blocks_(plan_->send.blocks() + plan_->compare.blocks()),
      buffer_(frame_header_bytes + data_payload_bytes_max) {}

void CopyJob::start() {
  next();
}

void CopyJob::next() {
  if (stopped_ || ended_) return;
  begin_compares();
  if (stopped_ || is_sending_) return;
  if (find_piece()) {
    is_sending_ = true;
    bridge_.step(primary_event::CopyLock{peer_, locked_});
  } else if (compares_begun_ && reads_in_flight_ == 0 && unanswered_.empty()) {
    ended_ = true;
    hooks_.on_end();
  }
}

/// What is at the beginning of `range`, in whole blocks: a hole counts from its first whole block on.
CopyJob::Extent CopyJob::whole_blocks_at(const Range& range) const {
  const DiskImage& image = images_[range.disk];
  const DiskImage::Extent extent = image.extent_at(range.offset_bytes);
  if (range.offset_bytes + extent.length_bytes >= range.end_bytes()) {
    return {range.length_bytes, extent.is_hole};
  }
  const std::uint64_t whole = extent.length_bytes / block_bytes * block_bytes;
  if (extent.is_hole && whole > 0) return {whole, true};
  return {std::min(range.length_bytes, blocks_of(extent.length_bytes) * block_bytes), false};
}

bool CopyJob::find_piece() {
  auto run = found_.next(0, 0, range_bytes_max);
  is_found_ = run.has_value();
  if (!run) run = plan_->send.next(send_.disk, send_.offset_bytes, range_bytes_max);
  if (!run) return false;
  const Extent extent = whole_blocks_at(*run);
  locked_ = *run;
  locked_.length_bytes =
      extent.is_hole ? extent.length_bytes : std::min(extent.length_bytes, data_payload_bytes_max);
  return true;
}

void CopyJob::on_locked() {
  if (stopped_) return;
  // What it is counts under the lock.
  const Extent extent = whole_blocks_at(locked_);
  if (extent.is_hole) {
    finish_piece(FrameType::copy_zero, extent.length_bytes);
  } else {
    read_data(std::min<std::uint64_t>(extent.length_bytes, data_payload_bytes_max));
  }
}

void CopyJob::read_data(std::uint64_t length) {
  const auto payload = std::span(buffer_).subspan(frame_header_bytes, length);
  read_fully(reactor_,
             images_[locked_.disk].fd(),
             payload,
             locked_.offset_bytes,
             [self = shared_from_this(), payload, length](int sys_errno) {
               if (self->stopped_) return;
               if (sys_errno != 0) return self->fail_read(sys_errno, self->locked_, "for a copy");
               self->finish_piece(all_zero(payload) ? FrameType::copy_zero : FrameType::copy_data,
                                  length);
             });
}

void CopyJob::fail_read(int sys_errno, const Range& range, std::string_view purpose) {
  hooks_.on_error(errno_to_error(
      sys_errno == ENODATA ? EIO : sys_errno,
      fmt::format("read {} at {} {}", images_[range.disk].path(), range.offset_bytes, purpose)));
}

void CopyJob::finish_piece(FrameType type, std::uint64_t length) {
  FrameHeader header;
  header.type = type;
  header.range = Range{locked_.disk, locked_.offset_bytes, length};
  if (type == FrameType::copy_data) {
    header.payload_bytes = static_cast<std::uint32_t>(length);
    header.payload_crc32c =
        crc32c(std::span<const std::byte>(buffer_).subspan(frame_header_bytes, length));
  }
  encode_header(header, std::span(buffer_).first<frame_header_bytes>());
  piece_ = std::span<const std::byte>(buffer_).first(frame_header_bytes + header.payload_bytes);
  if (is_found_) {
    found_.clear(header.range);
  } else {
    send_ = {header.range.disk, header.range.end_bytes()};
  }
  done_blocks_ += blocks_of(length);
  sent_bytes_ += header.payload_bytes;
  // The piece is handed over before the lock goes: writes admitted from here on are sent behind it.
  hooks_.on_piece();
  bridge_.step(primary_event::CopyUnlock{peer_});
}

void CopyJob::piece_sent() {
  piece_ = {};
  is_sending_ = false;
  next();
}

// --- comparing

void CopyJob::begin_compares() {
  while (!compares_begun_ && reads_in_flight_ + unanswered_.size() < compares_max) {
    auto run = plan_->compare.next(compare_.disk, compare_.offset_bytes, range_bytes_max);
    if (!run) {
      compares_begun_ = true;
      return;
    }
    const Extent extent = whole_blocks_at(*run);
    run->length_bytes =
        extent.is_hole ? extent.length_bytes : std::min(extent.length_bytes, compare_bytes_max);
    compare_ = {run->disk, run->end_bytes()};
    if (extent.is_hole) {
      found_.mark(*run);  // one short frame, whatever the replica has there
      continue;
    }
    ++reads_in_flight_;
    read_blocks(*run, std::make_shared<std::vector<std::byte>>(run->length_bytes));
  }
}

void CopyJob::read_blocks(const Range& range,
                          const std::shared_ptr<std::vector<std::byte>>& buffer) {
  read_fully(reactor_,
             images_[range.disk].fd(),
             *buffer,
             range.offset_bytes,
             [self = shared_from_this(), range, buffer](int sys_errno) {
               if (self->stopped_) return;
               if (sys_errno != 0) return self->fail_read(sys_errno, range, "to compare it");
               --self->reads_in_flight_;
               self->send_sums(range, *buffer);
             });
}

void CopyJob::send_sums(const Range& range, const std::vector<std::byte>& bytes) {
  std::vector<Digest> sums;
  const std::span<const std::byte> all(bytes);
  for (std::size_t at = 0; at < bytes.size(); at += block_bytes) {
    const std::size_t length = std::min<std::size_t>(block_bytes, bytes.size() - at);
    sums.push_back(block_sum(all.subspan(at, length)));
  }
  unanswered_.push_back(range);
  hooks_.on_compare(encode_block_sums(range, sums));
}

Status CopyJob::on_diffs(const Range& range, std::span<const std::byte> payload) {
  const auto asked = std::ranges::find(unanswered_, range);
  if (asked == unanswered_.end()) return fail(Errc::protocol, "block_diffs for nothing asked");
  unanswered_.erase(asked);
  std::uint64_t equal_blocks = blocks_of(range.length_bytes);
  for (const Range& different : decode_block_diffs(range, payload)) {
    found_.mark(different);
    equal_blocks -= blocks_of(different.length_bytes);
  }
  done_blocks_ += equal_blocks;
  next();
  return {};
}

void CopyJob::stop() {
  stopped_ = true;
}

CopyJob::Progress CopyJob::progress() const {
  const std::uint64_t done = std::min(done_blocks_, total_blocks_);
  return {.done_bytes = done * block_bytes,
          .total_bytes = total_blocks_ * block_bytes,
          .sent_bytes = sent_bytes_,
          .blocks_left = total_blocks_ - done};
}

}  // namespace replicad
