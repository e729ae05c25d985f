#pragma once
// A voter: what a member answers to a proposer, and what it must have on stable storage before the
// answer leaves. Pure: each function changes the state it is given; the caller makes that state
// durable and only then sends the reply.

#include <optional>

#include "core/vote/record.h"

namespace replicad {

/// What a voter keeps durably.
struct VoterState {
  Ballot promised;               ///< proposals below it are refused
  Ballot accepted;               ///< of the record; {0, ""}: none
  bool chosen = false;           ///< the record accepted is known to have been chosen
  std::optional<Record> record;  ///< none at a member that was added and has not heard yet

  friend bool operator==(const VoterState&, const VoterState&) = default;
};

struct PrepareRequest {
  std::uint32_t fork = 0;  ///< of the history the proposer is in
  Ballot ballot;
};
struct PrepareReply {
  bool granted = false;  ///< otherwise state.promised names the higher ballot
  VoterState state;
  Epoch fence;  ///< highest epoch promised here
};
struct AcceptRequest {
  Ballot ballot;
  Record record;
};
struct AcceptReply {
  bool granted = false;
  Ballot promised;  ///< the higher one if it was not granted
};
/// The record was chosen at this ballot.
struct ChosenNotice {
  Ballot ballot;
  Record record;
};

/// The state of a founding member.
[[nodiscard]] VoterState founding_state(const Record& first);

/// Errors of all three: Errc::diverged when the other side is in another fork.
[[nodiscard]] Result<PrepareReply> answer_prepare(VoterState& state,
                                                  const PrepareRequest& request,
                                                  const Epoch& fence);
[[nodiscard]] Result<AcceptReply> answer_accept(VoterState& state, const AcceptRequest& request);
[[nodiscard]] Status learn_chosen(VoterState& state, const ChosenNotice& notice);

/// The fence of a member with `fence` that has `state`: the epoch of the record it accepted, unless
/// it has promised a higher one.
[[nodiscard]] Epoch raised_fence(const Epoch& fence, const VoterState& state);

}  // namespace replicad
