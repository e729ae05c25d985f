#include "tests/sim/options.h"

#include <fmt/format.h>

#include "tests/sim/random.h"

namespace replicad::sim {

std::string_view fault_name(Fault fault) {
  switch (fault) {
    case Fault::plugin_crash:
      return "plugin crash";
    case Fault::daemon_crash:
      return "daemon crash";
    case Fault::power_loss:
      return "power loss";
    case Fault::pause:
      return "pause";
    case Fault::link_reset:
      return "link reset";
    case Fault::one_way:
      return "one-way partition";
    case Fault::partition:
      return "partition";
    case Fault::slow_link:
      return "slow link";
    case Fault::disk_error:
      return "disk error";
    case Fault::disk_full:
      return "disk full";
    case Fault::slow_disk:
      return "slow disk";
    case Fault::clock_jump:
      return "clock jump";
    case Fault::disk_swap:
      return "disk swapped for an old copy";
  }
  return "?";
}

Options Options::draw(std::uint64_t seed) {
  Random random(seed * 0x9e3779b97f4a7c15U + 1);
  Options options;
  options.seed = seed;
  // Most seeds have at least three data members, so that they count.
  options.hosts = static_cast<unsigned>(random.chance(8) ? 2 : random.between(3, 5));
  if (options.hosts > 3 && random.chance(50)) options.hosts = 3;
  options.witnesses = random.chance(options.hosts == 2 ? 70 : 20) ? 1 : 0;
  options.disks = static_cast<unsigned>(random.between(1, 2));
  options.blocks = 16U << random.below(4);
  const auto mode = random.below(100);
  options.mode = mode < 50 ? Mode::sync : mode < 75 ? Mode::semi_sync : Mode::async;
  options.congestion = random.chance(70) ? Congestion::throttle : Congestion::detach;
  options.ring_bytes = std::uint64_t{8192} << random.below(5);
  options.segment_bytes = std::uint64_t{12288} << random.below(3);
  options.log_segments = static_cast<unsigned>(random.between(2, 6));
  options.ack_timeout = std::chrono::milliseconds(200 + random.below(3000));
  options.writes = static_cast<unsigned>(random.between(200, 320));
  options.depth = static_cast<unsigned>(random.between(1, 12));
  options.write_blocks_max = 1U << random.below(4);
  options.think_max = std::chrono::microseconds(100 << random.below(9));
  options.io_max = std::chrono::microseconds(20 << random.below(8));
  options.latency_max = std::chrono::microseconds(50 << random.below(9));
  options.fault_interval = std::chrono::milliseconds(20 << random.below(6));
  options.faults_max = static_cast<unsigned>(random.between(8, 40));
  options.operator_percent = static_cast<unsigned>(random.below(60));
  options.garbage = random.chance(50);
  // Swarm: a run has some kinds of faults and not others.
  unsigned kinds = 0;
  for (std::size_t kind = 0; kind < fault_count; ++kind) {
    unsigned& weight = options.fault_weights[kind];
    weight = random.chance(45) ? static_cast<unsigned>(random.between(1, 10)) : 0;
    if (weight > 0) ++kinds;
  }
  if (kinds == 0) options.fault_weights[random.below(fault_count)] = 1;
  // Last, so that all else stays what it was for a seed.
  if (random.chance(25)) options.cleaned_percent = 50;
  options.guest_moves = random.chance(25);
  if (random.chance(25)) options.copy_cut_percent = 50;
  return options;
}

std::string Options::describe() const {
  std::string kinds;
  for (std::size_t i = 0; i < fault_count; ++i) {
    if (fault_weights[i] == 0) continue;
    kinds += fmt::format("{}{}", kinds.empty() ? "" : ", ", fault_name(static_cast<Fault>(i)));
  }
  std::string guest;
  if (cleaned_percent > 0) guest += fmt::format(", {} % cleaned", cleaned_percent);
  if (guest_moves) guest += ", the guest moves";
  if (copy_cut_percent > 0) guest += fmt::format(", {} % of copies cut off", copy_cut_percent);
  return fmt::format(
      "{} hosts, {} witnesses, {} disks of {} blocks, {}, {}, ring {} B, log {} x {} B, "
      "ack-timeout {} ms, {} "
      "writes, depth {}, at most {} faults of: {}{}",
      hosts,
      witnesses,
      disks,
      blocks,
      mode_name(mode),
      congestion_name(congestion),
      ring_bytes,
      log_segments,
      segment_bytes,
      std::chrono::duration_cast<std::chrono::milliseconds>(ack_timeout).count(),
      writes,
      depth,
      faults_max,
      kinds,
      guest);
}

}  // namespace replicad::sim
