// One cluster of two versions: the programs of this build, and those of an older one, whose build folder is RD_OLDER.
#include <cstdlib>
#include <functional>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

constexpr std::uint64_t disk_bytes = 16 * mib_bytes;
/// Requests of the load that a ring of 4 MiB cannot hold.
constexpr std::uint64_t beyond_the_ring = 600;
const std::string newer_build;  // this one

std::string older_build() {
  const char* folder = std::getenv("RD_OLDER");
  if (folder == nullptr) throw HarnessError("RD_OLDER does not name the folder of an older build");
  return folder;
}

void add_host(Cluster& cluster, const std::string& name, const std::string& build) {
  cluster.add_host({.name = name,
                    .directory = cluster.directory() + "/" + name,
                    .image_directory = "",
                    .state_directory = "",
                    .arguments = {},
                    .launcher = {},
                    .build = build});
}

void begin(Cluster& cluster, const std::string& ring_bytes) {
  cluster.create(
      {.disk_bytes = {disk_bytes}, .create_options = {"--set=ring-bytes=" + ring_bytes}});
  cluster.activate();
  cluster.wait_streaming();
}

/// As an administrator exchanges a host's packages: new files, and replicad is started anew.
void exchange(Cluster& cluster, const std::string& host, const std::string& build) {
  CHECK(cluster.host(host).stop() == 0);
  cluster.host(host).run_build(build);
  cluster.host(host).start();
  wait_until("some host serves", patience, [&] { return cluster.serving_host().has_value(); });
  cluster.wait_streaming();
}

void restart_export(Cluster& cluster) {
  const pid_t before = cluster.export_pid();
  cluster.ctl_ok({"restart", "vm1"});
  wait_until("another export serves", patience, [&] {
    const auto found = cluster.find_export("vm1", "vda");
    return found && found->pid != before;
  });
  cluster.wait_streaming();
}

TEST_CASE("upgrade: host by host under a guest, in any order, and back to the older build") {
  for (const std::string order : {"cba", "abc"}) {
    CAPTURE(order);
    Cluster cluster(0);
    for (const std::string host : {"a", "b", "c"})
      add_host(cluster, host, older_build());
    begin(cluster, "64M");  // holds what is written while a member is away
    Load load(cluster,
              {.disks = {{"vda", disk_bytes}},
               .reconnect_limit = patience,
               .uris = {{"vda",
                         fmt::format("nbd+unix:///vda?socket={}/vm1.sock",
                                     cluster.host("a").run_directory())}}});
    load.start();
    for (const std::string& build : {newer_build, older_build()}) {
      CAPTURE(build);
      for (const char letter : order) {
        const std::string host(1, letter);
        CAPTURE(host);
        load.wait_answered(60);
        const std::uint64_t reconnects = load.reconnects();
        exchange(cluster, host, build);
        load.wait_answered(60);
        CHECK(load.reconnects() == reconnects);
        CHECK(cluster.copied_bytes() == 0);
        if (host == "a") restart_export(cluster);
      }
    }
    load.wait_answered(60);
    load.stop();
    load.check_through_nbd();
    MESSAGE(order, ": longest wait of a request: ", load.longest_wait().count(), " ms");
    cluster.stop_and_compare();
    load.check_images(cluster);
  }
}

/// kill -9 of the primary's export and replicad.
void kill_primary(Cluster& cluster, const std::string& host) {
  const pid_t exporter = cluster.export_pid();
  cluster.host(host).kill9();
  ::kill(exporter, SIGKILL);
}

bool is_in_sync(Cluster& cluster, const std::string& host) {
  for (const json& replica : cluster.volume(cluster.primary_host()).at("replicas")) {
    if (replica.at("host") == host) return replica.at("in_sync").get<bool>();
  }
  return false;
}

