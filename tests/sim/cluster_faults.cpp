// Faults, and the people and service managers who start things again (declared in cluster.h).

#include <algorithm>
#include <numeric>

#include "tests/sim/cluster.h"

namespace replicad::sim {

namespace {

constexpr Duration tend_interval = std::chrono::milliseconds(100);
constexpr int copy_cut_steps = 10;

}  // namespace

void Cluster::start_host(HostIndex host) {
  Machine& machine = *machines[host];
  if (!machine.is_powered()) machine.power_up();
  if (daemons[host]->is_alive()) return;
  if (machine.has_io_in_flight(Program::daemon)) {
    // What the dead replicad had begun holds its locks.
    world.after(std::chrono::milliseconds(50), [this, host] { start_host(host); });
    return;
  }
  world.note("replicad of {} starts", machine.name);
  daemons[host] = std::make_shared<Daemon>(*this, host);
  daemons[host]->start();
}

void Cluster::crash_plugin(HostIndex host) {
  if (plugins[host]) plugins[host]->die();
}

void Cluster::crash_daemon(HostIndex host, Duration down) {
  if (!daemons[host]->is_alive()) return;
  daemons[host]->die();
  world.after(down, [this, host] {
    if (machines[host]->is_powered()) start_host(host);
  });
}

void Cluster::lose_power(HostIndex host, Duration down) {
  Machine& machine = *machines[host];
  if (!machine.is_powered()) return;
  if (host < options.hosts && machine.state.primary == machine.name && !machine.state.clean) {
    lost_power_serving_[host] = true;
  }
  crash_plugin(host);
  daemons[host]->die();
  network.host_lost(host);
  machine.lose_power();
  world.after(down, [this, host] { start_host(host); });
}

void Cluster::disturb() {
  const Duration wait = world.random.delay(2 * options.fault_interval);
  world.after(wait, [this] {
    if (healing_ || faults_drawn_ >= options.faults_max) return;
    const unsigned number = faults_drawn_++;
    disturb();
    if (options.skipped_faults.contains(number)) return;
    // Each has chances of its own: leaving one out does not change the others.
    Random random(options.seed * 0x2545f4914f6cdd1dU + number);
    if (random.chance(options.operator_percent)) return operate(random);
    const unsigned sum =
        std::accumulate(options.fault_weights.begin(), options.fault_weights.end(), 0U);
    auto draw = random.below(sum);
    std::size_t kind = 0;
    while (draw >= options.fault_weights[kind])
      draw -= options.fault_weights[kind++];
    inject(static_cast<Fault>(kind), random);
  });
}

void Cluster::inject(Fault fault, Random& random) {
  HostIndex host = draw_host(random);
  const HostIndex other = (host + 1 + random.below(machines.size() - 1)) % machines.size();
  const Duration length = std::chrono::milliseconds(5) + random.delay(3 * options.ack_timeout);
  const auto primary = primary_host();
  if (fault == Fault::plugin_crash) {
    if (!primary) return;
    host = *primary;
  }
  if (fault == Fault::disk_swap && !may_swap_disk(host)) return;
  world.note("fault: {} at {} (other {}) for {} ms",
             fault_name(fault),
             machines[host]->name,
             machines[other]->name,
             std::chrono::duration_cast<std::chrono::milliseconds>(length).count());
  ++faults_injected_;
  ++world.faults[fault_name(fault)];
  Machine& machine = *machines[host];
  switch (fault) {
    case Fault::plugin_crash:
      return crash_plugin(host);
    case Fault::daemon_crash:
      return crash_daemon(host, length);
    case Fault::power_loss:
      return lose_power(host, length);
    case Fault::pause:
      return machine.pause(length);
    case Fault::link_reset:
      return network.reset_links(host, other);
    case Fault::one_way:
      return network.block(host, other, length);
    case Fault::partition:
      for (HostIndex each = 0; each < machines.size(); ++each) {
        if (each == host) continue;
        network.block(host, each, length);
        network.block(each, host, length);
      }
      return;
    case Fault::slow_link:
      return network.slow(host, other, length);
    case Fault::disk_error:
      return machine.disturb_disk(length);
    case Fault::disk_full:
      return machine.fill_disk(length);
    case Fault::slow_disk:
      return machine.slow_disk(length);
    case Fault::clock_jump:
      return machine.jump_clock(random.chance(50) ? length : -length);
    case Fault::disk_swap:
      lose_power(host, length);
      return machine.swap_disk();
  }
}

/// A replica's only, and not while the role may come to it: of a primary that has lost its disk nothing is promised but
/// what others hold, and people decide.
bool Cluster::may_swap_disk(HostIndex host) const {
  const Machine& machine = *machines[host];
  if (host >= options.hosts || !machine.has_backup() || machine.state.primary == machine.name ||
      chosen_.primary == machine.name)
    return false;
  // Nobody recognises what has not been looked at since it was readmitted.
  const auto is_known = [](const DiskState& disk) { return !disk.mark.identity.empty(); };
  if (!std::ranges::all_of(machine.state.disks, is_known)) return false;
  // It may be chosen yet by what a voter has accepted, or has promised it to accept.
  return std::ranges::none_of(daemons, [&](const auto& daemon) {
    const VoterState& vote = daemon->state().vote;
    const bool is_proposing = vote.promised != vote.accepted && vote.promised.host == machine.name;
    const bool is_named = vote.record && vote.record->primary == machine.name;
    return daemon->is_busy() || daemon->state().transfer || is_proposing || is_named;
  });
}

/// What the target of a switchover says often does not arrive: the voters then settle it.
void Cluster::offered(HostIndex from, HostIndex to) {
  const bool cuts = options.fault_weights[static_cast<std::size_t>(Fault::one_way)] > 0;
  if (!cuts || healing_ || !world.random.chance(15)) return;
  world.after(world.random.delay(std::chrono::milliseconds(30)), [this, from, to] {
    if (healing_) return;
    world.note("fault: no word from {} to {}", machines[to]->name, machines[from]->name);
    network.block(to, from, std::chrono::seconds(30));
  });
}

/// What is cut off in the middle is gone on with, while the guest has gone on as well.
void Cluster::copy_begins(HostIndex from, HostIndex to) {
  if (options.copy_cut_percent == 0 || healing_) return;
  if (!world.random.chance(options.copy_cut_percent)) return;
  const Duration longest = copy_cut_steps * (options.io_max + options.latency_max);
  world.after(world.random.delay(longest), [this, from, to] {
    if (healing_) return;
    world.note("fault: a copy from {} to {} is cut off", machines[from]->name, machines[to]->name);
    network.reset_links(from, to);
  });
}

void Cluster::operate(Random& random) {
  const HostIndex host = random.below(options.hosts);
  const auto draw = random.below(17);
  if (draw == 16) return cut_power_behind_stop(random);
  if (draw >= 14) {
    // A second controller, which knows nothing of the first; what it saw before it acts may be over.
    const HostIndex other = random.below(options.hosts);
    world.reached("two controllers at once");
    world.after(random.delay(std::chrono::milliseconds(20)), [this, other] { fail_over(other); });
    if (random.chance(50)) return fail_over(host);
    return switch_over(host);
  }
  if (draw >= 12) return fail_over(host);
  if (draw >= 10) return fail_over_by_plan(random);
  const auto primary = primary_host();
  if (!primary) return;
  const auto& plugin = plugins[*primary];
  if (draw < 4) {
    switch_over(host);
  } else if (draw < 6) {
    switch_over_by_plan(random);
  } else if (draw < 8) {
    world.note("operator: resync {}", machines[host]->name);
    plugin->request_copy(host);
  } else if (draw < 9) {
    if (daemons[*primary]->is_busy()) return;
    world.note("operator: clean stop");
    plugin->stop();
  } else {
    const Mode mode = static_cast<Mode>(random.below(3));
    world.note("operator: mode {}", mode_name(mode));
    plugin->set_mode(mode, options.congestion);
  }
}

void Cluster::fail_over(HostIndex host) {
  world.note("operator: failover to {}", machines[host]->name);
  ++world.counts["failovers asked for"];
  if (daemons[host]->is_alive()) daemons[host]->failover();
}

void Cluster::switch_over(HostIndex host) {
  const auto primary = primary_host();
  if (!primary) return;
  world.note("operator: switchover to {}", machines[host]->name);
  ++world.counts["switchovers asked for"];
  if (host != *primary && daemons[*primary]->is_alive()) daemons[*primary]->switchover(host);
}

/// The volume is at rest, every replica loses power, and one of them is to take over.
void Cluster::cut_power_behind_stop(Random& random) {
  const auto primary = primary_host();
  if (!primary || daemons[*primary]->is_busy()) return;
  world.note("operator: clean stop, then the replicas' power fails");
  plugins[*primary]->stop();
  cut_power_when_stopped(*primary, random.below(options.hosts), 100);
}

void Cluster::cut_power_when_stopped(HostIndex stopped, HostIndex chosen, unsigned looks) {
  constexpr Duration look_interval = std::chrono::milliseconds(20);
  if (looks == 0 || healing_) return;
  if (plugins[stopped]) {
    world.after(look_interval, [this, stopped, chosen, looks] {
      cut_power_when_stopped(stopped, chosen, looks - 1);
    });
    return;
  }
  left_alone_until_ = world.now() + 10 * look_interval;
  for (HostIndex host = 0; host < options.hosts; ++host) {
    if (host != stopped) lose_power(host, look_interval);
  }
  for (int attempt = 2; attempt <= 8; attempt += 2) {
    world.after(attempt * look_interval, [this, chosen] {
      if (daemons[chosen]->is_alive()) daemons[chosen]->failover();
    });
  }
}

void Cluster::tend() {
  for (HostIndex host = 0; host < machines.size(); ++host) {
    check_lacks(host);
    machines[host]->back_up();
    tend_host(host);
  }
  world.after(tend_interval, [this] { tend(); });
}

void Cluster::tend_host(HostIndex host) {
  if (healing_ && !daemons[host]->is_alive()) start_host(host);
  if (!daemons[host]->is_alive() || host >= options.hosts) return;
  if (daemons[host]->refuses_images() && (healing_ || world.random.chance(20)))
    daemons[host]->readmit();
  const auto& plugin = plugins[host];
  if (plugin && plugin->is_serving()) {
    // A volume that has failed is started anew by its operator.
    if (plugin->core().failure() && world.random.chance(20)) return plugin->die();
    if (!healing_) return;
    for (HostIndex other = 0; other < options.hosts; ++other)
      plugin->request_copy(other);
    return;
  }
  if (!healing_ && world.now() < left_alone_until_) return;
  if (!daemons[host]->can_activate() || (!healing_ && world.random.chance(50))) return;
  plugins[host] = std::make_shared<Plugin>(*this, host);
  plugins[host]->start();
}

}  // namespace replicad::sim
