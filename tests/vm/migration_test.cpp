// Guests that are migrated while they run (docs/decisions/0011). Hosts are replicad processes on loopback, each with a
// QEMU of its own.
#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <thread>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/inotify.h>

#include "tests/vm/guest_volume.h"
#include "tests/vm/qmp.h"
#include "tests/vm/slow_disk.h"

namespace replicad::vm {
namespace {

namespace fs = std::filesystem;

/// The longest time in which nothing was written to some files, by the files' own times: a watcher that comes late
/// finds it too long, never too short.
class Silence {
 public:
  Silence() : inotify_(::inotify_init1(IN_CLOEXEC)) {
    if (!inotify_.valid()) throw HarnessError("inotify_init1");
    thread_ = std::thread([this] { watch(); });
  }
  Silence(const Silence&) = delete;
  Silence& operator=(const Silence&) = delete;
  ~Silence() {
    ended_ = true;
    thread_.join();
  }

  void add(const std::string& path) {
    const std::lock_guard lock(mutex_);
    if (::inotify_add_watch(inotify_.get(), path.c_str(), IN_MODIFY) < 0)
      throw HarnessError("inotify_add_watch " + path);
    paths_.push_back(path);
  }
  /// Since this was called last.
  Millis take_longest() {
    const std::lock_guard lock(mutex_);
    return std::chrono::duration_cast<Millis>(std::exchange(longest_, {}));
  }

 private:
  void watch() {
    constexpr int look_at_end_ms = 50;
    while (!ended_) {
      pollfd ready{inotify_.get(), POLLIN, 0};
      if (::poll(&ready, 1, look_at_end_ms) <= 0) continue;
      std::array<char, 4096> events{};
      if (::read(inotify_.get(), events.data(), events.size()) <= 0) return;
      note_times();
    }
  }
  void note_times() {
    const std::lock_guard lock(mutex_);
    fs::file_time_type latest = last_;
    for (const std::string& path : paths_) {
      std::error_code ignored;
      latest = std::max(latest, fs::last_write_time(path, ignored));
    }
    if (last_ != fs::file_time_type::min()) longest_ = std::max(longest_, latest - last_);
    last_ = latest;
  }

  Fd inotify_;
  std::atomic<bool> ended_{false};
  std::mutex mutex_;
  std::vector<std::string> paths_;
  fs::file_time_type last_ = fs::file_time_type::min();
  fs::file_time_type::duration longest_{};
  std::thread thread_;
};

/// One QEMU process, and what it is asked.
struct Machine {
  std::unique_ptr<Guest> guest;
  std::unique_ptr<Qmp> qmp;
};

/// The guest of vm1, and the hosts that it moves between.
class MovingGuest {
 public:
  /// Booted on a.
  explicit MovingGuest(Cluster& cluster) : cluster_(cluster), here_(launch("a", false)) {
    guest().wait_boot();
  }

  Guest& guest() { return *here_.guest; }
  Qmp& qmp() { return *here_.qmp; }
  Silence& silence() { return silence_; }

  /// vm1 is prepared for `host`, and a QEMU waits there.
  void prepare(const std::string& host) {
    cluster_.wait_streaming();
    cluster_.ctl_ok({"handover", "vm1", "--to", host});
    there_ = launch(host, true);
  }
  void begin() { begin_migration(qmp(), "unix:" + incoming_path()); }
  /// It runs where it was prepared for. The QEMU it came from is still there.
  MigrationTimes wait_moved() {
    wait_migration(qmp(), "completed");
    std::swap(here_, there_);
    return migration_times(*there_.qmp);
  }
  /// Bytes per second.
  void set_bandwidth(std::uint64_t bytes) {
    qmp().ask("migrate-set-parameters", {{"max-bandwidth", bytes}});
  }
  /// Whether a migration waits in the state "pre-switchover", the guest being stopped.
  void stop_before_switchover(bool on) {
    const json capability = {{"capability", "pause-before-switchover"}, {"state", on}};
    qmp().ask("migrate-set-capabilities", {{"capabilities", json::array({capability})}});
  }
  /// What the QEMU that it runs in has written to its disks.
  std::uint64_t writes_sent() {
    std::uint64_t writes = 0;
    for (const json& disk : qmp().ask("query-blockstats"))
      writes += disk.at("stats").at("wr_operations").get<std::uint64_t>();
    return writes;
  }
  /// Kills the QEMU that it does not run in.
  void end_other() {
    if (!there_.guest) return;
    if (there_.guest->running()) there_.guest->kill9();
    there_ = {};
  }
  /// One move as the guides say it.
  MigrationTimes move(const std::string& host) {
    prepare(host);
    begin();
    const MigrationTimes times = wait_moved();
    there_.qmp->ask("quit");
    there_.guest->wait_off();
    there_ = {};
    cluster_.ctl_ok({"handover", "vm1", "--finish"}, patience);
    return times;
  }

