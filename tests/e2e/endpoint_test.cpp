// The NBD socket outlives what serves on it: a client never finds it closed while the volume is to be served, whatever
// is killed or exchanged behind it. What a running guest sees of that is in tests/vm.
#include <fstream>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t disk_bytes = 16 << 20;
/// An export that has served for so long does not count as one that fails at once (replicad waits before it starts the
/// next of those).
constexpr Millis lives_at_least(3'200);

/// qemu-io as a guest's disk: connects once, rides over interruptions (reconnect-delay), and writes then reads what it
/// is told on its standard input.
class QemuIo {
 public:
  QemuIo(const Cluster& cluster, const std::string& uri_socket, const std::string& disk)
      : input_(cluster.directory() + "/qemu-io.in"), output_(cluster.directory() + "/qemu-io.out") {
    REQUIRE(::mkfifo(input_.c_str(), 0600) == 0);
    process_ = std::make_unique<Process>(
        std::vector<std::string>{
            "sh",
            "-c",
            fmt::format(
                "exec qemu-io --image-opts driver=nbd,server.type=unix,server.path={},export={},"
                "reconnect-delay=120,discard=unmap <{}",
                uri_socket,
                disk,
                input_)},
        output_,
        output_);
    commands_.open(input_);
  }

  /// Writes a block of its own, with FUA, and one command that shows when it is done.
  void write_next() {
    commands_ << fmt::format("write -f -P {} {} 4k\n", pattern(count_), offset(count_))
              << std::flush;
    ++count_;
  }
  [[nodiscard]] unsigned written() const { return occurrences("wrote 4096/4096"); }
  [[nodiscard]] unsigned count() const { return count_; }
  /// Every block again, then the end.
  void check_all() {
    // One by one: of lines that come together it runs the first alone until more come.
    for (unsigned i = 0; i < count_; ++i) {
      commands_ << fmt::format("read -P {} {} 4k\n", pattern(i), offset(i)) << std::flush;
      wait_until("qemu-io reads", patience, [&] { return occurrences("read 4096/4096") > i; });
    }
    commands_ << "quit\n" << std::flush;
    CHECK(process_->wait(patience) == 0);
    CHECK(occurrences("read 4096/4096") == count_);
    for (const char* trouble : {"failed", "error", "rror:"})
      CHECK_MESSAGE(occurrences(trouble) == 0, read_text(output_));
  }

 private:
  [[nodiscard]] static unsigned pattern(unsigned i) { return 1 + i % 251; }
  [[nodiscard]] static unsigned offset(unsigned i) { return i * 4096; }
  [[nodiscard]] unsigned occurrences(const std::string& what) const {
    const std::string text = read_text(output_);
    unsigned found = 0;
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
      ++found;
    return found;
  }

  std::string input_;
  std::string output_;
  std::ofstream commands_;
  std::unique_ptr<Process> process_;
  unsigned count_ = 0;
};

/// A guest with two disks, one through libnbd and one through QEMU's block layer, on sockets that stay the same.
struct Guest {
  explicit Guest(Cluster& cluster)
      : socket(cluster.host("a").run_directory() + "/vm1.sock"),
        load(cluster,
             {.disks = {{"vda", disk_bytes}},
              .reconnect_limit = Millis(120'000),
              .uris = {{"vda", "nbd+unix:///vda?socket=" + socket}}}),
        qemu(cluster, socket, "vdb") {
    load.start();
  }

  /// Both disks answer.
  void check_alive() {
    load.wait_answered(40, patience);
    qemu.write_next();
    wait_until(
        "qemu-io's write is answered", patience, [&] { return qemu.written() == qemu.count(); });
  }
  void finish(Cluster& cluster) {
    load.stop();
    load.check_through_nbd();
    qemu.check_all();
    cluster.wait_streaming();
    cluster.stop_and_compare();
    load.check_images(cluster);
  }

  std::string socket;
  Load load;
  QemuIo qemu;
};

void begin(Cluster& cluster) {
  cluster.create({.disk_bytes = {disk_bytes, disk_bytes}});
  cluster.activate();
  cluster.wait_streaming();
}

/// Waits until another export than `old` serves; its pid.
pid_t next_export(Cluster& cluster, pid_t old) {
  pid_t pid = 0;
  wait_until("another export serves", patience, [&] {
    const auto view = cluster.host("a").get("/v1/volumes/vm1");
    if (!view || !view->at("export").is_object() || view->at("state") != "serving") return false;
    pid = view->at("export").at("pid").get<pid_t>();
    return pid != old;
  });
  return pid;
}

TEST_CASE("endpoint: nbdkit killed 20 times under two clients, no error, no full copy") {
  Cluster cluster(3, Millis(280'000));
  begin(cluster);
  Guest guest(cluster);
  pid_t pid = cluster.export_pid();
  for (int round = 0; round < 20; ++round) {
    CAPTURE(round);
    const auto began = Clock::now();
    guest.check_alive();
    wait_until("it has served for a while", patience, [&] {
      return Clock::now() - began >= lives_at_least;
    });
    ::kill(pid, SIGKILL);
    guest.qemu.write_next();  // into the gap
    pid = next_export(cluster, pid);
  }
  guest.check_alive();
  CHECK(guest.load.reconnects() >= 20);
  cluster.wait_streaming();
  MESSAGE("longest wait of a request: ",
          guest.load.longest_wait().count(),
          " ms; copied for the last kill: ",
          cluster.copied_bytes(),
          " bytes");
  CHECK(cluster.copied_bytes() < 4 * disk_bytes);  // what two disks hold, on two replicas
  guest.finish(cluster);
}

TEST_CASE(
    "endpoint: an export that ends at once every time is started at growing intervals, and heals") {
  Cluster cluster(1);
  cluster.create({.members = {"a"}});
  cluster.activate();
  pid_t pid = cluster.export_pid();
  std::vector<Millis> gaps;
  for (int round = 0; round < 3; ++round) {
    const auto killed = Clock::now();
    ::kill(pid, SIGKILL);
    pid = next_export(cluster, pid);
    gaps.push_back(std::chrono::duration_cast<Millis>(Clock::now() - killed));
  }
  CHECK(gaps[2] > Millis(2000));
  CHECK(cluster.serving_host() == "a");
  NbdClient client(cluster.uri());
  client.flush();
}

TEST_CASE("endpoint: replicad and export are exchanged one by one under a guest, on every host") {
  Cluster cluster(3, Millis(280'000));
  begin(cluster);
  Guest guest(cluster);
  guest.check_alive();
  for (const std::string host : {"c", "b", "a"}) {
    CAPTURE(host);
    CHECK(cluster.host(host).stop() == 0);
    guest.check_alive();
    cluster.host(host).start();
    guest.check_alive();
    cluster.wait_streaming();
  }
  CHECK(guest.load.reconnects() == 0);
  const pid_t pid = cluster.export_pid();
  const json done = cluster.ctl_json({"restart", "vm1"});
  CHECK(done.at("clean") == true);
  CHECK(next_export(cluster, pid) != pid);
  guest.check_alive();
  CHECK(guest.load.reconnects() > 0);
  cluster.wait_streaming();
  CHECK(cluster.copied_bytes() == 0);
  // The next one is taken over by a daemon that did not start it, and exchanged by that.
  cluster.host("a").kill9();
  guest.check_alive();
  cluster.host("a").start();
  wait_until("it is back at its daemon", patience, [&] { return cluster.serving_host() == "a"; });
  cluster.ctl_ok({"restart", "vm1"});
  guest.check_alive();
  MESSAGE("longest wait of a request: ", guest.load.longest_wait().count(), " ms");
  guest.finish(cluster);
}

}  // namespace
}  // namespace replicad::e2e
