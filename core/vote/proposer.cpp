#include "core/vote/proposer.h"

#include <algorithm>

namespace replicad {

namespace {

bool has(const std::vector<std::string>& hosts, const std::string& host) {
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

}  // namespace

Proposer::Proposer(std::string host,
                   std::uint32_t nonce,
                   RecordChange change,
                   unsigned attempts_max)
    : host_(std::move(host)),
      nonce_(nonce),
      change_(std::move(change)),
      attempts_max_(attempts_max) {}

void Proposer::step(const ProposerEvent& event, Effects& effects) {
  if (phase_ == Phase::over) return;
  std::visit([&](const auto& item) { on_event(item, effects); }, event);
}

void Proposer::finish(ProposerEffect effect, Effects& effects) {
  phase_ = Phase::over;
  effects.push_back(std::move(effect));
}

MemberState Proposer::member(const std::string& host) const {
  const auto found = known_members_.find(host);
  return found == known_members_.end() ? MemberState{host, {}, {}, false} : found->second;
}

/// Takes up what a voter says: addresses, ballots, the latest record.
void Proposer::note(const VoterState& state) {
  round_seen_ = std::max(round_seen_, state.promised.round);
  if (!state.record) return;
  for (const MemberState& item : state.record->members)
    known_members_.insert_or_assign(item.host, item);
  if (best_.record && state.accepted < best_.accepted) return;
  best_.accepted = state.accepted;
  best_.record = state.record;
  if (state.chosen) chosen_ballot_ = state.accepted;
}

void Proposer::on_event(const proposer_event::Start& event, Effects& effects) {
  if (phase_ != Phase::idle) return;
  note(event.own);
  stamps_ = event.stamps;
  if (!best_.record) {
    finish(
        proposer_effect::Failed{
            {Errc::refused, 0, fmt::format("{} has no record of the volume yet", host_), {}}},
        effects);
    return;
  }
  begin_round(effects);
}

void Proposer::on_event(const proposer_event::Retry& /*event*/, Effects& effects) {
  if (phase_ == Phase::backing_off) begin_round(effects);
}

void Proposer::begin_round(Effects& effects) {
  phase_ = Phase::preparing;
  ballot_ = Ballot{++round_seen_, host_, nonce_};
  asked_.clear();
  yes_.clear();
  no_.clear();
  accepted_at_.clear();
  told_.clear();
  refused_ = false;
  ask_to_prepare(*best_.record, effects);
}

void Proposer::ask_to_prepare(const Record& record, Effects& effects) {
  for (const std::string& host : hosts_to_ask(record)) {
    if (has(asked_, host)) continue;
    asked_.push_back(host);
    effects.push_back(proposer_effect::SendPrepare{member(host), {record.fork, ballot_, stamps()}});
  }
}

void Proposer::on_event(const proposer_event::PrepareAnswered& event, Effects& effects) {
  if (phase_ != Phase::preparing || event.ballot != ballot_ || !has(asked_, event.host)) return;
  if (has(yes_, event.host)) return;
  note(event.reply.state);
  fence_ = std::max(fence_, event.reply.fence);
  hear(event.host, event.reply.stamps);
  if (event.reply.granted) {
    yes_.push_back(event.host);
    accepted_at_[event.host] = event.reply.state.accepted;
  } else {
    refused_ = true;
    no_[event.host] = fmt::format("promised to {}", event.reply.state.promised.host);
  }
  evaluate_prepare(effects);
}

void Proposer::on_event(const proposer_event::Lost& event, Effects& effects) {
  if (event.ballot != ballot_ || !has(asked_, event.host) || has(yes_, event.host)) return;
  if (phase_ == Phase::preparing) {
    no_[event.host] = event.reason;
    evaluate_prepare(effects);
  } else if (phase_ == Phase::accepting) {
    no_[event.host] = event.reason;
    evaluate_accept(effects);
  }
}

/// A voter said so, this proposer did it, or a quorum has accepted it at the same ballot.
bool Proposer::is_known_chosen() const {
  if (chosen_ballot_ == best_.accepted) return true;
  std::vector<std::string> holders;
  for (const auto& [host, accepted] : accepted_at_) {
    if (accepted == best_.accepted) holders.push_back(host);
  }
  return has_quorum(*best_.record, holders, false);
}

bool Proposer::is_possible(const Record& record, bool known_chosen) const {
  std::vector<std::string> open;
  for (const std::string& host : asked_) {
    if (!no_.contains(host)) open.push_back(host);
  }
  return has_quorum(record, open, known_chosen);
}

void Proposer::hear(const std::string& from, const StateStamps& stamps) {
  for (const auto& [host, stamp] : stamps)
    remember(host == from ? told_ : stamps_, host, stamp);
}

/// What others know of a member comes before what it says itself, where the two do not go together.
StateStamps Proposer::stamps() const {
  StateStamps stamps = stamps_;
  remember(stamps, told_);
  return stamps;
}

/// A promise counts if nobody has told of a later state of that voter. One that started anew meanwhile is asked again,
/// and says so.
void Proposer::drop_put_back() {
  for (const auto& [host, told] : told_) {
    const auto known = stamps_.find(host);
    if (known == stamps_.end() || !has(yes_, host) || knows_of(told, known->second)) continue;
    std::erase(yes_, host);
    accepted_at_.erase(host);
    refused_ = true;
    no_[host] = fmt::format("its state file has generation {}, others know of {}",
                            told.generation,
                            known->second.generation);
  }
}

void Proposer::evaluate_prepare(Effects& effects) {
  drop_put_back();
  if (best_.accepted > ballot_) return end_round(*best_.record, effects);
  // What was heard of on the way may name voters that were not asked yet.
  ask_to_prepare(*best_.record, effects);
  const bool known = is_known_chosen();
  if (has_quorum(*best_.record, yes_, known)) return begin_accept(effects);
  if (!is_possible(*best_.record, known)) end_round(*best_.record, effects);
}

void Proposer::begin_accept(Effects& effects) {
  completing_ = !is_known_chosen();
  proposal_ = *best_.record;
  if (!completing_) {
    chosen_ballot_ = best_.accepted;
    auto changed = change_(*best_.record, fence_);
    if (!changed) return finish(proposer_effect::Failed{changed.error()}, effects);
    if (*changed == *best_.record) {
      tell_chosen(effects);
      return finish(proposer_effect::Done{*changed}, effects);
    }
    proposal_ = std::move(*changed);
    wanted_ = proposal_;
    for (const MemberState& item : proposal_.members)
      known_members_.insert_or_assign(item.host, item);
  }
  phase_ = Phase::accepting;
  asked_.clear();
  yes_.clear();
  no_.clear();
  refused_ = false;
  takes_role_ = proposal_.primary == host_ && best_.record->primary != host_;
  if (takes_role_) {
    ask_to_accept(host_, effects);
  } else {
    ask_others_to_accept(effects);
  }
}

void Proposer::ask_to_accept(const std::string& host, Effects& effects) {
  asked_.push_back(host);
  effects.push_back(proposer_effect::SendAccept{member(host), {ballot_, proposal_, stamps()}});
}

void Proposer::ask_others_to_accept(Effects& effects) {
  for (const std::string& host : hosts_to_ask(proposal_)) {
    if (!has(asked_, host)) ask_to_accept(host, effects);
  }
}

void Proposer::on_event(const proposer_event::AcceptAnswered& event, Effects& effects) {
  if (phase_ != Phase::accepting || event.ballot != ballot_ || !has(asked_, event.host)) return;
  if (has(yes_, event.host)) return;
  round_seen_ = std::max(round_seen_, event.reply.promised.round);
  hear(event.host, event.reply.stamps);
  if (event.reply.granted) {
    yes_.push_back(event.host);
  } else {
    refused_ = true;
    no_[event.host] = fmt::format("promised to {}", event.reply.promised.host);
  }
  evaluate_accept(effects);
}

void Proposer::evaluate_accept(Effects& effects) {
  if (takes_role_) {
    if (!has(yes_, host_)) return end_round(proposal_, effects);
    takes_role_ = false;
    ask_others_to_accept(effects);
  }
  if (has_quorum(proposal_, yes_, false)) return on_chosen(effects);
  if (!is_possible(proposal_, false)) end_round(proposal_, effects);
}

void Proposer::on_chosen(Effects& effects) {
  best_.accepted = chosen_ballot_ = ballot_;
  best_.record = proposal_;
  tell_chosen(effects);
  if (!completing_ || wanted_ == proposal_)
    return finish(proposer_effect::Done{proposal_}, effects);
  begin_round(effects);
}

void Proposer::tell_chosen(Effects& effects) {
  for (const std::string& host : asked_)
    effects.push_back(
        proposer_effect::SendChosen{member(host), {best_.accepted, *best_.record, stamps()}});
}

/// The round cannot reach a quorum any more.
void Proposer::end_round(const Record& record, Effects& effects) {
  if (refused_ && ++attempts_ <= attempts_max_) {
    phase_ = Phase::backing_off;
    effects.push_back(proposer_effect::BackOff{attempts_});
    return;
  }
  if (refused_) {
    finish(proposer_effect::Failed{{Errc::busy, 0, "other proposals came first every time", {}},
                                   wanted_.has_value()},
           effects);
    return;
  }
  std::string missing;
  for (const auto& [host, reason] : no_)
    missing += fmt::format("{}{} ({})", missing.empty() ? "" : ", ", host, reason);
  finish(
      proposer_effect::Failed{
          {Errc::unreachable,
           0,
           fmt::format("no quorum of the {} voters: awaited {}", record.members.size(), missing),
           "it goes on as soon as enough of them answer"},
          wanted_.has_value()},
      effects);
}

}  // namespace replicad