 private:
  [[nodiscard]] std::string directory() const {
    return fmt::format("{}/vm-{}", cluster_.directory(), started_);
  }
  [[nodiscard]] std::string incoming_path() const { return directory() + "/incoming"; }

  Machine launch(const std::string& host, bool incoming) {
    ++started_;
    std::vector<std::string> arguments = disk_arguments(cluster_, host);
    const std::string qmp_path = directory() + "/qmp";
    arguments.insert(arguments.end(), {"-qmp", "unix:" + qmp_path + ",server=on,wait=off"});
    if (incoming) arguments.insert(arguments.end(), {"-incoming", "unix:" + incoming_path()});
    auto started = std::make_unique<Guest>(directory(), arguments);
    silence_.add(started->output_path());
    return {std::move(started), std::make_unique<Qmp>(qmp_path)};
  }

  Cluster& cluster_;
  Silence silence_;
  unsigned started_ = 0;
  Machine here_;
  Machine there_;
};

/// At the one memory takes minutes to copy, at the other none.
constexpr std::uint64_t slow_bandwidth = 100'000;
constexpr std::uint64_t full_bandwidth = 1 << 30;

const std::string churn = "records churn /data/churn 256";

void go_on(MovingGuest& moving, unsigned long rounds = 20) {
  moving.guest().wait_acked(moving.guest().acked() + rounds);
}

/// The guest has verified every record and its kernel no error to tell of; then all images are equal.
void finish(Cluster& cluster, MovingGuest& moving) {
  Guest& guest = moving.guest();
  guest.end_job("TERM");
  CHECK(guest.last_said("verified ") == 256);
  CHECK(guest.disk_errors().empty());
  guest.shutdown();
  cluster.wait_streaming();
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

std::string summary(std::vector<long> values) {
  std::ranges::sort(values);
  return fmt::format(
      "{} to {}, median {}", values.front(), values.back(), values[values.size() / 2]);
}

TEST_CASE(
    "vm: migrated from host to host 10 times in each mode, it writes and verifies all the time") {
  Cluster cluster(3, scenario_limit);
  install(cluster, {"a", "b", "c"});
  MovingGuest moving(cluster);
  moving.guest().start(churn);
  go_on(moving);
  unsigned moves = 0;
  for (const std::string mode : {"async", "semi-sync", "sync"}) {
    cluster.ctl_ok({"set", "vm1", "mode=" + mode});
    std::vector<long> pauses;
    std::vector<long> requests;
    std::vector<long> downtimes;
    for (int round = 0; round < 10; ++round) {
      CAPTURE(mode);
      CAPTURE(round);
      const std::string to(1, "abc"[++moves % 3]);
      moving.guest().longest_request();
      moving.silence().take_longest();
      downtimes.push_back(moving.move(to).down.count());
      go_on(moving);
      pauses.push_back(moving.silence().take_longest().count());
      requests.push_back(moving.guest().longest_request().count());
      CHECK(cluster.serving_host() == to);
      CHECK(cluster.volume(to).at("settings").at("mode") == mode);
      CHECK_FALSE(e2e::contains(moving.guest().console(), "records: "));
    }
    MESSAGE(mode,
            ": pause of the guest ",
            summary(pauses),
            " ms, of that neither VM running ",
            summary(downtimes),
            " ms, longest request ",
            summary(requests),
            " ms");
  }
  finish(cluster, moving);
}

TEST_CASE("vm: a migration that is cancelled leaves it where it is, and another one moves it") {
  Cluster cluster(2, scenario_limit);
  install(cluster, {"a", "b"});
  MovingGuest moving(cluster);
  moving.guest().start(churn);
  go_on(moving);
  // While memory is copied, and when the guest is stopped already.
  for (const std::string state : {"active", "pre-switchover"}) {
    CAPTURE(state);
    moving.prepare("b");
    moving.stop_before_switchover(state == "pre-switchover");
    moving.set_bandwidth(state == "active" ? slow_bandwidth : full_bandwidth);
    moving.begin();
    wait_migration(moving.qmp(), state);
    if (state == "active") go_on(moving);
    moving.qmp().ask("migrate_cancel");
    wait_migration(moving.qmp(), "cancelled");
    moving.end_other();
    go_on(moving);
    cluster.ctl_ok({"handover", "vm1", "--end"});
    go_on(moving);
    CHECK(cluster.serving_host() == "a");
  }
  moving.stop_before_switchover(false);
  moving.move("b");
  go_on(moving);
  CHECK(cluster.serving_host() == "b");
  finish(cluster, moving);
}

TEST_CASE(
    "vm: the host that it is migrated to is killed, it goes on where it is, and moves later") {
  Cluster cluster(3, scenario_limit);
  install(cluster, {"a", "b", "c"}, {"--set=ack-timeout=1s"});
  MovingGuest moving(cluster);
  moving.guest().start(churn);
  go_on(moving);
  // While memory is copied, and when the guest is stopped already.
  for (const std::string state : {"active", "pre-switchover"}) {
    CAPTURE(state);
    moving.prepare("b");
    moving.stop_before_switchover(state == "pre-switchover");
    moving.set_bandwidth(state == "active" ? slow_bandwidth : full_bandwidth);
    moving.guest().longest_request();
    moving.begin();
    wait_migration(moving.qmp(), state);
    cluster.host("b").kill9();  // its standby ends with it
    moving.end_other();
    if (state == "pre-switchover")
      moving.qmp().ask("migrate-continue", {{"state", "pre-switchover"}});
    wait_migration(moving.qmp(), "failed");
    go_on(moving);
    CHECK(cluster.serving_host() == "a");
    wait_until("the handover has ended", patience, [&] {
      return cluster.volume("a").at("handover").is_null();
    });
    MESSAGE("killed when the migration was ",
            state,
            ": longest request of the guest ",
            moving.guest().longest_request().count(),
            " ms");
    cluster.host("b").start();
  }
  moving.stop_before_switchover(false);
  moving.move("b");
  go_on(moving);
  CHECK(cluster.serving_host() == "b");
  finish(cluster, moving);
}

TEST_CASE("vm: migrated to a host that applies late, it first reads what it wrote last") {
  constexpr std::uint64_t data_bytes = 8 << 20;
  constexpr unsigned records = 256;
  Cluster cluster(1, scenario_limit);
  SlowDisk slow(cluster.directory() + "/slow", 512 << 20, Millis(50));
  cluster.add_host({.name = "b",
                    .directory = cluster.directory() + "/b",
                    .image_directory = slow.path() + "/images",
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {}});
  install(cluster, {"a", "b"}, {}, {data_bytes});
  MovingGuest moving(cluster);
  // From here on nothing but the program below uses a disk.
  moving.guest().run("sync; mount -o remount,ro /");
  moving.prepare("b");
  slow.write_through(true);
  moving.guest().start(fmt::format("records last /dev/vdb {}", records));
  moving.guest().wait_said("written");
  moving.begin();
  moving.wait_moved();
  const auto position = [&](const std::string& mark) {
    return cluster.volume("b").at("replica").at(mark).get<std::uint64_t>();
  };
  const std::uint64_t lag = position("logged") - position("applied");
  CHECK(lag > 0);
  moving.guest().end_job("USR1");
  CHECK(moving.guest().last_said("read ") >= 0);
  MESSAGE(lag,
          " frames were not applied yet when the guest ran, its read of the last one took ",
          moving.guest().last_said("read "),
          " ms");
  CHECK(cluster.serving_host() == "a");
  CHECK(moving.writes_sent() == 0);
  slow.write_through(false);
  moving.end_other();
  moving.guest().run("mount -o remount,rw / && echo moved >/data/moved && sync");
  CHECK(cluster.serving_host() == "b");
  cluster.ctl_ok({"handover", "vm1", "--end"});
  CHECK(moving.guest().disk_errors().empty());
  moving.guest().shutdown();
  cluster.stop_and_compare();
  check_file_systems(cluster);
}

}  // namespace
}  // namespace replicad::vm
