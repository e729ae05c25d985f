#include "replicad/role_keeper.h"

#include "core/base/log.h"
#include "core/control/views.h"
#include "core/vote/fork.h"
#include "core/vote/record_json.h"
#include "io/file.h"
#include "replicad/log_failure.h"
#include "replicad/peer_client.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto keeper_interval = std::chrono::seconds(2);
constexpr Duration read_timeout = std::chrono::seconds(2);
constexpr Duration seal_patience = std::chrono::seconds(25);
constexpr auto rival_interval = std::chrono::seconds(5);
constexpr std::chrono::milliseconds rival_look_timeout{1500};
/// It ends its export meanwhile.
constexpr std::chrono::milliseconds rival_answer_timeout{20'000};

}  // namespace

RoleKeeper::RoleKeeper(ControlContext& context) : context_(context), thread_([this] { run(); }) {}

RoleKeeper::~RoleKeeper() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void RoleKeeper::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  wake_.notify_all();
}

void RoleKeeper::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    woken_ = false;
    lock.unlock();
    const auto volumes =
        run_on_reactor(context_.reactor, [this] { return context_.registry.all(); });
    for (const auto& volume : volumes) {
      if (!context_.stopping) tend(volume);
    }
    lock.lock();
    wake_.wait_for(lock, keeper_interval, [this] { return ending_ || woken_; });
  }
}

void RoleKeeper::tend(const std::shared_ptr<Volume>& volume) {
  struct Look {
    bool unsettled;
    RoleDue due;
  };
  const auto look = run_on_reactor(context_.reactor, [volume]() -> Look {
    // Without the plugin's word, only free images prove that no plugin lives.
    const bool known = volume->is_serving() || (!volume->has_plugin() && volume->has_images());
    const bool unsettled = !volume->is_broken() && volume->state().transfer && known;
    return {unsettled && !volume->has_operation(), volume->role_due()};
  });
  if (look.unsettled) return settle(volume);
  if (look.due == RoleDue::ask) ask(volume);
  const RoleDue due = run_on_reactor(context_.reactor, [volume] {
    return volume->has_operation() || volume->state().transfer ? RoleDue::none : volume->role_due();
  });
  if (due == RoleDue::demote) demote(volume);
  if (due == RoleDue::promote) promote(volume);
  if (due == RoleDue::renew) renew(volume);
  if (run_on_reactor(context_.reactor, [volume] { return volume->export_due(); })) serve(volume);
  tend_standby(volume);
  look_for_rivals(volume);
}

/// Starts the standby of a handover, and ends one that is not due any more or has died.
void RoleKeeper::tend_standby(const std::shared_ptr<Volume>& volume) {
  const bool amiss = run_on_reactor(context_.reactor, [volume] {
    return !volume->has_operation() && (volume->is_standby_amiss() || volume->is_standby_dead());
  });
  if (!amiss) return;
  const auto operation = OperationGuard::begin(context_, volume->name(), "a standby");
  if (!operation) return;
  end_standby(context_, volume);
  const std::uint32_t id =
      run_on_reactor(context_.reactor, [volume] { return volume->standby_due(); });
  if (id == 0) return;
  const Status started = start_standby(context_, volume, id);
  if (started) return;
  end_standby(context_, volume);
  const bool is_due = run_on_reactor(context_.reactor, [volume, id, &started] {
    return volume->note_standby_failed(id, started.error());
  });
  if (is_due) log_failure("standby_not_started", volume->name(), started.error());
}

/// Members of the history before, whom a forced record left behind, may have gone on in it.
void RoleKeeper::look_for_rivals(const std::shared_ptr<Volume>& volume) {
  const VolumeState state = state_of(context_, volume);
  if (!state.fork_base || !state.vote.record) return;
  const auto now = std::chrono::steady_clock::now();
  const auto looked = looked_at_.find(volume->name());
  if (looked != looked_at_.end() && now - looked->second < rival_interval) return;
  looked_at_[volume->name()] = now;
  for (const MemberState& member : state.fork_base->members) {
    if (find_member(state.vote.record->members, member.host) == nullptr)
      meet_member(volume, state, member);
  }
}

void RoleKeeper::meet_member(const std::shared_ptr<Volume>& volume,
                             const VolumeState& state,
                             const MemberState& member) {
  const auto answer =
      ask_peer({member.control, "GET", volume_path(state.name), nullptr, rival_look_timeout});
  if (!answer || !answer->ok()) return;
  const auto view = parse_volume(answer->body);
  if (!view || view->uuid != state.uuid || !view->vote.record) return;
  const Record& other = *view->vote.record;
  const Meeting meeting = meet(*state.vote.record, *state.fork_base, other);
  if (meeting == Meeting::same) return;
  if (meeting == Meeting::split && !state.rival) {
    if (const Status stopped = stop_for_rival(context_, volume, other); !stopped)
      log_failure("split_not_recorded", volume->name(), stopped.error());
  }
  if (view->state == "split") return;
  const json message = {{"uuid", state.uuid}, {"record", record_json(*state.vote.record)}};
  const auto told = ask_peer(
      {member.control, "POST", volume_path(state.name, "rival"), message, rival_answer_timeout});
  if (told && !told->ok()) log_failure("rival_not_told", volume->name(), told->error());
}

