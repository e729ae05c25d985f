// The operator with `replicactl`: the real plans (core/control) of what the hosts say, declared in cluster.h.

#ifndef __clang__
// g++ 12 takes the value of an empty optional for one that may be read.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "core/control/plan.h"
#include "tests/sim/cluster.h"

namespace replicad::sim {

namespace {

constexpr const char* volume_name = "vm1";
/// Between what a controller saw and what it does.
constexpr Duration act_delay = std::chrono::milliseconds(20);

}  // namespace

/// What GET /v1/volumes/NAME says there (replicad/control_common.cpp).
VolumeView Cluster::view_of(HostIndex host) const {
  const Daemon& daemon = *daemons[host];
  const VolumeState& state = daemon.state();
  const auto& plugin = plugins[host];
  const auto& replica = daemon.replica();
  VolumeView view;
  view.host = machines[host]->name;
  view.name = volume_name;
  view.uuid = volume_uuid;
  view.role = daemon.is_primary() ? Role::primary : Role::replica;
  view.primary = state.primary;
  view.epoch = state.epoch;
  view.mode = mode_name(plugin && daemon.is_primary() ? plugin->mode() : options.mode);
  if (state.vote.record) {
    for (const MemberState& member : state.vote.record->members)
      view.members.push_back({member.host, member.stream, member.control, member.witness});
  }
  view.in_sync = state.in_sync;
  view.vote = state.vote;
  view.clean = state.clean;
  if (daemon.is_primary()) {
    view.state = plugin && plugin->is_serving() ? "serving" : "stopped";
    if (state.transfer) view.transfer = TransferView{state.transfer->to, state.transfer->epoch};
  } else {
    view.state = "replica";
  }
  HistoryPoint end = state.history;
  if (!daemon.is_primary() && host < options.hosts) {
    ReplicaSelf self;
    self.open = replica && !replica->has_failed();
    self.connected = self.open && replica->core().session();
    self.consistent = state.consistent;
    self.is_short = self.open && replica->core().is_short();
    end = self.open ? replica->core().logged() : state.checkpoint;
    self.logged = end.sequence;
    view.replica = self;
  }
  view.history = {end.epoch, end.sequence, to_hex(end.digest)};
  return view;
}

std::vector<MemberReport> Cluster::ask_hosts() const {
  std::vector<MemberReport> reports;
  for (HostIndex host = 0; host < options.hosts + options.witnesses; ++host) {
    Result<VolumeView> view = fail(Errc::unreachable, "no answer");
    if (daemons[host]->is_alive()) view = view_of(host);
    reports.push_back({machines[host]->name, {}, std::move(view)});
  }
  return reports;
}

/// `replicactl failover VOL`.
void Cluster::fail_over_by_plan(Random& random) {
  const auto plan = plan_failover(volume_name, {}, ask_hosts(), {});
  if (!plan) return world.reached("replicactl refuses a failover");
  if (plan->steps.empty()) return;
  world.reached("replicactl plans a failover");
  const HostIndex host = host_index(plan->steps.front().host);
  world.after(random.delay(act_delay), [this, host] { fail_over(host); });
}

/// `replicactl switchover VOL`.
void Cluster::switch_over_by_plan(Random& random) {
  const auto plan = plan_switchover(volume_name, {}, ask_hosts(), {});
  if (!plan) return world.reached("replicactl refuses a switchover");
  if (plan->steps.empty()) return;
  world.reached("replicactl plans a switchover");
  const auto to = plan->steps.front().request.body.at("to").get<std::string>();
  world.after(random.delay(act_delay), [this, host = host_index(to)] { switch_over(host); });
}

}  // namespace replicad::sim
