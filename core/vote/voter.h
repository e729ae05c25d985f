#pragma once
// A voter: what a member answers to a proposer, and what it must have on stable storage before the
// answer leaves. Pure: each function changes the state it is given; the caller makes that state
// durable and only then sends the reply.

#include <optional>

#include "core/vote/record.h"
#include "core/vote/state_stamp.h"

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
  StateStamps stamps = {};  ///< what the proposer remembers
};
struct PrepareReply {
  bool granted = false;  ///< otherwise state.promised names the higher ballot
  VoterState state;
  Epoch fence;              ///< highest epoch promised here
  StateStamps stamps = {};  ///< what the voter remembers, and its own with this promise
};
struct AcceptRequest {
  Ballot ballot;
  Record record;
  StateStamps stamps = {};
};
struct AcceptReply {
  bool granted = false;
  Ballot promised;  ///< the higher one if it was not granted
  StateStamps stamps = {};
};
/// The record was chosen at this ballot.
struct ChosenNotice {
  Ballot ballot;
  Record record;
  StateStamps stamps = {};
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
