#pragma once
// What a frame connection hands to sendmsg at a time: whole control frames, then bulk vectors. Keeps exact account
// of short sends, wherever they end. Not thread-safe; does not move while a message is in flight.

#include <algorithm>
#include <array>
#include <climits>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <sys/uio.h>

#include "core/base/check.h"
#include "io/read_fully.h"

namespace replicad {

class SendBatch {
 public:
  static constexpr std::size_t vectors_max = IOV_MAX;
  /// Leaves room for bulk in the same message.
  static constexpr std::size_t frames_max = vectors_max / 2;

  /// Nothing is left to send.
  [[nodiscard]] bool empty() const { return next_ == count_; }
  [[nodiscard]] bool has_bulk() const { return count_ > frames_.size(); }
  /// What is left, as one message; valid until the next call.
  [[nodiscard]] msghdr* message() {
    message_ = {};
    message_.msg_iov = &vectors_[next_];
    message_.msg_iovlen = count_ - next_;
    return &message_;
  }

  void clear() {
    frames_.clear();
    frame_bytes_ = 0;
    next_ = count_ = 0;
  }
  /// Before any bulk; at most frames_max.
  void add_frame(std::vector<std::byte> frame) {
    RD_CHECK(!has_bulk());
    RD_CHECK(count_ < frames_max);
    frames_.push_back(std::move(frame));
    auto& bytes = frames_.back();
    vectors_[count_++] = {bytes.data(), bytes.size()};
    frame_bytes_ += bytes.size();
  }
  /// `fill` as FrameConnection::BulkSource::fill.
  template <typename Fill>
  void add_bulk(const Fill& fill) {
    const std::size_t room = vectors_max - count_;
    const std::size_t added = fill(&vectors_[count_], room);
    RD_CHECK(added <= room);
    // A message of empty vectors alone would look like a send that makes no progress.
    for (std::size_t i = 0, at = count_; i < added; ++i, ++at) {
      if (vectors_[at].iov_len > 0) vectors_[count_++] = vectors_[at];
    }
  }
  /// `bytes` were sent. Returns how many of them were bulk.
  [[nodiscard]] std::size_t consume(std::size_t bytes) {
    const std::size_t of_frames = std::min(bytes, frame_bytes_);
    frame_bytes_ -= of_frames;
    next_ = consume_vectors(std::span(vectors_).first(count_), next_, bytes);
    return bytes - of_frames;
  }

 private:
  std::array<iovec, vectors_max> vectors_{};
  std::vector<std::vector<std::byte>> frames_;
  std::size_t frame_bytes_ = 0;  // unsent
  std::size_t next_ = 0;
  std::size_t count_ = 0;
  msghdr message_{};
};

}  // namespace replicad
