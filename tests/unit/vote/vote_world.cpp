#include "tests/unit/vote/vote_world.h"

#include <algorithm>

namespace replicad {

namespace {

constexpr std::size_t pool_hosts = 5;

/// With votes that everybody counts in its own way, what is voted for is still to be compared.
bool same_content(Record a, Record b, bool count_voters) {
  if (!count_voters) {
    a.tie_break = b.tie_break = {};
    a.before = b.before = std::nullopt;
  }
  return a == b;
}

}  // namespace

VoteWorld::VoteWorld(std::uint32_t seed, PlantedBug bug) : random_(seed), bug_(bug) {
  for (std::size_t i = 0; i < pool_hosts; ++i)
    names_.emplace_back(1, static_cast<char>('a' + i));
  std::vector<MemberState> members;
  const std::size_t count = 1 + below(4);
  std::vector<std::string> in_sync;
  for (std::size_t i = 0; i < count; ++i) {
    const bool witness = i > 1 && chance(30);
    members.push_back({names_[i], "s", "c", witness});
    if (!witness) in_sync.push_back(names_[i]);
  }
  const Record first = first_record("a", in_sync, members);
  for (std::size_t i = 0; i < pool_hosts; ++i) {
    Host& host = hosts_[names_[i]];
    if (i < count) host.voter = host.durable = founding_state(first);
  }
  chosen_[1] = first;
  primaries_[0] = "a";
}

void VoteWorld::fail_with(const std::string& what) {
  if (violation_.empty()) violation_ = what;
}

std::string VoteWorld::run(unsigned steps) {
  for (unsigned i = 0; i < steps && violation_.empty(); ++i)
    step();
  return violation_;
}

void VoteWorld::step() {
  const std::uint32_t what = below(100);
  if (what < 6) {
    const std::string name = any_host();
    if (!hosts_[name].proposer && hosts_[name].voter.record) propose(name, random_change(name));
  } else if (what < 8) {
    crash(any_host());
  } else if (what < 9) {
    wipe(any_host());
  } else if (what < 10) {
    use_backup(any_host());
  } else if (what < 14) {
    const std::string name = any_host();
    if (std::exchange(hosts_[name].backing_off, false)) feed(name, proposer_event::Retry{});
  } else {
    deliver();
  }
}

std::string VoteWorld::converge() {
  faults_ = false;
  for (const std::string& name : names_)
    crash(name);
  network_.clear();
  for (const std::string& name : names_) {
    if (!hosts_[name].put_back) continue;
    come_back(name);
    for (unsigned i = 0; i < 2000 && hosts_[name].proposer; ++i) {
      if (std::exchange(hosts_[name].backing_off, false)) feed(name, proposer_event::Retry{});
      deliver();
    }
    // Without it there is no quorum, and nothing goes on but by force.
    if (hosts_[name].put_back) return violation_;
  }
  for (unsigned round = 0; round < 6 && violation_.empty(); ++round) {
    const Record& last = chosen_.rbegin()->second;
    const std::string primary = last.primary;
    const std::size_t before = done_;
    propose(primary, watched(change_claim({primary, 900 + round, 0, true})));
    for (unsigned i = 0; i < 2000 && hosts_[primary].proposer; ++i) {
      if (std::exchange(hosts_[primary].backing_off, false)) feed(primary, proposer_event::Retry{});
      deliver();
    }
    // A record that was on its way may be completed first and move the role elsewhere.
    if (done_ > before) return violation_;
  }
  if (violation_.empty()) fail_with("no progress without faults: " + last_error_);
  return violation_;
}

RecordChange VoteWorld::watched(RecordChange change) {
  return
      [this, change = std::move(change)](const Record& base, const Epoch& fence) -> Result<Record> {
        auto next = change(base, fence);
        if (!next || *next == base) return next;
        if (bug_ == PlantedBug::no_quorum_before) next->before.reset();
        built_.emplace_back(*next, base);
        return next;
      };
}

RecordChange VoteWorld::random_change(const std::string& name) {
  const Record& known = *hosts_[name].voter.record;
  RecordChange change;
  const std::string other = any_host();
  switch (below(6)) {
    case 0:
      change = change_claim({name, below(1000), 0, chance(70)});
      break;
    case 1: {
      std::vector<std::string> in_sync{name};
      for (const std::string& host : names_) {
        if (host != name && chance(60)) in_sync.push_back(host);
      }
      change = change_in_sync(name, known.epoch, in_sync);
      break;
    }
    case 2:
      change = change_promote({name, known.epoch, {known.epoch.number + 1, below(1000)}});
      break;
    case 3:
      change = change_failover({name, known.epoch, below(1000), chance(20)});
      break;
    case 4:
      change = change_add_member(name, {other, "s", "c", chance(30)});
      break;
    default:
      change = change_remove_member(name, other);
  }
  return watched(std::move(change));
}

void VoteWorld::propose(const std::string& name, RecordChange change) {
  Host& host = hosts_[name];
  host.proposer = std::make_unique<Proposer>(name, below(1U << 30), std::move(change), 6);
  host.backing_off = false;
  feed(name, proposer_event::Start{host.voter});
}

void VoteWorld::feed(const std::string& name, const ProposerEvent& event) {
  Host& host = hosts_[name];
  if (!host.proposer) return;
  std::vector<ProposerEffect> effects;
  host.proposer->step(event, effects);
  for (const ProposerEffect& effect : effects) {
    if (const auto* prepare = std::get_if<proposer_effect::SendPrepare>(&effect)) {
      network_.push_back({prepare->to.host, name, prepare->request});
    } else if (const auto* accept = std::get_if<proposer_effect::SendAccept>(&effect)) {
      AcceptRequest request = accept->request;
      network_.push_back({accept->to.host, name, std::move(request)});
    } else if (const auto* chosen = std::get_if<proposer_effect::SendChosen>(&effect)) {
      if (host.returning && chosen->to.host == name)
        handle({name, name, chosen->notice});
      else
        network_.push_back({chosen->to.host, name, chosen->notice});
    } else if (std::holds_alternative<proposer_effect::BackOff>(effect)) {
      host.backing_off = true;
    } else if (const auto* done = std::get_if<proposer_effect::Done>(&effect)) {
      note_done(done->record);
      const bool learnt = host.voter.chosen && host.voter.record->version >= done->record.version;
      if (host.returning && learnt) {
        host.put_back = false;
        ++come_back_;
      }
    } else if (const auto* failed = std::get_if<proposer_effect::Failed>(&effect)) {
      last_error_ = failed->error.message;
    }
  }
  if (!host.proposer->is_over()) return;
  host.proposer.reset();
  host.returning = false;
}

void VoteWorld::crash(const std::string& name) {
  Host& host = hosts_[name];
  host.proposer.reset();
  host.backing_off = false;
  host.returning = false;
  host.voter = host.durable;
}

/// Copies of one state at a time are put back: as many as the others can notice.
void VoteWorld::use_backup(const std::string& name) {
  Host& host = hosts_[name];
  if (host.put_back) {
    if (!host.proposer) come_back(name);
  } else if (!host.backup || chance(50)) {
    if (host.durable.record) host.backup = host.durable;
  } else if (std::none_of(hosts_.begin(), hosts_.end(), [](const auto& item) {
               return item.second.put_back;
             })) {
    put_back(name);
  }
}

void VoteWorld::put_back(const std::string& name) {
  Host& host = hosts_[name];
  host.durable = *host.backup;
  crash(name);
  host.put_back = bug_ != PlantedBug::put_back_votes;
  ++put_back_;
}

void VoteWorld::come_back(const std::string& name) {
  Host& host = hosts_[name];
  host.proposer = std::make_unique<Proposer>(name, below(1U << 30), watched(change_version()), 6);
  host.backing_off = false;
  host.returning = true;
  VoterState own = host.voter;
  if (bug_ != PlantedBug::put_back_low_round) own.promised.round += forgotten_max;
  feed(name, proposer_event::Start{own});
}

/// A host that is no member any more: its part is deleted.
void VoteWorld::wipe(const std::string& name) {
  const Record& last = chosen_.rbegin()->second;
  if (last.before || find_member(last.members, name) != nullptr) return;
  hosts_[name] = Host{};
}

void VoteWorld::deliver() {
  if (network_.empty()) return;
  const std::size_t at = below(static_cast<std::uint32_t>(network_.size()));
  Message message = std::move(network_[at]);
  network_[at] = std::move(network_.back());
  network_.pop_back();
  if (faults_ && chance(8)) {
    // Lost for good, or the sender learns of it.
    if (const auto* prepare = std::get_if<PrepareRequest>(&message.payload)) {
      if (chance(70)) feed(message.from, proposer_event::Lost{message.to, prepare->ballot, "lost"});
    } else if (const auto* accept = std::get_if<AcceptRequest>(&message.payload)) {
      if (chance(70)) feed(message.from, proposer_event::Lost{message.to, accept->ballot, "lost"});
    }
    return;
  }
  if (faults_ && chance(8)) network_.push_back(message);
  handle(message);
}

void VoteWorld::answer(const Message& message, const ProposerEvent& event) {
  network_.push_back({message.from, message.to, event});
}

void VoteWorld::handle(const Message& message) {
  Host& host = hosts_[message.to];
  if (const auto* event = std::get_if<ProposerEvent>(&message.payload)) {
    feed(message.to, *event);
  } else if (const auto* prepare = std::get_if<PrepareRequest>(&message.payload)) {
    if (host.put_back)
      return answer(message, proposer_event::Lost{message.to, prepare->ballot, "put back"});
    const auto reply = answer_prepare(host.voter, *prepare, {});
    if (!reply) return fail_with(reply.error().message);
    if (bug_ != PlantedBug::promise_not_durable) host.durable = host.voter;
    PrepareReply sent = *reply;
    if (bug_ == PlantedBug::build_on_unchosen && sent.state.record) sent.state.chosen = true;
    if (bug_ == PlantedBug::own_tie_break && sent.state.record &&
        sent.state.record->members.size() % 2 == 0) {
      sent.state.record->tie_break = message.from;
      sent.state.record->before.reset();
    }
    answer(message, proposer_event::PrepareAnswered{message.to, prepare->ballot, sent});
  } else if (const auto* accept = std::get_if<AcceptRequest>(&message.payload)) {
    if (host.put_back)
      return answer(message, proposer_event::Lost{message.to, accept->ballot, "put back"});
    if (bug_ == PlantedBug::accept_below_promise && accept->ballot < host.voter.promised)
      host.voter.promised = accept->ballot;
    const auto reply = answer_accept(host.voter, *accept);
    if (!reply) return fail_with(reply.error().message);
    host.durable = host.voter;
    if (reply->granted) note_accept(message.to, *accept);
    answer(message, proposer_event::AcceptAnswered{message.to, accept->ballot, *reply});
  } else if (const auto* chosen = std::get_if<ChosenNotice>(&message.payload)) {
    if (const Status learnt = learn_chosen(host.voter, *chosen); !learnt)
      fail_with(learnt.error().message);
    host.durable = host.voter;
  }
}

void VoteWorld::note_accept(const std::string& name, const AcceptRequest& request) {
  auto& [record, hosts] = accepts_[request.ballot];
  if (hosts.empty()) record = request.record;
  if (record != request.record) return fail_with("two records at one ballot");
  if (std::find(hosts.begin(), hosts.end(), name) == hosts.end()) hosts.push_back(name);
  if (has_quorum(record, hosts, false)) note_chosen(record);
}

void VoteWorld::note_chosen(const Record& record) {
  const bool exact = bug_ != PlantedBug::own_tie_break;
  const auto found = chosen_.find(record.version);
  if (found != chosen_.end()) {
    if (!same_content(found->second, record, exact))
      fail_with(fmt::format("two records of version {} were chosen", record.version));
    return;
  }
  const auto previous = chosen_.find(record.version - 1);
  if (previous == chosen_.end())
    return fail_with(fmt::format("version {} was chosen before the one below it", record.version));
  const Record& base = previous->second;
  const bool grown = std::any_of(built_.begin(), built_.end(), [&](const auto& pair) {
    return same_content(pair.first, record, exact) && same_content(pair.second, base, exact);
  });
  if (!grown) {
    return fail_with(
        fmt::format("version {} was not built on the chosen one below", record.version));
  }
  if (record.epoch.number < base.epoch.number) return fail_with("an epoch fell");
  const auto [primary, first] = primaries_.emplace(record.epoch.number, record.primary);
  if (!first && primary->second != record.primary)
    return fail_with(fmt::format("two primaries of epoch {}", record.epoch.number));
  if (voters_of(record) != voters_of(base)) ++voter_changes_;
  chosen_[record.version] = record;
}

void VoteWorld::note_done(const Record& record) {
  const auto found = chosen_.find(record.version);
  const bool exact = bug_ != PlantedBug::own_tie_break;
  if (found == chosen_.end() || !same_content(found->second, record, exact))
    fail_with(fmt::format("version {} was reported and not chosen", record.version));
  ++done_;
}

}  // namespace replicad
