#pragma once
// Accounting of the primary's ring: which frame stands where, what is free, what the digest is
// after each frame. The bytes themselves belong to the runtime. Offsets count bytes since the ring
// was made; the place in memory is offset modulo capacity. Not thread-safe: the owner locks.

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/checksum.h"
#include "core/base/time.h"
#include "core/wire/messages.h"

namespace replicad {

class RingIndex {
 public:
  /// One numbered frame in the ring.
  struct Entry {
    DigestItem item;                ///< payload_crc32c is set by seal()
    std::uint64_t begin_bytes = 0;  ///< ring offset of the header
    std::uint64_t end_bytes = 0;
    Digest digest_before;  ///< of the history up to the frame before; valid once that one is sealed
    Instant placed_at;
  };

  /// `capacity_bytes`: of the ring's memory. `base`: the history point before the first frame.
  RingIndex(std::uint64_t capacity_bytes, const HistoryPoint& base);

  /// Whether a frame of `frame_bytes` fits beside what is stored and reserved.
  [[nodiscard]] bool can_reserve(std::uint64_t frame_bytes) const;
  /// Sets space and an entry aside; place() uses them, cancel() gives them back.
  void reserve(std::uint64_t frame_bytes);
  void cancel(std::uint64_t frame_bytes);

  /// Gives reserved space the next sequence. `item.sequence` is overwritten; returns the entry's
  /// ring offset.
  std::uint64_t place(DigestItem item, std::uint64_t frame_bytes, Instant now);
  /// The frame's bytes are complete; frames are sealed in sequence order, which fixes the digest.
  void seal(Sequence sequence, std::uint32_t payload_crc32c);

  /// Drops the oldest frame. Requires: not empty, sealed.
  void drop_oldest();

  [[nodiscard]] bool empty() const { return first_ == next_; }
  [[nodiscard]] Sequence first() const { return first_; }  ///< oldest stored frame
  [[nodiscard]] Sequence next() const { return next_; }    ///< sequence the next placed frame gets
  [[nodiscard]] Sequence next_unsealed() const { return unsealed_; }
  [[nodiscard]] bool all_sealed() const { return unsealed_ == next_; }
  /// Stored frame; requires first() <= sequence < next().
  [[nodiscard]] const Entry& at(Sequence sequence) const;
  /// The history up to `sequence`: nullopt if it has left the ring or is not sealed yet.
  [[nodiscard]] std::optional<HistoryPoint> point(Sequence sequence) const;
  /// The history up to the last sealed frame.
  [[nodiscard]] HistoryPoint sealed_point() const { return sealed_; }
  /// Ring offset behind `sequence`, which is first()-1 .. next()-1.
  [[nodiscard]] std::uint64_t end_of(Sequence sequence) const;
  /// Bytes stored and reserved.
  [[nodiscard]] std::uint64_t used_bytes() const {
    return head_bytes_ - tail_bytes_ + reserved_bytes_;
  }
  [[nodiscard]] std::uint64_t capacity_bytes() const { return capacity_bytes_; }
  [[nodiscard]] std::size_t entries_max() const { return entries_.size(); }

 private:
  [[nodiscard]] Entry& slot(Sequence sequence) { return entries_[sequence % entries_.size()]; }

  std::uint64_t capacity_bytes_;
  std::vector<Entry> entries_;
  Sequence first_;
  Sequence unsealed_;
  Sequence next_;
  std::uint64_t tail_bytes_ = 0;
  std::uint64_t head_bytes_ = 0;
  std::uint64_t reserved_bytes_ = 0;
  std::size_t reserved_entries_ = 0;
  HistoryPoint before_first_;
  HistoryPoint sealed_;
};

}  // namespace replicad
