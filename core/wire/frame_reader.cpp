#include "core/wire/frame_reader.h"

#include <cstring>

#include "core/base/check.h"

namespace replicad {

// new[] without initialiser: untouched pages of a large buffer stay unmapped.
FrameReader::FrameReader(std::size_t capacity_bytes)
    : buffer_(new std::byte[capacity_bytes]), capacity_(capacity_bytes) {
  RD_CHECK(capacity_bytes >= frame_header_bytes + data_payload_bytes_max);
}

std::span<std::byte> FrameReader::writable() {
  return {buffer_.get() + end_, capacity_ - end_};
}

void FrameReader::commit(std::size_t count) {
  RD_CHECK(count <= capacity_ - end_);
  end_ += count;
}

Result<std::optional<FrameView>> FrameReader::next() {
  const std::span<const std::byte> unread{buffer_.get() + read_, end_ - read_};
  if (unread.size() < frame_header_bytes) return std::nullopt;
  auto header = decode_header(unread.first<frame_header_bytes>());
  if (!header) return tl::unexpected(std::move(header).error());
  const std::size_t frame_bytes = frame_header_bytes + header->payload_bytes;
  if (unread.size() < frame_bytes) return std::nullopt;
  const auto payload = unread.subspan(frame_header_bytes, header->payload_bytes);
  RD_TRY(check_payload(*header, payload));
  read_ += frame_bytes;
  return FrameView{*header, payload, unread.first(frame_bytes)};
}

void FrameReader::compact() {
  std::memmove(buffer_.get(), buffer_.get() + read_, end_ - read_);
  end_ -= read_;
  read_ = 0;
}

}  // namespace replicad
