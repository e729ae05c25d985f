#include "tests/sim/cluster.h"

#include <algorithm>

namespace replicad::sim {

namespace {

constexpr Duration faults_longest = std::chrono::seconds(90);
constexpr Duration heal_longest = std::chrono::seconds(180);
constexpr unsigned faults_least = 3;

std::string join(const std::vector<std::string>& hosts) {
  return fmt::format("{}", fmt::join(hosts, ","));
}

std::vector<std::unique_ptr<Machine>> make_machines(World& world, const Options& options) {
  std::vector<std::unique_ptr<Machine>> machines;
  for (HostIndex host = 0; host < options.hosts + options.witnesses; ++host)
    machines.push_back(std::make_unique<Machine>(world, options, host));
  return machines;
}

/// As `replicactl create` leaves it: equal, empty images, all in sync, host a the primary.
VolumeState created(const Options& options) {
  VolumeState state;
  state.name = "v";
  state.uuid = volume_uuid;
  state.primary = host_name(0);
  state.epoch = {1, 1};
  for (HostIndex host = 0; host < options.hosts; ++host) {
    state.in_sync.push_back(host_name(host));
    state.members.push_back({host_name(host), "stream", "control", false});
  }
  for (HostIndex host = options.hosts; host < options.hosts + options.witnesses; ++host)
    state.members.push_back({host_name(host), {}, "control", true});
  state.vote = founding_state(first_record(state.primary, state.in_sync, state.members));
  state.epoch = state.vote.record->epoch;
  state.settings.mode = options.mode;
  return state;
}

}  // namespace

Cluster::Cluster(const Options& drawn, bool traced)
    : options(drawn),
      world(drawn.seed, traced),
      machines(make_machines(world, options)),
      network(world, options, machines),
      histories(world, options.disks, options.blocks),
      guest_history(world, options.disks, options.blocks),
      guest(*this, world, options, guest_history),
      plugins(machines.size()),
      chosen_(*created(options).vote.record),
      lost_power_serving_(options.hosts) {
  for (const auto& machine : machines) {
    machine->state = created(options);
    for (std::size_t disk = 0; disk < machine->images.size(); ++disk) {
      DiskState& made = machine->state.disks.emplace_back();
      made.name = fmt::format("disk{}", disk);
      made.bytes = options.blocks * block_bytes;
      made.mark.identity = machine->image_identity();
    }
  }
  for (HostIndex host = 0; host < machines.size(); ++host)
    daemons.push_back(std::make_shared<Daemon>(*this, host));
}

void Cluster::run() {
  world.note("{}", options.describe());
  for (const auto& daemon : daemons)
    daemon->start();
  guest.start();
  tend();
  disturb();
  const auto goes_on = [this] {
    const bool enough = faults_injected_ >= faults_least && guest.has_written_all();
    return faults_drawn_ < options.faults_max && !enough && world.elapsed() < faults_longest;
  };
  while (goes_on())
    world.step();
  heal();
  const Instant until = world.now() + heal_longest;
  while (!has_converged()) {
    world.step();
    if (world.now() > until) world.violate("P6 stuck: " + describe());
  }
  check_equal();
}

std::optional<HostIndex> Cluster::primary_host() const {
  for (HostIndex host = 0; host < options.hosts; ++host) {
    if (plugins[host] && plugins[host]->is_serving()) return host;
  }
  return std::nullopt;
}

// --- what the programs tell

void Cluster::plugin_serves(HostIndex host) {
  // Whoever had another host take over meanwhile has the guest use that.
  if (plugins[host]->core().epoch().number < chosen_.epoch.number) return;
  guest.connect(plugins[host]);
  check_lacks(host);
}

void Cluster::plugin_died(HostIndex host) {
  const auto plugin = std::exchange(plugins[host], nullptr);
  guest.disconnect(plugin.get());
  if (daemons[host]->is_alive()) daemons[host]->plugin_died();
  // What still refers to it runs out in this instant.
  world.after(Duration{}, [plugin] {});
}

void Cluster::state_written(HostIndex host) {
  const VoterState& vote = machines[host]->state.vote;
  if (vote.accepted.round <= 1) return;
  Ballots& votes = ballots_[vote.accepted];
  if (votes.hosts.empty()) votes.record = *vote.record;
  world.require(votes.record == *vote.record, "P3 register: two records for one ballot");
  if (contains_host(votes.hosts, machines[host]->name)) return;
  votes.hosts.push_back(machines[host]->name);
  if (has_quorum(votes.record, votes.hosts, false)) chosen(votes.record);
}

/// A majority has accepted it: from here on it counts, whoever knows of it.
void Cluster::chosen(const Record& record) {
  if (record.version < chosen_.version || record == chosen_) return;
  world.note("chosen: {}, in sync {}", replicad::describe(record), join(record.in_sync));
  world.require(record.version == chosen_.version + 1,
                "P3 register: version {} is chosen behind version {}",
                record.version,
                chosen_.version);
  world.require(record.epoch.number > chosen_.epoch.number ||
                    (record.epoch == chosen_.epoch && record.primary == chosen_.primary),
                "P3 register: epoch {} of {} is chosen behind epoch {} of {}",
                record.epoch.number,
                record.primary,
                chosen_.epoch.number,
                chosen_.primary);
  // What an async primary answered beyond its replicas is lost by right in a failover.
  const bool failed_over = record.primary != chosen_.primary && record.in_sync.size() == 1;
  if (failed_over) world.reached("failover chosen");
  if (failed_over && answered_async_) guest_history.lose_all();
  if (record.epoch != chosen_.epoch) term_began_ = world.now();
  chosen_ = record;
  if (failed_over && options.mode == Mode::async) let_old_primary_go_on();
}

/// The new export takes its time, often, and the guest still uses the old one.
void Cluster::let_old_primary_go_on() {
  if (healing_ || !primary_host() || !world.random.chance(50)) return;
  left_alone_until_ = std::max(left_alone_until_, world.now() + 2 * options.ack_timeout);
}

void Cluster::gave_up(HostIndex host, const HistoryPoint& point) {
  Images images;
  for (const Image& image : machines[host]->images)
    images.push_back(image.blocks());
  histories.begin(point, images);
  lost_power_serving_[host] = false;
}

void Cluster::claimed(HostIndex host, bool was_clean) {
  Machine& machine = *machines[host];
  Images images;
  for (const Image& image : machine.images)
    images.push_back(image.blocks());
  if (was_clean) {
    world.require(images == histories.at(machine.state.history),
                  "P2 clean: the images of {} are not the history up to {}",
                  machine.name,
                  machine.state.history.sequence);
  } else {
    world.reached("unclean claim");
    if (lost_power_serving_[host]) guest_history.lose_unflushed();
    histories.begin(machine.state.history, images);
  }
  lost_power_serving_[host] = false;
  if (machine.state.vote.record->epoch.number < chosen_.epoch.number) {
    world.reached("claim granted after the end of its term");
    return;
  }
  guest_history.check_images(images, "P4 claim");
}

bool Cluster::check_answer(const Plugin& plugin,
                           const GuestOp& op,
                           const FrameHeader& header,
                           Mode mode) {
  const Machine& primary = *machines[plugin.host()];
  const std::uint64_t epoch = plugin.core().epoch().number;
  const Plugin*& acknowledger = acknowledgers_[epoch];
  if (acknowledger == nullptr) acknowledger = &plugin;
  world.require(acknowledger == &plugin, "P3: two programs answer in epoch {}", epoch);
  if (mode == Mode::async) {
    answered_async_ = true;
    if (epoch >= chosen_.epoch.number) return true;
    // Whoever it asked after that is in the majority that knows of the later term, or is not enough. Its own vote it
    // takes for granted while its replicad is away.
    const bool told = plugin.is_joined_since(term_began_) &&
                      !primary.has_jumped_since(term_began_ - options.ack_timeout);
    world.require(
        !told || world.now() - term_began_ <= options.ack_timeout + std::chrono::milliseconds(1),
        "P3 async: {} still answers in epoch {}, {} ms after epoch {} began",
        primary.name,
        epoch,
        std::chrono::duration_cast<std::chrono::milliseconds>(world.now() - term_began_).count(),
        chosen_.epoch.number);
    world.reached("async answer after the end of the term");
    return false;
  }
  // An answer that comes after the term has ended is for a write that the next primary has: it told this one before it
  // sealed its session.
  const bool lasts = op.kind == GuestOp::Kind::flush || op.fua;
  if (chosen_.epoch.number > epoch) world.reached("answer after the end of the term");
  for (const std::string& host : chosen_.in_sync) {
    if (host == primary.name) continue;
    const Watermarks told = machines[host_index(host)]->told_since(header.epoch.number);
    const Sequence has = mode == Mode::sync ? (lasts ? told.durable : told.logged)
                                            : (lasts ? told.logged : told.received);
    world.require(
        has >= header.sequence,
        "P1: {} answers sequence {} ({}{}), {} is recorded in sync and has only told of {}",
        primary.name,
        header.sequence,
        mode_name(mode),
        lasts ? ", flush" : "",
        host,
        has);
  }
  return true;
}

void Cluster::check_held(const Plugin& plugin, const HistoryPoint& point) {
  const Machine& primary = *machines[plugin.host()];
  const Images wanted = histories.at(point);
  for (std::size_t disk = 0; disk < wanted.size(); ++disk) {
    world.require(primary.images[disk].stable() == wanted[disk],
                  "P5 hold: the image of {} is not the history up to {}, or not durable",
                  primary.name,
                  point.sequence);
  }
  for (const std::string& host : chosen_.in_sync) {
    if (host == primary.name) continue;
    world.require(machines[host_index(host)]->told_since(0).durable >= point.sequence,
                  "P1 hold: reached at {}, {} does not have it durable",
                  point.sequence,
                  host);
  }
}

/// P7: where a member's image may differ from the primary's without a position that says so, the primary knows it.
void Cluster::check_lacks(HostIndex host) {
  const auto& plugin = plugins[host];
  if (!plugin || !plugin->is_serving()) return;
  const Images images = histories.at(plugin->core().history());
  for (PeerIndex peer = 0; peer < plugin->core().peer_count(); ++peer)
    check_lack(*plugin, images, peer);
}

void Cluster::check_lack(const Plugin& plugin, const Images& images, PeerIndex peer) {
  const Primary& primary = plugin.core();
  const Machine& member = *machines[host_index(primary.view(peer, world.now()).host)];
  const auto& replica = daemons[member.index]->replica();
  if (!replica) return;
  const AttachedMessage standing = replica->core().standing();
  const HistoryPoint& point = standing.logged;
  // Else its position says it: everything is compared.
  if (!primary.knows_lack(peer, standing)) return;
  const KnownLack known = primary.known_lack(peer, point.sequence);
  const Images wanted = standing.consistent ? histories.at(point) : Images{};
  ++world.counts["lacks checked"];
  for (DiskIndex disk = 0; disk < images.size(); ++disk) {
    const Blocks& has = wanted.empty() ? member.images[disk].blocks() : wanted[disk];
    for (std::size_t block = 0; block < has.size(); ++block) {
      if (has[block] == images[disk][block]) continue;
      const Range range{disk, block * block_bytes, block_bytes};
      if (known.dirty.overlaps_any(range) || known.suspect.overlaps_any(range)) continue;
      world.violate(fmt::format(
          "P7: block {} of disk {} differs between {} at {} and {} at {}, which does not know it",
          block,
          disk,
          member.name,
          point.sequence,
          machines[plugin.host()]->name,
          primary.history().sequence));
    }
  }
}

// --- convergence

void Cluster::heal() {
  world.note("the faults end");
  healing_ = true;
  network.heal();
  for (const auto& machine : machines)
    machine->heal();
}

bool Cluster::has_converged() {
  if (!guest.has_written_all()) return false;
  guest.finish();
  if (!guest.is_idle()) return false;
  const auto host = primary_host();
  if (!host) return false;
  const Primary& primary = plugins[*host]->core();
  if (primary.in_sync().size() != options.hosts || !primary.ring().all_sealed()) return false;
  if (chosen_.in_sync.size() != options.hosts) return false;
  for (HostIndex other = 0; other < options.hosts; ++other) {
    if (other == *host) continue;
    const auto& replica = daemons[other]->replica();
    if (!replica || replica->has_failed()) return false;
    if (replica->core().applied() != primary.history()) return false;
  }
  return true;
}

void Cluster::check_equal() {
  const HostIndex host = primary_host().value();
  const Images wanted = histories.at(plugins[host]->core().history());
  for (const auto& machine : machines) {
    for (std::size_t disk = 0; disk < machine->images.size(); ++disk) {
      world.require(machine->images[disk].blocks() == wanted[disk],
                    "P6 equal: disk {} of {} is not the history at the end",
                    disk,
                    machine->name);
    }
  }
  guest_history.check_images(wanted, "P4 end");
}

std::string Cluster::describe() const {
  std::string text = guest.describe();
  for (HostIndex host = 0; host < machines.size(); ++host) {
    const Machine& machine = *machines[host];
    text += fmt::format("\n  {}: primary {} epoch {} {}{}{}{}{}",
                        machine.name,
                        machine.state.primary,
                        machine.state.epoch.number,
                        machine.is_powered() ? "" : "no power ",
                        daemons[host]->is_alive() ? "" : "no replicad ",
                        machine.state.transfer ? "transfer " : "",
                        machine.state.consistent ? "" : "inconsistent ",
                        daemons[host]->is_busy() ? "busy " : "");
    text += daemons[host]->describe();
    if (const auto& replica = daemons[host]->replica()) {
      text += fmt::format("replica phase {} logged {} applied {}{}",
                          static_cast<int>(replica->core().phase()),
                          replica->core().logged().sequence,
                          replica->core().applied().sequence,
                          replica->has_failed() ? " failed" : "");
    }
    if (!plugins[host]) continue;
    text += " plugin";
    if (!plugins[host]->is_serving()) continue;
    const Primary& primary = plugins[host]->core();
    text += fmt::format(" at {}{} hold {}{}, in sync {} (recorded {})",
                        primary.history().sequence,
                        primary.ring().all_sealed() ? "" : " (unsealed)",
                        static_cast<int>(primary.hold_phase()),
                        primary.failure() ? " failed" : "",
                        fmt::join(primary.in_sync(), ","),
                        fmt::join(machine.state.in_sync, ","));
    for (PeerIndex peer = 0; peer < primary.peer_count(); ++peer) {
      const PeerView view = primary.view(peer, machine.clock());
      text += fmt::format("; {} {} durable {} ({})",
                          view.host,
                          peer_state_name(view.phase, view.caught_up, false),
                          view.marks.durable,
                          view.error ? view.error->message : "");
    }
  }
  return text;
}

}  // namespace replicad::sim
