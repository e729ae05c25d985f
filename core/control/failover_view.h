#pragma once
// What the members say when the primary may be lost: which copies there are, how complete they are,
// whether enough voters answer, and who still hears the primary. Used by the host that is to take
// over and by replicactl alike. Pure.

#include <optional>
#include <string>
#include <vector>

#include "core/control/views.h"
#include "core/vote/record.h"

namespace replicad {

/// One member's copy as far as it is known.
struct CopyInfo {
  std::string host;
  bool witness = false;
  bool reachable = false;
  std::string silent_because;
  bool in_sync = false;
  bool consistent = true;
  bool is_short = false;                   ///< it may lack what it acknowledged before a crash
  bool end_known = true;                   ///< false: it may go on behind `sequence`
  Epoch epoch;                             ///< of the last write it has logged
  Sequence sequence = 0;                   ///< likewise
  std::optional<Sequence> writes_behind;   ///< than the furthest copy that answers
  std::optional<double> heard_seconds;     ///< since it last heard the primary
  std::optional<std::uint64_t> lag_bytes;  ///< that the primary last knew it to lack
  std::optional<double> lag_seconds;       ///< likewise
  std::vector<DiskLoss>
      lacks;  ///< disk by disk: that the primary last knew, or that the furthest copy's log has
};

/// What is to be asked before it can be said what a copy lacks.
struct LogQuestion {
  std::string of;       ///< the copy
  std::string host;     ///< whose log knows
  std::string address;  ///< its control address
  Sequence after = 0;   ///< where the copy ends
};

struct FailoverView {
  std::string volume;
  std::string target;  ///< empty: none asked for
  std::string mode;
  std::optional<Record> record;  ///< the latest that anybody has
  std::vector<CopyInfo> copies;
  bool has_quorum = false;          ///< of the record's voters, among those that answer
  std::string primary_alive;        ///< who still hears it and how; empty: nobody
  std::vector<std::string> silent;  ///< voters that do not answer
};

[[nodiscard]] FailoverView look_for_failover(const std::string& target,
                                             const std::vector<MemberReport>& reports);

/// For each copy that is behind the furthest one that answers, unless the primary has told: the answers go to
/// MemberReport::lacks.
[[nodiscard]] std::vector<LogQuestion> log_questions(const std::vector<MemberReport>& reports);

/// Whether `view.target` may take over without --force. Errors: Errc::refused with the reason and
/// what every copy has; Errc::unreachable without a quorum.
[[nodiscard]] Status check_failover(const FailoverView& view);

/// The in-sync copies that could take over, the most complete first. Those equal are in the order
/// of the record. `with_short`: with --force also those that may lack what they acknowledged.
[[nodiscard]] std::vector<std::string> failover_candidates(const FailoverView& view,
                                                           bool with_short = false);

/// The copies that may take over although every replica in sync is short: when all members in sync
/// answer, the longest of them. The recorded primary is one of them, and counts with the point of its
/// clean end; without one its copy may be the longest. Empty if the rule does not apply.
[[nodiscard]] std::vector<std::string> longest_of_short(const Record& record,
                                                        const std::vector<CopyInfo>& copies);

/// Printable lines: one for each copy, "b: in sync, at write 42", and one for each disk of which it lacks something.
[[nodiscard]] std::vector<std::string> describe_copies(const FailoverView& view);
[[nodiscard]] nlohmann::json copies_json(const FailoverView& view);

}  // namespace replicad
