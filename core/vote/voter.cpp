#include "core/vote/voter.h"

#include <algorithm>

namespace replicad {

namespace {

Status check_fork(const VoterState& state, std::uint32_t fork) {
  if (!state.record || state.record->fork == fork) return {};
  return with_hint(fail(Errc::diverged,
                        "two histories of the volume: {:08x} here and {:08x} there",
                        state.record->fork,
                        fork),
                   "one of them was opened by --force; nothing is overwritten while both exist");
}

}  // namespace

VoterState founding_state(const Record& first) {
  const Ballot ballot{1, first.primary, 0};
  return {ballot, ballot, true, first};
}

Result<PrepareReply> answer_prepare(VoterState& state,
                                    const PrepareRequest& request,
                                    const Epoch& fence) {
  RD_TRY(check_fork(state, request.fork));
  const bool granted = request.ballot >= state.promised;
  if (granted) state.promised = request.ballot;
  return PrepareReply{granted, state, fence};
}

Result<AcceptReply> answer_accept(VoterState& state, const AcceptRequest& request) {
  RD_TRY(check_fork(state, request.record.fork));
  if (request.ballot < state.promised) return AcceptReply{false, state.promised};
  if (request.ballot == state.accepted) {
    // The same request again; one ballot carries one record.
    return AcceptReply{state.record == request.record, state.promised};
  }
  state.promised = state.accepted = request.ballot;
  state.record = request.record;
  state.chosen = false;
  return AcceptReply{true, state.promised};
}

Status learn_chosen(VoterState& state, const ChosenNotice& notice) {
  RD_TRY(check_fork(state, notice.record.fork));
  if (notice.ballot < state.accepted) return {};
  // A chosen record may be taken over at any time: whoever was promised more knows of it.
  state.promised = std::max(state.promised, notice.ballot);
  state.accepted = notice.ballot;
  state.record = notice.record;
  state.chosen = true;
  return {};
}

Epoch raised_fence(const Epoch& fence, const VoterState& state) {
  if (!state.record || state.record->epoch.number < fence.number) return fence;
  // Of the same number: the record accepted last is the only one that can still be chosen.
  return state.record->epoch;
}

}  // namespace replicad
