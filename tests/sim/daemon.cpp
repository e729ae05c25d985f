#include "tests/sim/daemon.h"

#include <algorithm>

#include "core/base/check.h"
#include "tests/sim/cluster.h"
#include "tests/sim/daemon_ask.h"

namespace replicad::sim {

namespace {

constexpr auto acceptor = Connection::Side::acceptor;
constexpr Duration role_retry = std::chrono::milliseconds(300);
constexpr Duration call_delay = std::chrono::microseconds(100);

void forget_heat(ActivityRecord& activity) {
  for (auto& disk : activity.entries) {
    for (ActivityEntry& entry : disk)
      entry &= static_cast<ActivityEntry>(~activity_hot);
  }
}

}  // namespace

Daemon::Daemon(Cluster& cluster, HostIndex host)
    : cluster_(cluster), world_(cluster.world), machine_(*cluster.machines[host]), host_(host) {}

void Daemon::start() {
  cluster_.network.listen(host_, life_.guard([this](const std::shared_ptr<Connection>& connection) {
    accept(connection);
  }));
  // The record may have changed while this host was away.
  recheck_ = true;
  if (is_primary()) (void)remove_log();
  take_role();
  keep_role();
  watch_voters();
}

std::string Daemon::describe() const {
  const VoterState& vote = state().vote;
  return fmt::format("(version {} {}{}{}) ",
                     vote.record->version,
                     vote.chosen ? "chosen" : "accepted",
                     recheck_ ? ", to be asked for" : "",
                     operation_.empty() ? "" : ", " + operation_);
}

bool Daemon::is_witness() const {
  return host_ >= cluster_.options.hosts;
}

void Daemon::die() {
  if (!life_.is_alive()) return;
  life_.end();
  cluster_.network.listen(host_, nullptr);
  cluster_.network.program_died(host_, acceptor);
  replica_.reset();
  if (cluster_.plugins[host_]) cluster_.plugins[host_]->daemon_died();
}

std::shared_ptr<Plugin> Daemon::plugin() const {
  auto plugin = session_.lock();
  return plugin && plugin->is_alive() ? plugin : nullptr;
}

// --- the state file

void Daemon::update(std::function<Status(VolumeState&)> change, Done done) {
  updates_.push_back({std::move(change), std::move(done)});
  if (updating_) return;
  updating_ = true;
  machine_.after(Duration{}, life_.guard([this] { run_next(); }));
}

void Daemon::run_next() {
  const auto finish = [this](const Status& status) {
    const Done done = std::move(updates_.front().done);
    updates_.pop_front();
    updating_ = !updates_.empty();
    if (updating_) machine_.after(Duration{}, life_.guard([this] { run_next(); }));
    if (done) done(status);
  };
  auto next = std::make_shared<VolumeState>(state());
  if (const Status allowed = updates_.front().change(*next); !allowed) return finish(allowed);
  if (*next == state()) return finish({});
  ++next->generation;
  machine_.io(
      [&cluster = cluster_, host = host_, next] {
        cluster.machines[host]->state = std::move(*next);
        cluster.state_written(host);
      },
      life_.guard([finish](int error) {
        finish(error == 0 ? Status() : fail_errno(error, "write state file"));
      }),
      true);
}

// --- role

/// The images are free when no plugin has them and no I/O of a dead program is in flight.
void Daemon::take_role() {
  if (is_witness() || replica_busy_ || replica_ || is_primary()) return;
  if (cluster_.plugins[host_] || machine_.has_io_in_flight()) {
    if (role_pending_) return;
    role_pending_ = true;
    machine_.after(role_retry, life_.guard([this] {
      role_pending_ = false;
      take_role();
    }));
    return;
  }
  if (are_other_images()) return;
  // What was known of the members says nothing of images that follow another primary.
  // Of its own images it says where they may differ from what the members have: that is a trail.
  if (ActivityRecord& left = machine_.activity; left.header) {
    machine_.trail = {};
    if (cluster_.options.planted == Planted::forgotten_heat) forget_heat(left);
    const auto trail = trail_of_activity(
        *left.header, left.entries, machine_.state.checkpoint, small_region_bytes);
    if (trail && !left.entries.empty())
      put_trail(machine_.trail, *trail, machine_.state.checkpoint);
  }
  machine_.activity = {};
  ReplicaProgram::Hooks hooks;
  hooks.update_state = [this](ReplicaProgram::StateChange change, Done done) {
    update(
        [change = std::move(change)](VolumeState& state) -> Status {
          const HistoryPoint before = state.checkpoint;
          change(state);
          // A copy that is complete ends what an unclean end as primary had left.
          if (state.consistent && state.checkpoint != before) state.clean = true;
          return {};
        },
        std::move(done));
  };
  hooks.state = [this]() -> const VolumeState& { return state(); };
  auto replica = std::make_shared<ReplicaProgram>(
      world_, machine_, cluster_.options, cluster_.histories, life_, std::move(hooks));
  if (const Status opened = replica->open(); !opened) {
    // A disk that fails now may not later. The product waits for its restart here.
    world_.reached("replica could not be opened");
    machine_.after(role_retry, life_.guard([this] { take_role(); }));
    return;
  }
  replica_ = std::move(replica);
  learn_identity();
}

/// Nothing is opened then, until somebody has said what they are.
bool Daemon::are_other_images() {
  const auto why = machine_.why_other_images();
  refuses_images_ = why && cluster_.options.planted != Planted::unrecognised_images;
  if (refuses_images_) {
    world_.note("{} does not open its images: {}", machine_.name, *why);
    world_.reached("another image refused");
    return true;
  }
  world_.require(!machine_.has_old_images() || !state().consistent,
                 "P2 image: {} takes an old copy of its images for what it wrote",
                 machine_.name);
  machine_.accept_images();  // all of them will be compared
  return false;
}

void Daemon::learn_identity() {
  update(
      [identity = machine_.image_identity()](VolumeState& state) -> Status {
        for (DiskState& disk : state.disks) {
          if (disk.mark.identity.empty()) disk.mark.identity = identity;
        }
        return {};
      },
      nullptr);
}

void Daemon::readmit() {
  if (is_busy()) return;
  world_.note("operator: readmit the images of {}", machine_.name);
  update(
      [host = machine_.name](VolumeState& state) -> Status {
        forget_images(state, host);
        return {};
      },
      [this](const Status& written) {
        if (!written) return;
        world_.reached("another image readmitted");
        refuses_images_ = false;
        machine_.accept_images();
        machine_.told_durable = 0;
        take_role();
      });
}

void Daemon::accept(const std::shared_ptr<Connection>& connection) {
  const std::weak_ptr<Connection> weak = connection;
  connection->start(
      acceptor,
      {.on_frame = [self = weak_from_this(), weak](const FrameView& frame) -> Status {
         const auto daemon = self.lock();
         const auto open = weak.lock();
         if (!daemon || !open || frame.header.type != FrameType::attach) return {};
         const auto message = decode_attach(frame.payload);
         if (!message) return tl::unexpected(message.error());
         if (const Status attached = daemon->attach(open, *message); !attached) {
           const Error& error = attached.error();
           open->send(acceptor, encode_refuse({error.code, error.message, error.hint}));
           open->close_after_send(acceptor, error);
         }
         return {};
       },
       .on_closed = nullptr});
}

Status Daemon::attach(const std::shared_ptr<Connection>& connection, const AttachMessage& message) {
  if (is_primary()) {
    // Somebody with a later epoch believes otherwise: the voters know.
    if (message.epoch.number > state().epoch.number) recheck_ = true;
    return fail(Errc::refused, "{} is itself the primary", machine_.name);
  }
  if (!replica_ || replica_busy_) return fail(Errc::busy, "{} changes its role", machine_.name);
  // A promise that led to no record stands in the way of a term that was chosen: the voters know.
  if (message.epoch.number == state().epoch.number && message.epoch != state().epoch) {
    world_.reached("a promise of a term that another has");
    recheck_ = true;
  }
  replica_->attach(connection, message);
  return {};
}

// --- requests of the plugin

bool Daemon::can_activate() const {
  return is_primary() && !plugin() && !state().transfer && !is_busy() &&
         role_due() == RoleDue::none && !cluster_.plugins[host_] && !machine_.has_io_in_flight() &&
         !machine_.why_other_images();
}

void Daemon::claim(const std::shared_ptr<Plugin>& plugin,
                   std::function<void(Result<ClaimGrant>)> reply) {
  machine_.after(
      world_.random.delay(call_delay), life_.guard([this, plugin, reply = std::move(reply)] {
        if (!is_primary() || this->plugin() || state().transfer || is_busy()) {
          reply(fail(Errc::busy, "not now"));
          return;
        }
        session_ = plugin;
        operation_ = "claim";
        propose(change_claim({machine_.name, draw_tag(), state().epoch.number, state().clean}),
                proposal_timeout,
                [this, plugin, reply](const Result<Record>& record) {
                  end_operation();
                  if (record) return record_claim(*record, plugin, reply);
                  if (record.error().code == Errc::stale_epoch) recheck_ = true;
                  session_.reset();
                  reply(tl::unexpected(record.error()));
                });
      }));
}

void Daemon::record_claim(const Record& record,
                          const std::shared_ptr<Plugin>& plugin,
                          const std::function<void(Result<ClaimGrant>)>& reply) {
  const bool was_clean = state().clean;
  const Sequence step = world_.random.chance(20) ? 100 : Sequence{1} << 24;
  update(
      [this, record, step](VolumeState& next) -> Status {
        if (next.primary != machine_.name || (next.vote.record && *next.vote.record != record)) {
          return fail(Errc::refused, "no longer the primary");
        }
        next.epoch = record.epoch;
        next.in_sync = record.in_sync;
        if (!next.clean) next.history = unclean_point(record.epoch, next);
        next.sequence_reserved = std::max(next.sequence_reserved, next.history.sequence + step);
        next.clean = false;
        return {};
      },
      [this, was_clean, plugin, reply](const Status& written) {
        on_claimed(written, was_clean, plugin, reply);
      });
}

void Daemon::on_claimed(const Status& written,
                        bool was_clean,
                        const std::shared_ptr<Plugin>& plugin,
                        const std::function<void(Result<ClaimGrant>)>& reply) {
  if (!written) {
    session_.reset();
    reply(tl::unexpected(written.error()));
    return;
  }
  if (!plugin->is_alive()) {
    // The plugin went away before it served anything: the images are as they were.
    update(
        [was_clean](VolumeState& next) -> Status {
          next.clean = was_clean;
          return {};
        },
        nullptr);
    session_.reset();
    return;
  }
  cluster_.claimed(host_, was_clean);
  reply(ClaimGrant{state().vote.record->epoch,
                   state().history,
                   state().sequence_reserved,
                   state().in_sync,
                   was_clean,
                   voters_of(*state().vote.record)});
}

/// After a restart of replicad.
void Daemon::rejoin(const std::shared_ptr<Plugin>& plugin) {
  machine_.after(world_.random.delay(call_delay), life_.guard([this, plugin] {
    if (!plugin->is_serving()) return;
    const Epoch epoch = plugin->core().epoch();
    const VoterState& vote = state().vote;
    const bool recorded = vote.record->primary == machine_.name;
    const Epoch term = recorded ? vote.record->epoch : state().epoch;
    const bool missed_term = recorded && epoch.number < term.number;
    const bool undecided = !vote.chosen && !state().transfer && (!recorded || missed_term);
    if (is_primary() && undecided) {
      recheck_ = true;
      return;
    }
    if (!is_primary() || !recorded || state().clean || (term != epoch && !missed_term)) {
      world_.reached("export fenced at its rejoin");
      plugin->die();
      return;
    }
    session_ = plugin;
    plugin->join(shared_from_this());
    world_.reached("export rejoined");
    // With a switchover open it stays sealed until that is settled.
    if (!state().transfer) plugin->resume(missed_term ? std::optional(term) : std::nullopt);
  }));
}

void Daemon::record_in_sync(const std::vector<std::string>& in_sync, Done reply) {
  const Record& record = *state().vote.record;
  if (record.primary != machine_.name) {
    recheck_ = !state().vote.chosen;
    return reply(fail(Errc::stale_epoch, "another host may have become the primary"));
  }
  propose(change_in_sync(machine_.name, record.epoch, in_sync),
          proposal_timeout,
          [reply = std::move(reply)](const Result<Record>& chosen) {
            reply(chosen ? Status() : tl::unexpected(chosen.error()));
          });
}

void Daemon::reserve(Sequence until, Done reply) {
  update(
      [until](VolumeState& next) -> Status {
        next.sequence_reserved = std::max(next.sequence_reserved, until);
        return {};
      },
      std::move(reply));
}

void Daemon::stopped(const HistoryPoint& point, Done reply) {
  update(
      [this, point](VolumeState& next) -> Status {
        if (next.primary != machine_.name || next.transfer) {
          return fail(Errc::refused, "a switchover is under way");
        }
        next.history = point;
        next.sequence_reserved = std::max(next.sequence_reserved, point.sequence);
        next.clean = true;
        return {};
      },
      std::move(reply));
}

void Daemon::plugin_died() {
  session_.reset();
  if (std::exchange(holding_, false)) end_operation();
  machine_.after(role_retry, life_.guard([this] { take_role(); }));
}

void Daemon::end_operation() {
  operation_.clear();
}

}  // namespace replicad::sim
