// The transfer of the primary's role (replicad/switchover.cpp, settlement.cpp, control_roles.cpp, volume.cpp),
// declared in daemon.h.

#ifndef __clang__
// g++ 12 takes the value of an empty optional for one that may be read.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <algorithm>

#include "tests/sim/cluster.h"
#include "tests/sim/daemon.h"
#include "tests/sim/daemon_ask.h"

namespace replicad::sim {

namespace {

constexpr Duration promotion_timeout = std::chrono::seconds(25);
constexpr Duration promotion_retry = std::chrono::milliseconds(50);

}  // namespace

Daemon::View Daemon::view() const {
  return {state().primary, !replica_ || replica_->has_failed(), state().consistent};
}

void Daemon::switchover(HostIndex to) {
  const auto plugin = this->plugin();
  if (!is_primary() || !plugin || !plugin->is_serving() || is_busy() || state().transfer) return;
  if (!contains_host(state().in_sync, host_name(to))) return;
  operation_ = "switchover";
  ask<View>(
      to,
      ask_timeout,
      [](Daemon& target, const std::function<void(View)>& answer) { answer(target.view()); },
      [this, to](const std::optional<View>& view) {
        const auto export_now = this->plugin();
        const bool fit = view && export_now && export_now->is_serving() && view->consistent &&
                         !view->has_failed && view->primary == machine_.name;
        if (!fit) return end_operation();
        const auto deadline = std::chrono::milliseconds(500 + world_.random.below(10'000));
        holding_ = true;
        export_now->hold(to, deadline, life_.guard([this, to](const Result<HistoryPoint>& point) {
          if (std::exchange(holding_, false)) on_held(to, point);
        }));
      });
}

void Daemon::on_held(HostIndex to, const Result<HistoryPoint>& point) {
  const auto plugin = this->plugin();
  if (!point || !plugin) {
    world_.reached("hold failed");
    return end_operation();
  }
  if (!plugin->seal()) {
    plugin->resume(std::nullopt);
    return end_operation();
  }
  offer(to, *point);
}

void Daemon::offer(HostIndex to, const HistoryPoint& point) {
  const Epoch term = state().vote.record->epoch;
  const Epoch epoch{std::max(state().epoch.number, term.number) + 1, draw_tag()};
  update(
      [to, epoch, point](VolumeState& next) -> Status {
        next.transfer = TransferState{host_name(to), epoch, point};
        return {};
      },
      [this, to, term, epoch, point](const Status& written) {
        if (!written) {
          if (const auto plugin = this->plugin()) plugin->resume(std::nullopt);
          return end_operation();
        }
        world_.note("{} offers epoch {} to {}", machine_.name, epoch.number, host_name(to));
        cluster_.offered(host_, to);
        ask<Status>(
            to,
            promotion_timeout,
            [order = PromotionOrder{host_, term, epoch, point}](
                Daemon& target, std::function<void(Status)> answer) {
              target.promote(order, std::move(answer));
            },
            [this, to](const std::optional<Status>& answer) {
              if (!state().transfer) return end_operation();
              if (answer && *answer) return give_up_role(host_name(to), state().transfer->point);
              world_.reached(answer ? "offer refused" : "switchover of unknown outcome");
              settle();
            });
      });
}

/// What became of an offer is whatever the voters say: this host asks them for a new term.
void Daemon::settle() {
  operation_ = "settle";
  const std::uint64_t offered = std::max(state().epoch.number, state().transfer->epoch.number);
  propose(change_claim({machine_.name, draw_tag(), offered, true}),
          proposal_timeout,
          [this](const Result<Record>& claimed) {
            if (!state().transfer) return end_operation();
            if (claimed) {
              world_.reached("transfer settled: not promoted");
              return go_on(*claimed);
            }
            if (claimed.error().code != Errc::stale_epoch) return end_operation();
            world_.reached("transfer settled: promoted");
            give_up_role(state().vote.record->primary, state().transfer->point);
          });
}

void Daemon::go_on(const Record& record) {
  const bool has_plugin = plugin() != nullptr;
  update(
      [record, has_plugin](VolumeState& next) -> Status {
        if (!next.transfer) return {};
        // Sealed means that nothing was written after the point.
        if (!has_plugin) {
          next.history = next.transfer->point;
          next.clean = true;
          next.active = false;
        }
        next.epoch = std::max(next.epoch, record.epoch);
        next.transfer.reset();
        return {};
      },
      [this, record](const Status& written) {
        end_operation();
        if (!written) return;
        world_.reached("primary goes on in a higher epoch");
        if (const auto plugin = this->plugin()) plugin->resume(record.epoch);
      });
}

void Daemon::give_up_role(const std::string& primary, const std::optional<HistoryPoint>& point) {
  // What a promotion left of its log, ended before it had removed it, would pass for a damaged one.
  const auto removed = std::make_shared<Status>();
  machine_.io([this, removed] { *removed = remove_log(); },
              life_.guard([this, removed, primary, point](int error) {
                if (error == 0 && *removed) return record_replica(primary, point);
                world_.reached("a log that was left over could not be removed");
                end_operation();
              }));
}

Status Daemon::remove_log() {
  RecoveryFiles files(machine_.log, [this] { return machine_.draw_error(); });
  RD_TRY(remove_log_files(files));
  remove_stage(machine_);
  return {};
}

void Daemon::record_replica(const std::string& primary, const std::optional<HistoryPoint>& point) {
  update(
      [this, primary, point, tag = draw_tag()](VolumeState& next) -> Status {
        next.primary = primary;
        next.epoch = raised_fence(next.epoch, next.vote);
        if (next.vote.record && next.vote.chosen) next.in_sync = next.vote.record->in_sync;
        // Of a term that nobody has: else it might be another host's unclean point.
        next.history = point.value_or(unclean_point({next.epoch.number, tag}, next));
        next.checkpoint = next.history;
        next.consistent = next.whole = true;
        next.clean = point.has_value();
        next.active = false;
        next.transfer.reset();
        // A history of its own: what the image holds, wherever it got it.
        if (!point) cluster_.gave_up(host_, next.history);
        return {};
      },
      [this](const Status& written) {
        end_operation();
        if (!written) return;
        world_.note("{} is a replica now", machine_.name);
        machine_.told_durable = 0;
        recheck_ = state().vote.record->primary == machine_.name;
        if (const auto plugin = cluster_.plugins[host_]) plugin->die();
        take_role();
      });
}

// --- the target's side

void Daemon::promote(const PromotionOrder& order, const Done& done) {
  const bool fit = !is_primary() && state().primary == host_name(order.from) &&
                   contains_host(state().in_sync, machine_.name) && state().consistent &&
                   state().clean && replica_ && !is_busy();
  if (!fit) return done(fail(Errc::refused, "not fit for a promotion"));
  operation_ = "promote";
  seal_replica(order.epoch, order.point, [this, order, done](const Result<HistoryPoint>& point) {
    if (!point) {
      end_operation();
      return done(tl::unexpected(point.error()));
    }
    propose(change_promote({machine_.name, order.term, order.epoch}),
            proposal_timeout,
            [this, done, point = *point](const Result<Record>& record) {
              if (record) return record_promotion(*record, point, done);
              recheck_ = true;
              reopen_replica();
              done(tl::unexpected(record.error()));
            });
  });
}

void Daemon::seal_replica(const Epoch& epoch,
                          const std::optional<HistoryPoint>& point,
                          std::function<void(Result<HistoryPoint>)> done) {
  if (!replica_ || replica_busy_) return done(fail(Errc::busy, "changes its role"));
  replica_busy_ = true;
  replica_->prepare_promotion(epoch, point, [this, done = std::move(done)](const Status& ready) {
    if (ready) return done(replica_->core().logged());
    replica_busy_ = false;
    done(tl::unexpected(ready.error()));
  });
}

void Daemon::record_promotion(const Record& record, const HistoryPoint& point, Done done) {
  replica_->check_image();
  update(
      [this, record, point](VolumeState& next) -> Status {
        if (next.vote.record && next.vote.record->epoch.number > record.epoch.number) {
          return fail(Errc::stale_epoch, "a later epoch was accepted meanwhile");
        }
        next.primary = machine_.name;
        next.in_sync = record.in_sync;
        if (next.epoch.number <= record.epoch.number) next.epoch = record.epoch;
        next.history = next.checkpoint = point;
        next.sequence_reserved = std::max(next.sequence_reserved, point.sequence);
        next.clean = true;
        next.active = true;
        next.consistent = next.whole = true;
        next.transfer.reset();
        return {};
      },
      [this, done = std::move(done)](const Status& written) {
        if (!written) {
          // The voters may have chosen this host all the same.
          recheck_ = true;
          reopen_replica();
          return done(written);
        }
        replica_->shutdown(true, life_.guard([this, done] {
          replica_.reset();
          replica_busy_ = false;
          end_operation();
          world_.note("{} is promoted", machine_.name);
          world_.reached("promoted");
          done({});
        }));
      });
}

/// After a promotion that did not happen: the session ended, so the replica starts anew.
void Daemon::reopen_replica() {
  replica_busy_ = true;
  replica_->shutdown(false, life_.guard([this] {
    replica_.reset();
    replica_busy_ = false;
    end_operation();
    machine_.after(promotion_retry, life_.guard([this] { take_role(); }));
  }));
}

}  // namespace replicad::sim