void RoleKeeper::settle(const std::shared_ptr<Volume>& volume) {
  const auto operation = OperationGuard::begin(context_, volume->name(), "settling a switchover");
  if (!operation) return;
  Error error;
  const Settlement settlement = settle_transfer(context_, volume, &error);
  log(LogLevel::info,
      "switchover_settling",
      "volume={} settled={} error={}",
      volume->name(),
      settlement != Settlement::unknown,
      log_value(error.message));
}

void RoleKeeper::ask(const std::shared_ptr<Volume>& volume) {
  const Status heard = context_.environment.votes->hear_quorum(state_of(context_, volume));
  if (!heard) {
    run_on_reactor(context_.reactor, [volume, &heard] { volume->note_vote(heard.error()); });
    return;
  }
  const auto record = context_.environment.votes->propose(volume, change_nothing(), read_timeout);
  run_on_reactor(context_.reactor, [volume, &record] {
    const VoterState& vote = volume->state().vote;
    // What could not be written here is not known here.
    if (record && vote.chosen && vote.record == *record) volume->set_recheck(false);
    volume->note_vote(record ? std::nullopt : std::optional<Error>(record.error()));
  });
}

/// Another host is the primary: whatever this one still serves must not be answered any more.
void RoleKeeper::demote(const std::shared_ptr<Volume>& volume) {
  const auto operation = OperationGuard::begin(context_, volume->name(), "giving up the role");
  if (!operation) return;
  run_on_reactor(context_.reactor, [volume] { volume->plugin_release(); });
  if (!end_export_process(context_, volume, std::chrono::seconds(5))) return;
  const VolumeState state = state_of(context_, volume);
  const auto point = state.clean ? std::optional<HistoryPoint>(state.history) : std::nullopt;
  const Status status = give_up_role(context_, volume, state.vote.record->primary, point);
  if (!status) log_failure("role_not_given_up", volume->name(), status.error());
}

/// The record names this host, which ended before it had drawn the conclusion.
void RoleKeeper::promote(const std::shared_ptr<Volume>& volume) {
  const auto operation = OperationGuard::begin(context_, volume->name(), "promote");
  if (!operation) return;
  const VolumeState state = state_of(context_, volume);
  const Epoch promised = state.epoch;
  const auto point =
      call_reactor<HistoryPoint>(context_.reactor, [volume, promised](const auto& done) {
        volume->seal_replica(promised, std::nullopt, seal_patience, done);
      });
  if (!point) {
    // Nobody attaches to a chosen host, which is what else tries a failed disk again.
    run_on_reactor(context_.reactor, [volume] { volume->reopen_failed_replica(); });
    return log_failure("promotion_not_finished", volume->name(), point.error());
  }
  const Record record = *state.vote.record;
  // Whoever asked for the promotion has put down whether the volume was to be served.
  const bool activate = state.active;
  const Status status =
      call_reactor<void>(context_.reactor, [volume, record, point, activate](auto done) {
        volume->record_promotion(record, *point, activate, std::move(done));
      });
  if (!status) return log_failure("promotion_not_finished", volume->name(), status.error());
  if (activate) start(volume);
}

/// A member has promised a later term than the one that this host serves in: whether somebody has it
/// the voters know, and if nobody has, this host takes one after it.
void RoleKeeper::renew(const std::shared_ptr<Volume>& volume) {
  const auto operation = OperationGuard::begin(context_, volume->name(), "a new term");
  if (!operation) return;
  run_on_reactor(context_.reactor, [volume] { volume->note_renewal(); });
  const Epoch promised = state_of(context_, volume).epoch;
  const auto record = context_.environment.votes->propose(
      volume, change_claim({context_.options.host, random_tag(), promised.number, true}));
  if (!record) {
    const bool is_over = record.error().code == Errc::stale_epoch;
    run_on_reactor(context_.reactor, [volume, is_over] {
      if (is_over) volume->set_recheck(true);
    });
    return log_failure("term_not_renewed", volume->name(), record.error());
  }
  const auto resumed = ask_plugin(
      context_, volume, "resume", {{"epoch", to_json(record->epoch)}}, plugin_resume_timeout);
  if (!resumed) return log_failure("term_not_renewed", volume->name(), resumed.error());
  log(LogLevel::info, "term_renewed", "volume={} epoch={}", volume->name(), record->epoch.number);
}

/// An export that ended otherwise than by request, here or with this host.
void RoleKeeper::serve(const std::shared_ptr<Volume>& volume) {
  const auto operation = OperationGuard::begin(context_, volume->name(), "autostart");
  if (operation) start(volume);
}

void RoleKeeper::start(const std::shared_ptr<Volume>& volume) {
  bool served = false;
  const auto started = start_export(context_, volume, &served);
  if (started) return;
  if (served) static_cast<void>(end_export_process(context_, volume, std::chrono::milliseconds(0)));
  run_on_reactor(context_.reactor,
                 [volume, &started] { volume->note_start_failed(started.error()); });
}

}  // namespace replicad
