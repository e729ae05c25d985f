#include "core/repl/ring_index.h"

#include <algorithm>

#include "core/base/check.h"

namespace replicad {

namespace {

// Bounds the memory of the index for rings full of tiny frames: at least 1 KiB of ring per entry in
// rings of up to 32 MiB, 4 KiB in large ones, so that each can be filled with 4 KiB writes.
std::size_t entry_count(std::uint64_t capacity_bytes) {
  const std::uint64_t small = std::clamp<std::uint64_t>(capacity_bytes / kib, 1024, 32768);
  return static_cast<std::size_t>(std::max(small, capacity_bytes / (4 * kib)));
}

}  // namespace

RingIndex::RingIndex(std::uint64_t capacity_bytes, const HistoryPoint& base)
    : capacity_bytes_(capacity_bytes),
      entries_(entry_count(capacity_bytes)),
      first_(base.sequence + 1),
      unsealed_(base.sequence + 1),
      next_(base.sequence + 1),
      before_first_(base),
      sealed_(base) {
  RD_CHECK(capacity_bytes >= kib);
}

bool RingIndex::can_reserve(std::uint64_t frame_bytes) const {
  return used_bytes() + frame_bytes <= capacity_bytes_ &&
         next_ - first_ + reserved_entries_ < entries_.size();
}

void RingIndex::reserve(std::uint64_t frame_bytes) {
  RD_CHECK(can_reserve(frame_bytes));
  reserved_bytes_ += frame_bytes;
  ++reserved_entries_;
}

void RingIndex::cancel(std::uint64_t frame_bytes) {
  RD_CHECK(reserved_bytes_ >= frame_bytes);
  RD_CHECK(reserved_entries_ > 0);
  reserved_bytes_ -= frame_bytes;
  --reserved_entries_;
}

std::uint64_t RingIndex::place(DigestItem item, std::uint64_t frame_bytes, Instant now) {
  cancel(frame_bytes);
  item.sequence = next_;
  Entry& entry = slot(next_);
  entry.item = item;
  entry.begin_bytes = head_bytes_;
  entry.end_bytes = head_bytes_ + frame_bytes;
  entry.placed_at = now;
  head_bytes_ = entry.end_bytes;
  ++next_;
  return entry.begin_bytes;
}

void RingIndex::seal(Sequence sequence, std::uint32_t payload_crc32c) {
  RD_CHECK(sequence == unsealed_);
  RD_CHECK(sequence < next_);
  Entry& entry = slot(sequence);
  entry.item.payload_crc32c = payload_crc32c;
  entry.digest_before = sealed_.digest;
  sealed_ = HistoryPoint{entry.item.epoch, sequence, extend_digest(sealed_.digest, entry.item)};
  ++unsealed_;
}

void RingIndex::drop_oldest() {
  RD_CHECK(first_ < unsealed_);
  const auto dropped = point(first_);
  RD_CHECK(dropped.has_value());
  before_first_ = *dropped;
  tail_bytes_ = slot(first_).end_bytes;
  ++first_;
}

const RingIndex::Entry& RingIndex::at(Sequence sequence) const {
  RD_CHECK(sequence >= first_);
  RD_CHECK(sequence < next_);
  return entries_[sequence % entries_.size()];
}

std::optional<HistoryPoint> RingIndex::point(Sequence sequence) const {
  if (sequence == sealed_.sequence) return sealed_;
  if (sequence == before_first_.sequence) return before_first_;
  if (sequence < first_ || sequence >= unsealed_) return std::nullopt;
  return HistoryPoint{at(sequence).item.epoch, sequence, at(sequence + 1).digest_before};
}

std::uint64_t RingIndex::end_of(Sequence sequence) const {
  if (sequence + 1 == first_) return tail_bytes_;
  return at(sequence).end_bytes;
}

}  // namespace replicad
