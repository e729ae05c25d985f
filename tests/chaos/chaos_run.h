#pragma once
// One run of chaos: hosts, a volume, a guest that writes all the time, faults drawn from a seed, an
// operator who does what docs/operations.md tells him to, and the checks at the end.

#include <chrono>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/chaos/small_world.h"
#include "tests/e2e/load.h"

namespace replicad::e2e {

struct ChaosOptions {
  std::uint64_t seed = 0;
  std::chrono::seconds length{60};
  std::string mode = "sync";
};

class ChaosRun {
 public:
  explicit ChaosRun(const ChaosOptions& options);

  /// Throws HarnessError with what is violated.
  void run();
  /// "12 kills of replicad, 3 failovers, ..."
  [[nodiscard]] std::string counts() const;

 private:
  using Clock = std::chrono::steady_clock;

  /// A fault that ends by itself.
  struct Ending {
    Clock::time_point at;
    std::function<void()> undo;
  };

  void start_hosts();
  void create_volume();
  void rage();
  void recover();
  void check_at_rest();
  void check_each_promoted();

  // Faults (chaos_faults.cpp).
  void inject();
  void kill_daemon(const std::string& host);
  void kill_export();
  void kill_host(const std::string& host);
  void pause_daemon(const std::string& host);
  void pause_export();
  void isolate(const std::string& host);
  void cut(const std::string& from, const std::string& to);
  void fill_disk(const std::string& host);
  void end_faults(bool all);
  void until(Millis from, Millis to, std::function<void()> undo);
  void start_daemon(const std::string& host);
  [[nodiscard]] pid_t export_of(const std::string& host);

  // The operator.
  void operate();
  void switch_over();
  void fail_over();
  void follow_guest();
  void remove_lost_writes();

  std::uint64_t draw(std::uint64_t below) { return random_() % below; }
  std::string any_host();
  std::string any_copy();
  void note(const std::string& what) { ++counts_[what]; }
  void say(const std::string& text);

  ChaosOptions options_;
  std::mt19937_64 random_;
  std::vector<std::string> hosts_;
  std::vector<std::string> copies_;
  // Taken down from below: the guest, the processes, where they lived, the folder.
  TempDir dir_;
  SmallWorld world_;
  Cluster cluster_;
  std::unique_ptr<Load> load_;
  Clock::time_point began_ = Clock::now();
  std::vector<Ending> endings_;
  std::set<std::string> down_;     ///< hosts without a daemon, to be started at an ending
  std::set<std::string> stopped_;  ///< hosts whose daemon stands still
  Clock::time_point served_at_ = Clock::now();
  Clock::time_point tidied_at_ = Clock::now();
  std::map<std::string, unsigned> counts_;
};

}  // namespace replicad::e2e
