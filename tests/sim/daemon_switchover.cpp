// The transfer of the primary's role (replicad/switchover.cpp, settlement.cpp, control_roles.cpp), declared in
// daemon.h.

#include <algorithm>

#include "tests/sim/cluster.h"
#include "tests/sim/daemon.h"

namespace replicad::sim {

namespace {

constexpr Duration ask_timeout = std::chrono::seconds(3);
constexpr Duration promotion_timeout = std::chrono::seconds(25);
constexpr Duration settle_interval = std::chrono::seconds(2);
constexpr int fence_attempts = 8;

}  // namespace

template <typename Answer>
void Daemon::ask(HostIndex to,
                 Duration timeout,
                 std::function<void(Daemon&, std::function<void(Answer)>)> request,
                 std::function<void(std::optional<Answer>)> done) {
  // Whoever comes first: the answer, or the deadline.
  const auto once = std::make_shared<std::function<void(std::optional<Answer>)>>(std::move(done));
  auto finish = life_.guard([once](std::optional<Answer> answer) {
    if (*once) std::exchange(*once, nullptr)(std::move(answer));
  });
  machine_.after(timeout, [finish]() mutable { finish(std::nullopt); });
  Cluster& cluster = cluster_;
  cluster.network.message(
      host_, to, [&cluster, from = host_, to, request = std::move(request), finish]() mutable {
        const auto& daemon = cluster.daemons[to];
        if (!daemon->is_alive()) return;
        request(*daemon, [&cluster, from, to, finish](Answer answer) mutable {
          cluster.network.message(to, from, [finish, answer = std::move(answer)]() mutable {
            finish(std::optional<Answer>(std::move(answer)));
          });
        });
      });
}

Daemon::View Daemon::view() const {
  View view;
  view.primary = state().primary;
  view.epoch = state().epoch;
  view.promoting = operation_ == "promote";
  view.has_failed = !replica_ || replica_->has_failed();
  view.consistent = state().consistent;
  return view;
}

void Daemon::switchover(HostIndex to) {
  const auto plugin = this->plugin();
  if (!is_primary() || !plugin || !plugin->is_serving() || is_busy() || state().transfer) return;
  if (!contains_host(state().in_sync, host_name(to))) return;
  operation_ = "switchover";
  ask<View>(
      to,
      ask_timeout,
      [](Daemon& target, std::function<void(View)> answer) { answer(target.view()); },
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
  const Epoch epoch{state().epoch.number + 1, static_cast<std::uint32_t>(world_.random.next())};
  update(
      [to, epoch, point](VolumeState& next) -> Status {
        next.transfer = TransferState{host_name(to), epoch, point};
        return {};
      },
      [this, to, epoch, point](const Status& written) {
        if (!written) {
          if (const auto plugin = this->plugin()) plugin->resume(std::nullopt);
          return end_operation();
        }
        world_.note("{} offers epoch {} to {}", machine_.name, epoch.number, host_name(to));
        ask<Status>(
            to,
            promotion_timeout,
            [from = host_, epoch, point, in_sync = state().in_sync](
                Daemon& target, std::function<void(Status)> answer) {
              target.promote(from, epoch, point, in_sync, std::move(answer));
            },
            [this, to](const std::optional<Status>& answer) { on_promise(to, answer); });
      });
}

void Daemon::on_promise(HostIndex to, const std::optional<Status>& answer) {
  if (!state().transfer) return end_operation();
  if (answer && *answer) return finish_promoted(host_name(to), state().transfer->epoch);
  if (!answer) {
    world_.reached("switchover of unknown outcome");
    return end_operation();  // settle() goes on
  }
  const Epoch above{state().transfer->epoch.number + 1,
                    static_cast<std::uint32_t>(world_.random.next())};
  fence_target(to, above, fence_attempts, [this](Fencing fenced, const Epoch& epoch) {
    if (fenced == Fencing::fenced) return finish_not_promoted(epoch);
    end_operation();
  });
}

/// Draws the conclusion of a transfer that nobody works on, again and again.
void Daemon::settle() {
  machine_.after(settle_interval, life_.guard([this] { settle(); }));
  const bool known = plugin() || !cluster_.plugins[host_];
  if (!state().transfer || is_busy() || !known || !is_primary()) return;
  operation_ = "settle";
  const HostIndex to = host_index(state().transfer->to);
  ask<View>(
      to,
      ask_timeout,
      [](Daemon& target, std::function<void(View)> answer) { answer(target.view()); },
      [this, to](const std::optional<View>& view) {
        if (!view || !state().transfer) return end_operation();
        if (view->primary != machine_.name) {
          if (view->promoting) return end_operation();
          world_.reached("transfer settled: promoted");
          return finish_promoted(view->primary, view->epoch);
        }
        const Epoch above{std::max(state().epoch.number, state().transfer->epoch.number) + 1,
                          static_cast<std::uint32_t>(world_.random.next())};
        fence_target(to, above, fence_attempts, [this](Fencing fenced, const Epoch& epoch) {
          if (fenced != Fencing::fenced) return end_operation();
          world_.reached("transfer settled: not promoted");
          finish_not_promoted(epoch);
        });
      });
}

void Daemon::fence_target(HostIndex to,
                          Epoch epoch,
                          int attempts,
                          std::function<void(Fencing, Epoch)> done) {
  ask<Status>(
      to,
      ask_timeout,
      [epoch](Daemon& target, std::function<void(Status)> answer) {
        target.fence(epoch, std::move(answer));
      },
      [this, to, epoch, attempts, done = std::move(done)](const std::optional<Status>& answer) {
        if (!answer) return done(Fencing::no_answer, epoch);
        if (*answer) return done(Fencing::fenced, epoch);
        if (answer->error().code == Errc::refused) return done(Fencing::primary_there, epoch);
        if (attempts == 0) return done(Fencing::no_answer, epoch);
        const Epoch next{epoch.number + 1, static_cast<std::uint32_t>(world_.random.next())};
        fence_target(to, next, attempts - 1, done);
      });
}

void Daemon::fence(const Epoch& epoch, Done done) {
  update(
      [this, epoch](VolumeState& next) -> Status {
        if (next.epoch == epoch) return {};
        if (next.primary == machine_.name) return fail(Errc::refused, "it is the primary");
        if (epoch.number <= next.epoch.number) return fail(Errc::stale_epoch, "not above");
        next.epoch = epoch;
        return {};
      },
      std::move(done));
}

void Daemon::finish_promoted(const std::string& primary, const Epoch& epoch) {
  const HistoryPoint point = state().transfer->point;
  update(
      [primary, epoch, point](VolumeState& next) -> Status {
        next.primary = primary;
        if (next.epoch.number < epoch.number) next.epoch = epoch;
        next.history = next.checkpoint = point;
        next.consistent = true;
        next.clean = true;
        next.active = false;
        next.transfer.reset();
        return {};
      },
      [this](const Status& written) {
        end_operation();
        if (!written) return;
        world_.note("{} is a replica now", machine_.name);
        machine_.told_durable = 0;
        if (const auto plugin = this->plugin()) plugin->die();
        take_role();
      });
}

void Daemon::finish_not_promoted(const Epoch& epoch) {
  const bool has_plugin = plugin() != nullptr;
  update(
      [epoch, has_plugin](VolumeState& next) -> Status {
        if (!next.transfer) return {};
        // Sealed means that nothing was written after the point.
        if (!has_plugin) {
          next.history = next.transfer->point;
          next.clean = true;
          next.active = false;
        }
        next.epoch = epoch;
        next.transfer.reset();
        return {};
      },
      [this, epoch](const Status& written) {
        end_operation();
        if (!written) return;
        world_.reached("primary goes on in a higher epoch");
        if (const auto plugin = this->plugin()) plugin->resume(epoch);
      });
}

// --- the target's side

void Daemon::promote(HostIndex from,
                     const Epoch& epoch,
                     const HistoryPoint& point,
                     const std::vector<std::string>& in_sync,
                     Done done) {
  const bool fit = !is_primary() && state().primary == host_name(from) &&
                   contains_host(in_sync, machine_.name) && state().consistent && replica_ &&
                   !is_busy();
  if (!fit) return done(fail(Errc::refused, "not fit for a promotion"));
  operation_ = "promote";
  replica_busy_ = true;
  replica_->prepare_promotion(
      epoch, point, [this, epoch, point, in_sync, done = std::move(done)](const Status& ready) {
        if (ready) return record_promotion(epoch, point, in_sync, done);
        replica_busy_ = false;
        end_operation();
        done(ready);
      });
}

void Daemon::record_promotion(const Epoch& epoch,
                              const HistoryPoint& point,
                              const std::vector<std::string>& in_sync,
                              Done done) {
  replica_->check_image();
  update(
      [this, epoch, point, in_sync](VolumeState& next) -> Status {
        if (next.epoch != epoch) return fail(Errc::stale_epoch, "a fence came first");
        next.primary = machine_.name;
        next.in_sync = in_sync;
        next.history = next.checkpoint = point;
        next.sequence_reserved = std::max(next.sequence_reserved, point.sequence);
        next.clean = true;
        next.active = true;
        next.consistent = true;
        next.transfer.reset();
        return {};
      },
      [this, done = std::move(done)](const Status& written) {
        replica_->shutdown(written.has_value(), life_.guard([this, written, done] {
          replica_.reset();
          replica_busy_ = false;
          end_operation();
          if (written) {
            world_.note("{} is promoted", machine_.name);
            world_.reached("promoted by switchover");
          }
          take_role();
          done(written);
        }));
      });
}

}  // namespace replicad::sim
