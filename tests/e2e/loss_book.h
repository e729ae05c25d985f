#pragma once
// What an `async` volume may lose, reckoned by its guest. Each writer of a Load keeps a journal of the changes that
// were answered; when a new term begins it reads its stripe and takes back what is missing there. What is left must
// be what it had written up to some point, all writers' points must fit one order of the writes (P2), and what was
// lost may not be more than the primary's ring holds.

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace replicad::e2e {

/// A change of one writer. `sent` and `answered` are readings of one clock that all writers share.
struct JournalEntry {
  std::uint64_t epoch = 0;   ///< term of the export that answered
  std::uint64_t offset = 0;  ///< within the stripe
  std::vector<std::byte> before;
  std::int64_t sent = 0;
  std::int64_t answered = 0;
  [[nodiscard]] std::uint64_t bytes() const { return before.size(); }
};

/// All writers' losses, by the term in which the writes were answered and the term that lacked them. Any thread.
class LossBook {
 public:
  /// `bytes_max`: what one failover may lose of one term, over all writers.
  explicit LossBook(std::uint64_t bytes_max) : bytes_max_(bytes_max) {}

  /// What a writer found in the term `found`: `lost` is missing there, `kept` is not, both in the order written.
  /// Throws HarnessError if that is more than may be lost, or fits no order of the writes.
  void add(std::uint64_t found,
           std::span<const JournalEntry> kept,
           std::span<const JournalEntry> lost);

  [[nodiscard]] std::uint64_t lost_bytes() const;
  [[nodiscard]] std::uint64_t lost_writes() const;

 private:
  struct Sums {
    std::int64_t kept_sent = 0;      ///< latest
    std::int64_t lost_answered = 0;  ///< earliest; 0: nothing lost
    std::uint64_t lost_bytes = 0;
  };

  std::uint64_t bytes_max_;
  mutable std::mutex mutex_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, Sums> sums_;
  std::uint64_t lost_bytes_ = 0;
  std::uint64_t lost_writes_ = 0;
};

/// One writer's journal, and what its stripe must hold.
class LossJournal {
 public:
  /// Remembers changes of the last `bytes_max` bytes.
  explicit LossJournal(std::uint64_t bytes_max) : bytes_max_(bytes_max) {}

  /// Before the mirror takes the change: `entry.before` is what it overwrites, `after` what it writes.
  void add(JournalEntry entry, std::span<const std::byte> after);

  /// `found` is the stripe as read in the term `epoch`; `pending` what the writer has sent without an answer (it may
  /// be there or not, sector by sector). Takes back in `mirror` what is missing. Throws HarnessError if `found` is no
  /// state that the writer's changes went through, or what LossBook::add throws.
  void reconcile(std::uint64_t epoch,
                 std::span<std::byte> mirror,
                 std::span<const std::byte> found,
                 std::uint64_t pending_offset,
                 std::span<const std::byte> pending,
                 LossBook& book);

 private:
  std::uint64_t bytes_max_;
  std::uint64_t bytes_ = 0;
  std::vector<JournalEntry> entries_;
};

}  // namespace replicad::e2e