/// The older build's replicactl.
void older_ctl_ok(Cluster& cluster, const std::vector<std::string>& arguments) {
  std::vector<std::string> words{older_build() + "/ctl/replicactl",
                                 "--hosts=" + cluster.hosts_option()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const Finished finished = run(words, {.limit = patience, .environment = {}});
  if (finished.exit_code != 0) throw HarnessError("the older replicactl: " + finished.text());
}

/// What brings a member back: the stream goes on, a copy of what it lacks, one that is interrupted.
void lose_members(Cluster& cluster, Load& load, const std::string& replica) {
  for (const std::uint64_t requests : {std::uint64_t{20}, beyond_the_ring}) {
    cluster.host(replica).kill9();
    wait_until("it has left", patience, [&] { return !is_in_sync(cluster, replica); });
    const std::uint64_t copied = cluster.copied_bytes();
    load.wait_answered(requests);
    cluster.host(replica).start();
    load.wait_answered(20);
    cluster.wait_streaming();
    if (requests == beyond_the_ring) CHECK(cluster.copied_bytes() > copied);
  }
}

std::size_t occurrences(const std::string& text, const std::string& what) {
  std::size_t count = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
    ++count;
  return count;
}

/// Grows with each session that ends or begins.
std::size_t sessions_changed(Cluster& cluster) {
  std::size_t count = 0;
  for (const std::string& name : cluster.host_names()) {
    const Host& host = cluster.host(name);
    count += occurrences(host.log(), "event=replica_attached");
    count += occurrences(read_text(host.run_directory() + "/vm1.log"), "event=peer_unreachable");
  }
  return count;
}

/// The replicas of another version are compared if both sides know how; if not, that is said, and every session goes
/// on: what is not known there was not sent.
void verify(Cluster& cluster) {
  const std::size_t sessions = sessions_changed(cluster);
  const Finished finished = cluster.ctl({"verify", "vm1", "-q"}, Millis(120'000));
  MESSAGE("verify from ", cluster.primary_host(), ": ", finished.text());
  CHECK_FALSE(contains(finished.out, "differs"));
  cluster.wait_streaming();
  CHECK(sessions_changed(cluster) == sessions);
}

TEST_CASE("upgrade: two versions do together all that one does") {
  for (const bool older_first : {true, false}) {
    CAPTURE(older_first);
    Cluster cluster(0);
    add_host(cluster, "a", older_first ? older_build() : newer_build);
    add_host(cluster, "b", older_first ? newer_build : older_build());
    add_host(cluster, "c", older_first ? newer_build : older_build());
    begin(cluster, "4M");  // a member that was away needs more than that
    Load load(cluster, {.disks = {{"vda", disk_bytes}}, .reconnect_limit = patience});
    load.start();
    load.wait_answered(100);

    lose_members(cluster, load, "b");
    verify(cluster);
    // Roles go over from one version to the other and back, agreed and after a loss.
    for (const std::string to : {"b", "a"}) {
      CAPTURE(to);
      if (to == "b") {
        cluster.ctl_ok({"switchover", "vm1", "--to=b"});
      } else {
        older_ctl_ok(cluster, {"switchover", "vm1", "--to=a"});
      }
      load.wait_answered(60);
      cluster.wait_streaming();
      verify(cluster);
    }
    for (const std::string to : {"b", "a"}) {
      CAPTURE(to);
      const std::string from = to == "b" ? "a" : "b";
      kill_primary(cluster, from);
      wait_until("the others have taken over", patience, [&] {
        return cluster.ctl({"failover", "vm1", "--to=" + to}).exit_code == 0;
      });
      load.wait_answered(beyond_the_ring);
      cluster.host(from).start();
      wait_until("it is a replica", patience, [&] {
        const auto view = cluster.host(from).get("/v1/volumes/vm1");
        return view && view->value("role", "") == "replica";
      });
      load.wait_answered(20);
      cluster.wait_streaming();
    }
    // What two versions have left behind is read by either.
    for (const std::string& build : {older_build(), newer_build}) {
      for (const std::string& host : cluster.host_names())
        exchange(cluster, host, build);
      restart_export(cluster);
      load.wait_answered(60);
    }
    load.stop();
    load.check_through_nbd();
    cluster.stop_and_compare();
    load.check_images(cluster);
  }
}

std::vector<std::byte> block_of(unsigned value) {
  return std::vector<std::byte>(block_bytes, static_cast<std::byte>(value));
}
/// As a disk of QEMU: it connects anew when its connection ends, which it does when the role moves.
void with_disk(Cluster& cluster,
               const std::string& host,
               const std::function<void(NbdClient&)>& request) {
  const std::string uri =
      fmt::format("nbd+unix:///vda?socket={}/vm1.sock", cluster.host(host).run_directory());
  wait_until("the disk at " + host + " answers", patience, [&] {
    try {
      NbdClient client(uri);
      request(client);
      return true;
    } catch (const NbdError& error) {
      if (!error.connection_lost) throw;
      return false;
    }
  });
}
void write(Cluster& cluster, const std::string& host, unsigned value) {
  const std::vector<std::byte> data = block_of(value);
  with_disk(cluster, host, [&](NbdClient& client) { client.write(0, data); });
}
void check_read(Cluster& cluster, const std::string& host, unsigned value) {
  std::vector<std::byte> data(block_bytes);
  with_disk(cluster, host, [&](NbdClient& client) { client.read(0, data); });
  CHECK(data == block_of(value));
}

TEST_CASE("upgrade: a live migration between two versions, or a refusal that changes nothing") {
  for (const bool older_first : {true, false}) {
    CAPTURE(older_first);
    Cluster cluster(0);
    add_host(cluster, "a", older_first ? older_build() : newer_build);
    add_host(cluster, "b", older_first ? newer_build : older_build());
    add_host(cluster, "c", older_build());
    begin(cluster, "64M");
    unsigned value = 1;
    write(cluster, "a", value);
    std::string from = "a";
    for (const std::string to : {"b", "a"}) {
      CAPTURE(to);
      if (from == to) break;
      const Finished prepared = cluster.ctl({"handover", "vm1", "--to=" + to}, patience);
      if (prepared.exit_code != 0) {
        MESSAGE("handover from ", from, ": ", prepared.text());
        write(cluster, from, ++value);
        check_read(cluster, from, value);
        CHECK(cluster.serving_host() == from);
        CHECK(cluster.volume(from).value("handover", json()).is_null());
        continue;
      }
      check_read(cluster, to, value);
      write(cluster, to, ++value);
      CHECK(cluster.serving_host() == to);
      cluster.ctl_ok({"handover", "vm1", "--end"});
      check_read(cluster, to, value);
      cluster.wait_streaming();
      from = to;
    }
    cluster.stop_and_compare();
  }
}

}  // namespace
}  // namespace replicad::e2e
