#pragma once
// Bytes of a stream -> frames, in a buffer of fixed size: no length field of a peer makes it
// allocate. Not thread-safe.

#include <cstddef>
#include <memory>
#include <optional>
#include <span>

#include "core/wire/frame.h"

namespace replicad {

/// A complete frame inside the reader's buffer; valid until compact().
struct FrameView {
  FrameHeader header;
  std::span<const std::byte> payload;
  std::span<const std::byte> bytes;  ///< header and payload as they arrived
};

class FrameReader {
 public:
  /// `capacity_bytes`: at least one largest frame (frame_header_bytes + payload limit).
  explicit FrameReader(std::size_t capacity_bytes);

  /// Where the next received bytes go; empty when the buffer is full (call compact after the frames
  /// are used).
  [[nodiscard]] std::span<std::byte> writable();
  /// `count` bytes were received into writable().
  void commit(std::size_t count);

  /// The next complete frame with verified header and payload checksum; nullopt when more bytes are
  /// needed.
  /// Errors: Errc::protocol, Errc::version_mismatch; the connection is then useless.
  [[nodiscard]] Result<std::optional<FrameView>> next();

  /// Moves the unread bytes to the front of the buffer. Invalidates every FrameView.
  void compact();
  /// Bytes received and not yet returned by next().
  [[nodiscard]] std::size_t unread_bytes() const { return end_ - read_; }
  /// True when nothing more fits until compact() is called.
  [[nodiscard]] bool full() const { return end_ == capacity_; }
  void clear() { read_ = end_ = 0; }

 private:
  std::unique_ptr<std::byte[]> buffer_;
  std::size_t capacity_;
  std::size_t read_ = 0;
  std::size_t end_ = 0;
};

}  // namespace replicad
