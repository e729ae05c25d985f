#include "tests/e2e/loss_book.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

#include <fmt/format.h>

#include "tests/e2e/process.h"

namespace replicad::e2e {

namespace {

constexpr std::uint64_t sector_bytes = 512;

/// Sectors of a stripe that are not what was read. A sector of the pending request may also hold that.
class Differences {
 public:
  Differences(std::span<const std::byte> mirror,
              std::span<const std::byte> found,
              std::uint64_t pending_offset,
              std::span<const std::byte> pending)
      : mirror_(mirror), found_(found), pending_offset_(pending_offset), pending_(pending) {
    differs_.resize(mirror.size() / sector_bytes);
    look_again(0, mirror.size());
  }

  [[nodiscard]] std::uint64_t count() const { return count_; }
  [[nodiscard]] std::uint64_t first() const {
    return static_cast<std::uint64_t>(std::ranges::find(differs_, true) - differs_.begin()) *
           sector_bytes;
  }

  /// The mirror has changed there.
  void look_again(std::uint64_t offset, std::uint64_t bytes) {
    for (std::uint64_t at = offset; at < offset + bytes; at += sector_bytes) {
      const bool now = !equal(at);
      const std::uint64_t sector = at / sector_bytes;
      if (now && !differs_[sector]) ++count_;
      if (!now && differs_[sector]) --count_;
      differs_[sector] = now;
    }
  }

 private:
  [[nodiscard]] bool equal(std::uint64_t at) const {
    const std::byte* got = found_.data() + at;
    if (std::memcmp(got, mirror_.data() + at, sector_bytes) == 0) return true;
    if (at < pending_offset_ || at >= pending_offset_ + pending_.size()) return false;
    return std::memcmp(got, pending_.data() + (at - pending_offset_), sector_bytes) == 0;
  }

  std::span<const std::byte> mirror_;
  std::span<const std::byte> found_;
  std::uint64_t pending_offset_;
  std::span<const std::byte> pending_;
  std::vector<bool> differs_;
  std::uint64_t count_ = 0;
};

}  // namespace

void LossBook::add(std::uint64_t found,
                   std::span<const JournalEntry> kept,
                   std::span<const JournalEntry> lost) {
  const std::lock_guard lock(mutex_);
  for (const JournalEntry& entry : kept) {
    Sums& sums = sums_[{entry.epoch, found}];
    sums.kept_sent = std::max(sums.kept_sent, entry.sent);
  }
  for (const JournalEntry& entry : lost) {
    Sums& sums = sums_[{entry.epoch, found}];
    sums.lost_answered =
        sums.lost_bytes == 0 ? entry.answered : std::min(sums.lost_answered, entry.answered);
    sums.lost_bytes += entry.bytes();
    lost_bytes_ += entry.bytes();
    ++lost_writes_;
  }
  for (const auto& [terms, sums] : sums_) {
    if (terms.second != found || sums.lost_bytes == 0) continue;
    if (sums.lost_bytes > bytes_max_) {
      throw HarnessError(
          fmt::format("epoch {} lacks {} bytes of what was answered in epoch {}; the ring holds {}",
                      found,
                      sums.lost_bytes,
                      terms.first,
                      bytes_max_));
    }
    if (sums.lost_answered < sums.kept_sent) {
      throw HarnessError(
          fmt::format("epoch {} lacks a write that was answered in epoch {}, and has one that was "
                      "sent after that answer",
                      found,
                      terms.first));
    }
  }
}

std::uint64_t LossBook::lost_bytes() const {
  const std::lock_guard lock(mutex_);
  return lost_bytes_;
}

std::uint64_t LossBook::lost_writes() const {
  const std::lock_guard lock(mutex_);
  return lost_writes_;
}

void LossJournal::add(JournalEntry entry, std::span<const std::byte> after) {
  // Whether such a one was lost nobody can see.
  if (std::ranges::equal(entry.before, after)) return;
  bytes_ += entry.bytes();
  entries_.push_back(std::move(entry));
  // In steps: what is at the front moves all the rest.
  if (bytes_ < 2 * bytes_max_) return;
  auto keep = entries_.begin();
  for (; bytes_ > bytes_max_; ++keep)
    bytes_ -= keep->bytes();
  entries_.erase(entries_.begin(), keep);
}

void LossJournal::reconcile(std::uint64_t epoch,
                            std::span<std::byte> mirror,
                            std::span<const std::byte> found,
                            std::uint64_t pending_offset,
                            std::span<const std::byte> pending,
                            LossBook& book) {
  Differences differences(mirror, found, pending_offset, pending);
  const std::uint64_t first = differences.count() == 0 ? 0 : differences.first();
  auto lost = entries_.end();
  while (differences.count() != 0) {
    if (lost == entries_.begin()) {
      throw HarnessError(fmt::format(
          "what epoch {} holds is no state that was ever written: it differs at {} of the "
          "stripe from what was answered last, and with {} changes taken back still in {} sectors",
          epoch,
          first,
          entries_.size(),
          differences.count()));
    }
    --lost;
    std::memcpy(mirror.data() + lost->offset, lost->before.data(), lost->before.size());
    differences.look_again(lost->offset, lost->bytes());
  }
  book.add(epoch, {entries_.begin(), lost}, {lost, entries_.end()});
  bytes_ =
      std::accumulate(entries_.begin(), lost, std::uint64_t{0}, [](auto sum, const auto& entry) {
        return sum + entry.bytes();
      });
  entries_.erase(lost, entries_.end());
}

}  // namespace replicad::e2e
