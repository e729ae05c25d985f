// The voter of a volume on this host, and what follows from a record that was chosen.

#include <algorithm>

#include "core/base/log.h"
#include "core/store/volume_state.h"
#include "core/vote/fork.h"
#include "io/file.h"
#include "replicad/volume.h"
#include "replicad/vote_driver.h"

namespace replicad {

namespace {

/// An `async` primary must hear a majority within ack-timeout: each voter is asked several times in that time.
constexpr unsigned asks_per_ack_timeout = 4;
constexpr Duration ask_interval_max = std::chrono::seconds(1);

/// Numbers of writes that a primary may have given out behind a state file that was put back, at most.
constexpr Sequence sequences_forgotten = Sequence{1} << 44;

/// Until the plugin's status shows what a new term has changed.
constexpr Duration renewal_interval = std::chrono::seconds(4);

/// What of the record counts here at once. A change of this host's own role takes more: see
/// Volume::role_due().
void follow_record(VolumeState& state, const std::string& host) {
  const Record& record = *state.vote.record;
  state.epoch = raised_fence(state.epoch, state.vote);
  if (!state.vote.chosen) return;
  if (find_member(record.members, host) != nullptr) state.members = record.members;
  std::erase_if(state.stamps, [&state](const auto& item) {
    return find_member(state.members, item.first) == nullptr;
  });
  state.in_sync = record.in_sync;
  if (state.primary != host && record.primary != host) state.primary = record.primary;
}

/// A member that was added later has its first record.
void begin_membership(VolumeState& state, bool had_record) {
  if (!had_record && state.vote.record)
    begin_anew(state, first_generation(state.vote.record->version));
}

}  // namespace

Status Volume::check_voting() const {
  if (load_error_) return tl::unexpected(*load_error_);
  if (released_) return fail(Errc::not_found, "volume {} is being deleted", name_);
  return {};
}

Status Volume::check_vote() const {
  RD_TRY(check_voting());
  if (is_put_back()) return tl::unexpected(put_back_error());
  return {};
}

void Volume::vote_prepare(const PrepareRequest& request,
                          std::function<void(Result<PrepareReply>)> done) {
  hear_stamps(request.stamps);
  if (const Status able = check_vote(); !able) return done(tl::unexpected(able.error()));
  const auto reply = std::make_shared<PrepareReply>();
  update(
      [request, reply](VolumeState& state) -> Status {
        auto answer = answer_prepare(state.vote, request, state.epoch);
        if (!answer) return tl::unexpected(answer.error());
        *reply = std::move(*answer);
        return {};
      },
      [self = shared_from_this(), reply, done = std::move(done)](const Status& written) {
        if (!written) return done(tl::unexpected(written.error()));
        reply->stamps = self->stamps();
        done(*reply);
      });
}

void Volume::vote_accept(const AcceptRequest& request,
                         std::function<void(Result<AcceptReply>)> done) {
  hear_stamps(request.stamps);
  if (const Status able = check_vote(); !able) return done(tl::unexpected(able.error()));
  const auto reply = std::make_shared<AcceptReply>();
  update(
      [request, reply, host = environment_.options.host](VolumeState& state) -> Status {
        const bool had_record = state.vote.record.has_value();
        auto answer = answer_accept(state.vote, request);
        if (!answer) return tl::unexpected(answer.error());
        *reply = std::move(*answer);
        if (reply->granted) follow_record(state, host);
        begin_membership(state, had_record);
        return {};
      },
      [self = shared_from_this(), reply, done = std::move(done)](const Status& written) {
        if (!written) return done(tl::unexpected(written.error()));
        // Before anybody can count this vote for another primary.
        if (reply->granted && self->state().vote.record->primary != self->environment_.options.host)
          self->tell_fence(self->environment_.options.host,
                           self->environment_.reactor.now(),
                           self->state().epoch);
        reply->stamps = self->stamps();
        done(*reply);
      });
}

void Volume::vote_chosen(const ChosenNotice& notice, Done done) {
  if (const Status able = check_voting(); !able) return done(able);
  // What was chosen counts for one that was put back as well.
  hear_stamps(notice.stamps);
  const auto self = shared_from_this();
  update(
      [notice, host = environment_.options.host](VolumeState& state) -> Status {
        const bool had_record = state.vote.record.has_value();
        RD_TRY(learn_chosen(state.vote, notice));
        follow_record(state, host);
        begin_membership(state, had_record);
        return {};
      },
      [self, done = std::move(done)](const Status& written) {
        // What was chosen is not known here then: the voters are asked.
        if (!written) self->recheck_ = true;
        if (written) {
          self->vote_error_.reset();
          self->follow_handover();
          if (self->role_due() != RoleDue::none || self->is_standby_amiss())
            self->environment_.wake_keeper();
        }
        done(written);
      });
}

// --- a state file that was put back

StateStamps Volume::stamps() const {
  StateStamps stamps = state().stamps;
  if (state().vote.record && !is_put_back())
    stamps.insert_or_assign(environment_.options.host, store_->stamp());
  return stamps;
}

void Volume::hear_stamps(const StateStamps& heard) {
  if (load_error_ || released_) return;
  const std::string& host = environment_.options.host;
  for (const auto& [of, stamp] : heard) {
    if (of == host) {
      // Without a record it has voted for nothing; what is told is of an earlier member of its name.
      if (state().vote.record && !knows_of(store_->stamp(), stamp)) note_put_back(stamp.generation);
    } else if (find_member(state().members, of) != nullptr) {
      store_->remember(of, stamp);
    }
  }
}

void Volume::note_put_back(std::uint64_t generation) {
  if (put_back_.value_or(state().put_back.value_or(0)) >= generation) return;
  put_back_ = generation;
  log(LogLevel::error,
      "put_back",
      "volume={} loaded={} known={}",
      name_,
      store_->stamp().loaded,
      generation);
  update(
      [generation](VolumeState& state) -> Status {
        state.put_back = std::max(generation, state.put_back.value_or(0));
        return {};
      },
      [self = shared_from_this()](const Status& /*written*/) {
        // It stands still whether that could be written or not. An export goes on: its images are its own.
        if (!self->is_put_back() || self->has_plugin() || self->replica_busy_) return;
        self->images_.clear();
        self->reopen_replica();
      });
}

Error Volume::put_back_error() const {
  const std::string& host = environment_.options.host;
  return {Errc::inconsistent,
          0,
          fmt::format("the state file of volume {} on {} is an older copy that was put back: other "
                      "members know of its generation {}",
                      name_,
                      host,
                      put_back_.value_or(state().put_back.value_or(0))),
          fmt::format("it has no vote and takes no part; `replicactl readmit {0} --host {1}` asks "
                      "the others what it has forgotten{2}",
                      name_,
                      host,
                      state().disks.empty() ? ""
                      : is_primary()        ? ", after another member has taken over (`replicactl "
                                              "failover`). --force takes its images as they are"
                                            : " and lets the primary compare its images in full")};
}

void Volume::end_put_back(const std::optional<Record>& record, Done done) {
  const std::uint64_t known = put_back_.value_or(state().put_back.value_or(0));
  auto change = [record, known, host = environment_.options.host](VolumeState& state) -> Status {
    if (record && (!state.vote.chosen || state.vote.record->version < record->version))
      return fail(Errc::busy, "the record that was chosen is not known here yet");
    if (!record) state.vote.promised.round += forgotten_max;
    begin_anew(state, known + forgotten_max);
    if (state.primary == host)
      state.sequence_reserved =
          std::min(counter_max, state.sequence_reserved + sequences_forgotten);
    forget_images(state, host);
    return {};
  };
  update(std::move(change),
         [self = shared_from_this(), done = std::move(done)](const Status& written) {
           if (written) {
             log(LogLevel::warn, "readmitted", "volume={}", self->name_);
             self->put_back_.reset();
             self->recheck_ = true;
             self->environment_.wake_keeper();
             self->look_again();
           }
           done(written);
         });
}

// --- roles

/// A promise of a later term, most often of a candidate that was not chosen in the end.
bool Volume::is_refused() const {
  if (phase_ != Phase::serving || !plugin_status_ || environment_.reactor.now() < renew_after_)
    return false;
  if (plugin_status_->overtaken) return true;
  const auto& replicas = plugin_status_->replicas;
  return std::any_of(replicas.begin(), replicas.end(), [](const PeerStatus& peer) {
    return peer.state == "refused" && peer.error && peer.error->code == Errc::stale_epoch;
  });
}

void Volume::note_renewal() {
  renew_after_ = environment_.reactor.now() + renewal_interval;
}

RoleDue Volume::role_due() const {
  const VoterState& vote = state().vote;
  if (load_error_ || released_ || !vote.record || is_split()) return RoleDue::none;
  if (!vote.chosen || recheck_) return RoleDue::ask;
  const bool mine = vote.record->primary == environment_.options.host;
  if (mine && is_primary() && is_refused()) return RoleDue::renew;
  if (mine == is_primary()) return RoleDue::none;
  return mine ? RoleDue::promote : RoleDue::demote;
}

// --- what an `async` primary hears

void Volume::watch_voters() {
  if (watching_voters_) return;
  watching_voters_ = true;
  const Duration interval =
      std::chrono::milliseconds(state().settings.ack_timeout_ms) / asks_per_ack_timeout;
  environment_.reactor.add_timer(std::min(interval, ask_interval_max), [self = weak_from_this()] {
    const auto volume = self.lock();
    if (!volume) return;
    volume->watching_voters_ = false;
    if (volume->phase_ != Phase::serving || volume->environment_.stopping) return;
    volume->ask_voters();
    volume->watch_voters();
  });
}

/// Those that the plugin does not hear on the stream.
void Volume::ask_voters() {
  const auto& record = state().vote.record;
  if (!record) return;
  const auto streams = [this](const std::string& host) {
    if (!plugin_status_) return false;
    const auto& peers = plugin_status_->replicas;
    return std::any_of(peers.begin(), peers.end(), [&](const PeerStatus& peer) {
      return peer.host == host && peer.state == "streaming";
    });
  };
  for (const MemberState& member : record->members) {
    const bool needless = member.host == environment_.options.host || streams(member.host) ||
                          voters_asked_.contains(member.host);
    if (needless) continue;
    voters_asked_.insert(member.host);
    environment_.votes->hear(member,
                             name_,
                             state().uuid,
                             [self = shared_from_this(),
                              host = member.host,
                              epoch = record->epoch,
                              asked = environment_.reactor.now()](const Result<Epoch>& fence) {
                               self->on_voter_heard(host, asked, fence);
                             });
  }
}

void Volume::on_voter_heard(const std::string& host, Instant asked, const Result<Epoch>& fence) {
  voters_asked_.erase(host);
  if (fence) tell_fence(host, asked, *fence);
}

void Volume::tell_fence(const std::string& host, Instant asked, const Epoch& fence) {
  if (phase_ != Phase::serving) return;
  const auto ago =
      std::chrono::ceil<std::chrono::milliseconds>(environment_.reactor.now() - asked).count();
  session_->notify("voter",
                   {{"host", host},
                    {"fence", to_json(fence)},
                    {"asked_ns", asked.time_since_epoch().count()},
                    {"ago_ms", ago}});
  if (fence.number <= state().epoch.number) return;
  recheck_ = true;
  environment_.wake_keeper();
}

// --- two histories

Error Volume::split_error() const {
  const Record& rival = *state().rival;
  return Error{
      Errc::diverged,
      0,
      fmt::format("two histories of volume {}: {} here, {} met; nothing is served",
                  name_,
                  state().vote.record ? describe_history(*state().vote.record) : "none",
                  describe_history(rival)),
      fmt::format("`replicactl resolve {} --keep HOST` keeps the one that HOST has", name_)};
}

void Volume::note_rival(const Record& rival, Done done) {
  log(LogLevel::error,
      "split",
      "volume={} own={} met={}",
      name_,
      state().vote.record ? state().vote.record->fork : 0,
      log_value(describe_history(rival)));
  update(
      [rival](VolumeState& state) -> Status {
        state.rival = rival;
        return {};
      },
      std::move(done));
}

void Volume::join_history(const Record& kept, Done done) {
  const auto self = shared_from_this();
  auto change = [kept, host = environment_.options.host](VolumeState& state) -> Status {
    const bool was_primary = state.primary == host;
    state.vote = {};
    state.primary = kept.primary;
    state.epoch = kept.epoch;
    state.members = kept.members;
    state.in_sync = kept.in_sync;
    state.active = false;
    state.transfer.reset();
    state.rival.reset();
    state.fork_base.reset();
    // A tag of its own: no history stands at this point.
    if (was_primary) {
      state.history = unclean_point({kept.epoch.number, random_tag()}, state);
      state.checkpoint = state.history;
      state.clean = false;
    }
    return {};
  };
  update(std::move(change), [self, done = std::move(done)](const Status& written) {
    if (written) {
      self->images_.clear();
      self->last_end_.reset();
      self->recheck_ = false;
      log(LogLevel::warn,
          "history_given_up",
          "volume={} primary={}",
          self->name_,
          self->state().primary);
      self->reopen_replica();
    }
    done(written);
  });
}

}  // namespace replicad
