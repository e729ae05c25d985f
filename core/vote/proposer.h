#pragma once
// A proposer of one change of the record: events in, effects out; no I/O, clock or randomness. It
// is CASPaxos (a register by compare-and-swap on Paxos) with one addition: a record that is not
// known to have been chosen is completed as it is before anything is built on it. So every chosen
// record is built on the chosen one before it, and a record that changes the voters needs quorums
// of both kinds of voters exactly until it is known to be chosen.
//
// A host that is to become the primary by its own proposal accepts it, durably, before the others are asked: once they
// have chosen it, its copy takes nothing of an earlier term any more, also if it knows nothing of that choice.
//
//   preparing --quorum--> accepting --quorum--> done (or preparing again, after a completion)
//       |  refused by a higher ballot  |
//       +----------> backing off <-----+      Retry -> preparing with a higher ballot

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "core/vote/changes.h"
#include "core/vote/voter.h"

namespace replicad {

namespace proposer_event {
/// `own`: what this host's voter knows; tells whom to ask. `stamps`: what this host remembers of the others.
struct Start {
  VoterState own;
  StateStamps stamps = {};
};
struct PrepareAnswered {
  std::string host;
  Ballot ballot;  ///< of the request
  PrepareReply reply;
};
struct AcceptAnswered {
  std::string host;
  Ballot ballot;
  AcceptReply reply;
};
/// No answer will come to the request of `ballot`, or it was an error.
struct Lost {
  std::string host;
  Ballot ballot;
  std::string reason;
};
/// The back-off is over.
struct Retry {};
}  // namespace proposer_event

using ProposerEvent = std::variant<proposer_event::Start,
                                   proposer_event::PrepareAnswered,
                                   proposer_event::AcceptAnswered,
                                   proposer_event::Lost,
                                   proposer_event::Retry>;

namespace proposer_effect {
struct SendPrepare {
  MemberState to;
  PrepareRequest request;
};
struct SendAccept {
  MemberState to;
  AcceptRequest request;
};
/// Nobody waits for an answer.
struct SendChosen {
  MemberState to;
  ChosenNotice notice;
};
/// Wait a random time that grows with `attempt` (1, 2 …), then Retry.
struct BackOff {
  unsigned attempt = 0;
};
/// The record was chosen, by this proposer or as it stood.
struct Done {
  Record record;
};
/// Errors: Errc::unreachable, no quorum (the message names who is missing and why); Errc::busy,
/// overtaken again and again; the change's own. `maybe_chosen`: the proposed record may still be
/// found and completed by another proposer.
struct Failed {
  Error error;
  bool maybe_chosen = false;
};
}  // namespace proposer_effect

using ProposerEffect = std::variant<proposer_effect::SendPrepare,
                                    proposer_effect::SendAccept,
                                    proposer_effect::SendChosen,
                                    proposer_effect::BackOff,
                                    proposer_effect::Done,
                                    proposer_effect::Failed>;

/// How often a proposal that others came before is made again.
constexpr unsigned proposal_attempts_max = 12;

class Proposer {
 public:
  /// `nonce`: random, for the ballots of this proposer alone.
  Proposer(std::string host,
           std::uint32_t nonce,
           RecordChange change,
           unsigned attempts_max = proposal_attempts_max);

  /// Takes one event and appends what is to be done. Nothing more comes after Done or Failed.
  void step(const ProposerEvent& event, std::vector<ProposerEffect>& effects);
  [[nodiscard]] bool is_over() const { return phase_ == Phase::over; }

 private:
  enum class Phase { idle, preparing, accepting, backing_off, over };
  using Effects = std::vector<ProposerEffect>;

  void on_event(const proposer_event::Start& event, Effects& effects);
  void on_event(const proposer_event::PrepareAnswered& event, Effects& effects);
  void on_event(const proposer_event::AcceptAnswered& event, Effects& effects);
  void on_event(const proposer_event::Lost& event, Effects& effects);
  void on_event(const proposer_event::Retry& event, Effects& effects);
  void begin_round(Effects& effects);
  void note(const VoterState& state);
  void ask_to_prepare(const Record& record, Effects& effects);
  void hear(const std::string& from, const StateStamps& stamps);
  [[nodiscard]] StateStamps stamps() const;
  void drop_put_back();
  void evaluate_prepare(Effects& effects);
  void begin_accept(Effects& effects);
  void ask_to_accept(const std::string& host, Effects& effects);
  void ask_others_to_accept(Effects& effects);
  void evaluate_accept(Effects& effects);
  void on_chosen(Effects& effects);
  void tell_chosen(Effects& effects);
  void end_round(const Record& record, Effects& effects);
  void finish(ProposerEffect effect, Effects& effects);
  [[nodiscard]] bool is_known_chosen() const;
  [[nodiscard]] bool is_possible(const Record& record, bool known_chosen) const;
  [[nodiscard]] MemberState member(const std::string& host) const;

  std::string host_;
  std::uint32_t nonce_;
  RecordChange change_;
  unsigned attempts_max_;
  Phase phase_ = Phase::idle;
  Ballot ballot_;
  std::uint64_t round_seen_ = 0;
  unsigned attempts_ = 0;
  std::map<std::string, MemberState> known_members_;
  VoterState best_;       ///< the record with the highest ballot that was heard of
  Ballot chosen_ballot_;  ///< best_ is known to have been chosen if this is its ballot
  Epoch fence_;
  StateStamps stamps_;  ///< of each voter, by others

  // Of the round.
  std::vector<std::string> asked_;
  std::vector<std::string> yes_;
  std::map<std::string, std::string> no_;  ///< host -> why
  std::map<std::string, Ballot> accepted_at_;
  StateStamps told_;      ///< by each voter, of itself
  bool refused_ = false;  ///< by a higher ballot
  Record proposal_;
  bool completing_ = false;
  bool takes_role_ = false;  ///< this host's own acceptance is awaited before anybody else is asked

  std::optional<Record> wanted_;  ///< what the change made of the record, once it was sent
};

}  // namespace replicad
