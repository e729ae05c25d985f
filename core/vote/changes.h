#pragma once
// What may be changed in a record, each with the condition that must hold of the record it is built
// on. A change that finds its own result already there returns the record unchanged: a proposer
// that lost its answer proposes nothing twice.

#include <functional>

#include "core/vote/record.h"

namespace replicad {

/// From the chosen record and the highest fence that was heard of to the next record, or why not.
/// Errors: Errc::stale_epoch: another term has begun. Errc::refused: a rule forbids it.
using RecordChange = std::function<Result<Record>(const Record& base, const Epoch& fence)>;

/// No change: what is chosen, read by a majority.
[[nodiscard]] RecordChange change_nothing();

/// Nothing but the next version: what is chosen with it is later than all that a voter may have forgotten.
[[nodiscard]] RecordChange change_version();

/// A new term of the recorded primary, with the in-sync set as it is or itself alone. Its number is
/// above `epoch_min`, the record's and every fence's. It ends a handover that has moved the role here, but for the term
/// that the move itself begins with (no guest was served between the two).
struct ClaimTerm {
  std::string host;
  std::uint32_t tag = 0;  ///< random: makes the term this caller's own
  std::uint64_t epoch_min = 0;
  bool keep_in_sync = true;
};
[[nodiscard]] RecordChange change_claim(ClaimTerm claim);

/// Another in-sync set; only by the recorded primary in its own term.
[[nodiscard]] RecordChange change_in_sync(std::string host,
                                          Epoch epoch,
                                          std::vector<std::string> in_sync);

/// The planned move to a member of the in-sync set, all of which stays: it holds everything.
struct Promotion {
  std::string target;
  Epoch from;   ///< the term that ends
  Epoch epoch;  ///< the new one; its number is higher
  /// The handover that must be on record for this way: its move sets the term, its way back removes it. Without one a
  /// promotion removes whatever handover there is.
  std::optional<std::uint32_t> handover = {};
};
[[nodiscard]] RecordChange change_promote(Promotion promotion);

/// A handover is prepared or ended; only by the recorded primary in its own term. Errors: Errc::busy for another one on
/// record. Ending one that is not on record (any more) changes nothing.
[[nodiscard]] RecordChange change_prepare_handover(Epoch epoch, HandoverState handover);
[[nodiscard]] RecordChange change_end_handover(std::string host, Epoch epoch, std::uint32_t id);

/// The forced move: `target` alone is in sync afterwards.
struct Failover {
  std::string target;
  Epoch from;               ///< the term that ends, as the caller saw it
  std::uint32_t tag = 0;    ///< random
  bool any_member = false;  ///< the target need not be in the in-sync set
};
[[nodiscard]] RecordChange change_failover(Failover failover);

/// Only by the recorded primary. One member at a time.
[[nodiscard]] RecordChange change_add_member(std::string host, MemberState member);
[[nodiscard]] RecordChange change_remove_member(std::string host, std::string member);

/// Without a majority: a history of its own, in which only `kept` (the target among them) are
/// members. To be taken over by all of them; whoever is not among them refuses it ever after.
[[nodiscard]] Result<Record> forced_record(const Record& base,
                                           const std::string& target,
                                           const std::vector<std::string>& kept,
                                           const Epoch& epoch);

}  // namespace replicad
