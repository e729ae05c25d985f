#pragma once
// The record of a volume that its voters keep (docs/architecture.md, "Voting"): who the primary is
// and in which term, which members are in sync, who the members are. Voters are the members, data
// members and witnesses alike. Pure values and rules.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/ids.h"
#include "core/base/result.h"

namespace replicad {

struct MemberState {
  std::string host;
  std::string stream;    ///< address of its stream port; empty at a witness
  std::string control;   ///< address of its control API
  bool witness = false;  ///< votes only, no images

  friend bool operator==(const MemberState&, const MemberState&) = default;
};

/// Number of a proposal, ordered and never used twice: `nonce` is a proposer's own, so that one that
/// has forgotten its last round cannot repeat it. {0, "", 0} stands before all.
struct Ballot {
  std::uint64_t round = 0;
  std::string host;
  std::uint32_t nonce = 0;

  friend auto operator<=>(const Ballot&, const Ballot&) = default;
};

/// Whose votes count and how.
struct VoterSet {
  std::vector<std::string> hosts;
  std::string tie_break;  ///< counts twice; empty: every vote is one

  friend bool operator==(const VoterSet&, const VoterSet&) = default;
};

/// A prepared move of a running VM from `from` to `to` (docs/decisions/0011): the role moves at most once each way.
struct HandoverState {
  std::uint32_t id = 0;  ///< random, not 0
  std::string from;
  std::string to;
  std::uint64_t term = 0;  ///< number of the epoch in which `to` became the primary; 0: it has not

  friend bool operator==(const HandoverState&, const HandoverState&) = default;
};

struct Record {
  std::uint64_t version = 0;  ///< 1 at creation; each record is built on the one with version - 1
  std::uint32_t fork = 0;     ///< 0; or the tag of the forced record that opened this history
  Epoch epoch;                ///< of the primary's term
  std::string primary;
  std::vector<std::string> in_sync;  ///< the primary included
  std::vector<MemberState> members;
  std::string tie_break;           ///< with an even number of voters: the primary. Else empty
  std::optional<VoterSet> before;  ///< if voters or tie-break are others than in version - 1: those
  std::optional<HandoverState> handover = {};

  friend bool operator==(const Record&, const Record&) = default;
};

[[nodiscard]] const MemberState* find_member(const std::vector<MemberState>& members,
                                             std::string_view host);
/// Whether `host` is a member with images.
[[nodiscard]] bool is_data_member(const Record& record, std::string_view host);
[[nodiscard]] VoterSet voters_of(const Record& record);
/// More than half of the votes of `voters` are in `yes`.
[[nodiscard]] bool has_quorum(const VoterSet& voters, const std::vector<std::string>& yes);
/// A quorum of the record's voters, and of the voters before unless it is known that the record was
/// chosen.
[[nodiscard]] bool has_quorum(const Record& record,
                              const std::vector<std::string>& yes,
                              bool known_chosen);
/// Everybody whose vote may be needed for the record: voters and voters before.
[[nodiscard]] std::vector<std::string> hosts_to_ask(const Record& record);

/// `changed` (a copy of `base` with other content) made a successor of `base`: version, tie-break
/// and voters before are set.
[[nodiscard]] Record successor(const Record& base, Record changed);
/// The first record of a new volume.
[[nodiscard]] Record first_record(std::string primary,
                                  std::vector<std::string> in_sync,
                                  std::vector<MemberState> members);
/// Rules that every record obeys, wherever it comes from. Errors: Errc::invalid_argument.
[[nodiscard]] Status check_record(const Record& record);

/// For messages: "version 7, epoch 3, primary a".
[[nodiscard]] std::string describe(const Record& record);

}  // namespace replicad
