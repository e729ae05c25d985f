#pragma once
// One simulated world: hosts with their programs, the guest, the faults, the operator, and the checks over all of them.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/daemon.h"
#include "tests/sim/guest.h"
#include "tests/sim/network.h"
#include "tests/sim/oracle.h"
#include "tests/sim/plugin.h"

namespace replicad::sim {

class Cluster {
 public:
  Cluster(const Options& drawn, bool traced);

  /// The whole run: faults, then healing until all are equal. Throws Violation.
  void run();

  const Options options;
  World world;
  std::vector<std::unique_ptr<Machine>> machines;
  Network network;
  Histories histories;
  GuestHistory guest_history;
  Guest guest;
  std::vector<std::shared_ptr<Daemon>> daemons;
  std::vector<std::shared_ptr<Plugin>> plugins;  ///< living ones; nullptr where there is none

  // What the programs tell.
  void plugin_serves(HostIndex host);
  void plugin_died(HostIndex host);
  void claimed(HostIndex host, bool was_clean);
  void state_written(HostIndex host);
  /// A former primary's images are a history of their own.
  void gave_up(HostIndex host, const HistoryPoint& point);
  void offered(HostIndex from, HostIndex to);
  void copy_begins(HostIndex from, HostIndex to);
  /// P1, P3: a change is about to be answered. False: the answer counts for nothing (of an async primary that does
  /// not know that its term is over).
  [[nodiscard]] bool check_answer(const Plugin& plugin,
                                  const GuestOp& op,
                                  const FrameHeader& header,
                                  Mode mode);
  /// A hold is reached: images, histories and digests must agree.
  void check_held(const Plugin& plugin, const HistoryPoint& point);

  [[nodiscard]] unsigned faults_injected() const { return faults_injected_; }
  [[nodiscard]] bool is_healing() const { return healing_; }

 private:
  void chosen(const Record& record);
  void let_old_primary_go_on();
  void start_host(HostIndex host);
  void disturb();
  void inject(Fault fault, Random& random);
  [[nodiscard]] bool may_swap_disk(HostIndex host) const;
  void operate(Random& random);
  void fail_over(HostIndex host);
  void switch_over(HostIndex host);
  [[nodiscard]] VolumeView view_of(HostIndex host) const;
  [[nodiscard]] std::vector<MemberReport> ask_hosts() const;
  void fail_over_by_plan(Random& random);
  void switch_over_by_plan(Random& random);
  void cut_power_behind_stop(Random& random);
  void cut_power_when_stopped(HostIndex stopped, HostIndex chosen, unsigned looks);
  void crash_plugin(HostIndex host);
  void crash_daemon(HostIndex host, Duration down);
  void lose_power(HostIndex host, Duration down);
  void tend();
  void tend_host(HostIndex host);
  void heal();
  [[nodiscard]] bool has_converged();
  void check_equal();
  void check_lacks(HostIndex host);
  void check_lack(const Plugin& plugin, const Images& images, PeerIndex peer);
  [[nodiscard]] std::string describe() const;
  [[nodiscard]] HostIndex draw_host(Random& random) const { return random.below(machines.size()); }
  [[nodiscard]] std::optional<HostIndex> primary_host() const;

  unsigned faults_drawn_ = 0;
  unsigned faults_injected_ = 0;
  bool healing_ = false;
  Instant left_alone_until_;  ///< nobody activates a stopped volume before
  struct Ballots {
    Record record;
    std::vector<std::string> hosts;  ///< that have accepted it, durably
  };
  std::map<Ballot, Ballots> ballots_;
  Record chosen_;                         ///< the latest record that a majority has accepted
  Instant term_began_;                    ///< when its epoch was chosen
  bool answered_async_ = false;           ///< something was answered that a replica need not have
  std::vector<bool> lost_power_serving_;  ///< as primary, and not claimed since
  std::map<std::uint64_t, const Plugin*> acknowledgers_;  ///< by epoch number
};

}  // namespace replicad::sim
