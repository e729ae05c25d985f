// The voter of a host, proposals to the voters, and what follows from a record (replicad/volume_vote.cpp,
// vote_driver.cpp, role_keeper.cpp), declared in daemon.h. The voter and the proposer are the real ones.

#include <algorithm>

#include "tests/sim/cluster.h"
#include "tests/sim/daemon.h"
#include "tests/sim/daemon_ask.h"

namespace replicad::sim {

namespace {

constexpr Duration voter_timeout = std::chrono::milliseconds(1500);
constexpr Duration renewal_timeout = std::chrono::seconds(6);
constexpr Duration read_timeout = std::chrono::seconds(2);
constexpr Duration keeper_interval = std::chrono::seconds(2);
constexpr Duration rest_interval = std::chrono::milliseconds(10);
constexpr unsigned back_off_ms_base = 10;
constexpr unsigned back_off_doublings_max = 6;

/// What of the record counts here at once. A change of this host's own role takes more.
void follow_record(VolumeState& state, const std::string& host) {
  const Record& record = *state.vote.record;
  state.epoch = raised_fence(state.epoch, state.vote);
  if (!state.vote.chosen) return;
  state.in_sync = record.in_sync;
  if (state.primary != host && record.primary != host) state.primary = record.primary;
}

}  // namespace

// --- the voter

void Daemon::vote_prepare(const PrepareRequest& request,
                          std::function<void(Result<PrepareReply>)> done) {
  const auto reply = std::make_shared<PrepareReply>();
  const bool forgets = cluster_.options.planted == Planted::forgotten_promise;
  update(
      [request, reply, forgets](VolumeState& next) -> Status {
        const VoterState before = next.vote;
        auto answer = answer_prepare(next.vote, request, next.epoch);
        if (!answer) return tl::unexpected(answer.error());
        if (forgets) next.vote = before;
        *reply = std::move(*answer);
        return {};
      },
      [reply, done = std::move(done)](const Status& written) {
        if (!written) return done(tl::unexpected(written.error()));
        done(*reply);
      });
}

void Daemon::vote_accept(const AcceptRequest& request,
                         std::function<void(Result<AcceptReply>)> done) {
  const auto reply = std::make_shared<AcceptReply>();
  update(
      [request, reply, host = machine_.name](VolumeState& next) -> Status {
        auto answer = answer_accept(next.vote, request);
        if (!answer) return tl::unexpected(answer.error());
        *reply = std::move(*answer);
        if (reply->granted) follow_record(next, host);
        return {};
      },
      [this, reply, done = std::move(done)](const Status& written) {
        if (!written) return done(tl::unexpected(written.error()));
        // Before anybody can count this vote for another primary.
        const auto serving = plugin();
        if (reply->granted && serving && state().vote.record->primary != machine_.name)
          serving->voter_heard(host_, machine_.clock(), state().epoch);
        done(*reply);
      });
}

void Daemon::vote_chosen(const ChosenNotice& notice, Done done) {
  update(
      [notice, host = machine_.name](VolumeState& next) -> Status {
        RD_TRY(learn_chosen(next.vote, notice));
        follow_record(next, host);
        return {};
      },
      [this, done = std::move(done)](const Status& written) {
        // What was chosen is not known here then: the voters are asked.
        if (!written) recheck_ = true;
        if (done) done(written);
      });
}

// --- proposals

void Daemon::propose(RecordChange change, Duration timeout, Chosen done) {
  const auto proposal = std::make_shared<Proposal>(machine_.name, draw_tag(), std::move(change));
  proposal->done = std::move(done);
  machine_.after(timeout, life_.guard([this, proposal] {
    finish(proposal, fail(Errc::unreachable, "no quorum of the voters in time"));
  }));
  drive(proposal, proposer_event::Start{state().vote});
}

void Daemon::drive(const std::shared_ptr<Proposal>& proposal, const ProposerEvent& event) {
  if (!proposal->done || proposal->proposer.is_over()) return;
  std::vector<ProposerEffect> effects;
  proposal->proposer.step(event, effects);
  for (const ProposerEffect& effect : effects)
    perform(proposal, effect);
}

void Daemon::perform(const std::shared_ptr<Proposal>& proposal, const ProposerEffect& effect) {
  if (const auto* prepare = std::get_if<proposer_effect::SendPrepare>(&effect)) {
    const std::string host = prepare->to.host;
    const Ballot ballot = prepare->request.ballot;
    ask<Result<PrepareReply>>(
        host_index(host),
        voter_timeout,
        [request = prepare->request](Daemon& voter,
                                     std::function<void(Result<PrepareReply>)> answer) {
          voter.vote_prepare(request, std::move(answer));
        },
        [this, proposal, host, ballot](const std::optional<Result<PrepareReply>>& reply) {
          if (reply && *reply) {
            drive(proposal, proposer_event::PrepareAnswered{host, ballot, **reply});
          } else {
            drive(proposal, proposer_event::Lost{host, ballot, "no answer"});
          }
        });
  } else if (const auto* accept = std::get_if<proposer_effect::SendAccept>(&effect)) {
    const std::string host = accept->to.host;
    const Ballot ballot = accept->request.ballot;
    ask<Result<AcceptReply>>(
        host_index(host),
        voter_timeout,
        [request = accept->request](Daemon& voter,
                                    std::function<void(Result<AcceptReply>)> answer) {
          voter.vote_accept(request, std::move(answer));
        },
        [this, proposal, host, ballot](const std::optional<Result<AcceptReply>>& reply) {
          if (reply && *reply) {
            drive(proposal, proposer_event::AcceptAnswered{host, ballot, **reply});
          } else {
            drive(proposal, proposer_event::Lost{host, ballot, "no answer"});
          }
        });
  } else if (const auto* chosen = std::get_if<proposer_effect::SendChosen>(&effect)) {
    if (chosen->to.host == machine_.name) {
      // This host knows what its own proposal led to before it goes on.
      proposal->learning = true;
      vote_chosen(chosen->notice, [this, proposal](const Status& /*written*/) {
        proposal->learning = false;
        if (proposal->result) finish(proposal, *proposal->result);
      });
      return;
    }
    const HostIndex to = host_index(chosen->to.host);
    cluster_.network.message(host_, to, [&cluster = cluster_, to, notice = chosen->notice] {
      if (cluster.daemons[to]->is_alive()) cluster.daemons[to]->vote_chosen(notice, nullptr);
    });
  } else if (const auto* back_off = std::get_if<proposer_effect::BackOff>(&effect)) {
    const unsigned limit_ms = back_off_ms_base
                              << std::min(back_off->attempt, back_off_doublings_max);
    const Duration wait = back_off->attempt == 1
                              ? Duration{}
                              : Duration(std::chrono::milliseconds(world_.random.below(limit_ms)));
    world_.reached("proposal made again");
    machine_.after(wait,
                   life_.guard([this, proposal] { drive(proposal, proposer_event::Retry{}); }));
  } else if (const auto* done = std::get_if<proposer_effect::Done>(&effect)) {
    proposal->result = done->record;
    if (!proposal->learning) finish(proposal, done->record);
  } else if (const auto* failed = std::get_if<proposer_effect::Failed>(&effect)) {
    if (failed->maybe_chosen) world_.reached("proposal of unknown outcome");
    finish(proposal, tl::unexpected(failed->error));
  }
}

void Daemon::finish(const std::shared_ptr<Proposal>& proposal, const Result<Record>& result) {
  if (proposal->done) std::exchange(proposal->done, nullptr)(result);
}

// --- what follows from a record

Daemon::RoleDue Daemon::role_due() const {
  const VoterState& vote = state().vote;
  if (is_witness()) return RoleDue::none;
  if (!vote.chosen || recheck_) return RoleDue::ask;
  const bool mine = vote.record->primary == machine_.name;
  if (mine == is_primary()) return RoleDue::none;
  return mine ? RoleDue::promote : RoleDue::demote;
}

void Daemon::keep_role() {
  machine_.after(keeper_interval / 2 + world_.random.delay(keeper_interval),
                 life_.guard([this] { keep_role(); }));
  const bool known = plugin() || !cluster_.plugins[host_];
  if (is_busy()) return;
  if (state().transfer && known && is_primary()) return settle();
  if (role_due() == RoleDue::ask) {
    operation_ = "ask";
    propose(change_nothing(), read_timeout, [this](const Result<Record>& record) {
      end_operation();
      // What could not be written here is not known here.
      if (record && state().vote.chosen && state().vote.record == *record) recheck_ = false;
      // At once: a voter with a later promise is heard of again and again.
      follow_role();
    });
    return;
  }
  follow_role();
}

/// Draws the conclusion from the record, as far as it is known.
void Daemon::follow_role() {
  if (is_busy() || state().transfer) return;
  const auto serving = plugin();
  if (role_due() == RoleDue::none && is_primary() && serving && serving->is_serving() &&
      serving->is_outdated()) {
    return renew(serving);
  }
  if (role_due() == RoleDue::demote) demote();
  if (role_due() != RoleDue::promote) return;
  operation_ = "promote";
  world_.reached("promotion finished after a restart");
  seal_replica(state().epoch, std::nullopt, [this](const Result<HistoryPoint>& point) {
    if (!point) {
      end_operation();
      if (replica_ && !replica_busy_ && replica_->has_failed()) reopen_replica();
      return;
    }
    record_promotion(
        *state().vote.record, *point, [this](const Status& /*written*/) { end_operation(); });
  });
}

/// For a primary that is `async`, or may be soon, of voters that it does not hear on the stream.
void Daemon::watch_voters() {
  machine_.after(std::min<Duration>(cluster_.options.ack_timeout / 4, std::chrono::seconds(1)),
                 life_.guard([this] { watch_voters(); }));
  const auto serving = plugin();
  if (!serving || !serving->is_serving()) return;
  for (HostIndex host = 0; host < cluster_.machines.size(); ++host) {
    const auto peer = serving->core().find_peer(host_name(host));
    const bool streams = peer && serving->core().is_streaming(*peer);
    if (host == host_ || streams || !voters_asked_.insert(host).second) continue;
    ask<Epoch>(
        host,
        voter_timeout,
        [](Daemon& voter, const std::function<void(Epoch)>& answer) {
          answer(voter.state().epoch);
        },
        [this, host, asked = machine_.clock()](const std::optional<Epoch>& fence) {
          voters_asked_.erase(host);
          const auto now = plugin();
          if (!fence || !now || !now->is_serving()) return;
          now->voter_heard(host, asked, *fence);
          if (fence->number > state().epoch.number) recheck_ = true;
        });
  }
}

/// A promise of a later term may have led to nothing: then this host takes one after it.
void Daemon::renew(const std::shared_ptr<Plugin>& plugin) {
  operation_ = "renew";
  propose(change_claim({machine_.name, draw_tag(), state().epoch.number, true}),
          renewal_timeout,
          [this, plugin](const Result<Record>& record) {
            end_operation();
            if (!record) {
              if (record.error().code == Errc::stale_epoch) recheck_ = true;
              return;
            }
            world_.reached("term renewed");
            plugin->resume(record->epoch);
          });
}

/// Another host is the primary: whatever this one still serves must not be answered any more.
void Daemon::demote() {
  operation_ = "giving up the role";
  if (const auto plugin = cluster_.plugins[host_]) plugin->die();
  if (machine_.has_io_in_flight()) {
    // The images must be at rest.
    machine_.after(rest_interval, life_.guard([this] { demote(); }));
    return;
  }
  world_.reached("former primary gave up its role");
  give_up_role(state().vote.record->primary,
               state().clean ? std::optional<HistoryPoint>(state().history) : std::nullopt);
}

}  // namespace replicad::sim
