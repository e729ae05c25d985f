// Resyncs: what they send, what stays promotable meanwhile, and what an interrupted one does again.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <sstream>

#include <doctest/doctest.h>
#include <signal.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

using Clock = std::chrono::steady_clock;

/// MiB that are written at random while the replica is away: RD_RESYNC_MIB.
std::uint64_t written_mib(std::uint64_t by_default) {
  const char* text = std::getenv("RD_RESYNC_MIB");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : by_default;
}

json replica_seen(Cluster& cluster, const std::string& host) {
  const json volume = cluster.volume(cluster.primary_host());
  for (const json& replica : volume.at("replicas")) {
    if (replica.at("host") == host) return replica;
  }
  throw HarnessError("the primary knows no replica " + host);
}

/// One writer of whole blocks at random places of its disk; what was answered is remembered block by block.
class RandomBlocks {
 public:
  RandomBlocks(Cluster& cluster,
               const std::string& disk,
               std::uint64_t disk_bytes,
               std::uint64_t seed)
      : client_(cluster.uri(disk)), random_(seed), dirty_(disk_bytes / block_bytes) {}

  void write(std::uint64_t bytes) {
    std::vector<std::byte> data(block_bytes);
    for (std::uint64_t done = 0; done < bytes; done += block_bytes) {
      for (std::size_t at = 0; at < data.size(); at += 8) {
        const std::uint64_t word = random_();
        std::memcpy(data.data() + at, &word, 8);
      }
      const std::uint64_t block = random_() % dirty_.size();
      const auto begun = Clock::now();
      client_.write(block * block_bytes, data);
      waited_ += Clock::now() - begun;
      ++writes_;
      if (!dirty_[block]) ++dirty_blocks_;
      dirty_[block] = true;
    }
  }
  void flush() { client_.flush(); }
  /// Writes per second that one was waited for, since the last call.
  double take_rate() {
    const double seconds = std::chrono::duration<double>(std::exchange(waited_, {})).count();
    return static_cast<double>(std::exchange(writes_, 0)) / std::max(seconds, 1e-9);
  }
  [[nodiscard]] std::uint64_t dirty_bytes() const { return dirty_blocks_ * block_bytes; }

 private:
  NbdClient client_;
  std::mt19937_64 random_;
  std::vector<bool> dirty_;
  std::uint64_t dirty_blocks_ = 0;
  std::uint64_t writes_ = 0;
  Clock::duration waited_{};
};

/// Throws unless the replica could be promoted now to where it stands.
void check_promotable(Cluster& cluster, const std::string& host) {
  const json replica = cluster.volume(host).at("replica");
  CHECK(replica.at("consistent") == true);
}

}  // namespace

TEST_CASE("resync: sends what was changed and hardly more, the replica stays promotable") {
  const std::uint64_t mib = written_mib(24);
  const std::uint64_t disk_bytes = 4 * mib * mib_bytes;
  Cluster cluster(3, Millis(600'000));
  cluster.create({.mode = "async",
                  .members = {"a", "b", "c"},
                  .disk_bytes = {disk_bytes, 64 * mib_bytes},
                  .create_options = {
                      "--set=ring-bytes=4M", "--set=segment-bytes=16M", "--set=log-bytes=64M"}});
  cluster.activate();
  cluster.wait_streaming();
  RandomBlocks away(cluster, "vda", disk_bytes, test_seed());
  RandomBlocks guest(cluster, "vdb", 64 * mib_bytes, test_seed() + 1);
  cluster.host("b").kill9();
  wait_until(
      "b has left", patience, [&] { return replica_seen(cluster, "b").at("in_sync") == false; });
  const std::uint64_t copied_before = cluster.copied_bytes();
  away.write(mib * mib_bytes);
  guest.write(4 * mib_bytes);
  const double rate_before = guest.take_rate();
  guest.flush();
  std::optional<std::uint64_t> dirtied;
  cluster.host("b").start();
  const auto begun = Clock::now();
  std::uint64_t looked = 0;
  wait_until("b is in sync again", Millis(300'000), [&] {
    guest.write(16 * block_bytes);
    check_promotable(cluster, "b");
    ++looked;
    const json replica = replica_seen(cluster, "b");
    const bool is_in_sync = replica.at("in_sync") == true;
    const bool has_begun = replica.at("state") == "copying" || is_in_sync;
    if (has_begun && !dirtied) dirtied = away.dirty_bytes() + guest.dirty_bytes();
    return is_in_sync;
  });
  const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
  const std::uint64_t sent = cluster.copied_bytes() - copied_before;
  const double share = static_cast<double>(sent) / static_cast<double>(dirtied.value());
  MESSAGE("dirtied ",
          *dirtied,
          " bytes, sent ",
          sent,
          " (",
          share,
          "), promotable each of ",
          looked,
          " times; in sync ",
          seconds,
          " s after its start; the guest's writes per second: ",
          guest.take_rate(),
          " meanwhile, ",
          rate_before,
          " before");
  CHECK(share >= 0.5);
  CHECK(share <= 1.05);
  cluster.stop_and_compare();
}

TEST_CASE("resync: four times the log's budget, under load, through the states that status shows") {
  constexpr std::uint64_t log_mib = 12;
  const std::uint64_t disk_bytes = 192 * mib_bytes;
  Cluster cluster(2, Millis(600'000));
  cluster.create({.members = {"a", "b"},
                  .disk_bytes = {disk_bytes, 32 * mib_bytes},
                  .create_options = {"--set=ring-bytes=4M",
                                     "--set=log-bytes=12M",
                                     "--set=segment-bytes=4M",
                                     "--set=ack-timeout=500ms"}});
  cluster.activate();
  cluster.wait_streaming();
  // Away until what it lacks is four times what its log may hold, and long out of the ring.
  cluster.host("b").kill9();
  RandomBlocks guest(cluster, "vda", disk_bytes, test_seed());
  while (guest.dirty_bytes() < 4 * log_mib * mib_bytes)
    guest.write(mib_bytes);
  Load load(cluster, {.disks = {{"vdb", 32 * mib_bytes}}, .write_bytes_max = 16 << 10});
  load.start();
  load.wait_answered(100);
  cluster.host("b").start();
  bool has_copied = false;
  wait_until("b is in sync again", Millis(300'000), [&] {
    const json seen = cluster.volume("b");
    CHECK(seen.at("replica").at("consistent") == true);
    CHECK(seen.at("state") != "failed");
    has_copied = has_copied || seen.at("state") == "copying";
    return replica_seen(cluster, "b").at("in_sync") == true;
  });
  CHECK(has_copied);
  CHECK(cluster.copied_bytes() >= 4 * log_mib * mib_bytes * 9 / 10);
  load.stop();
  load.check_through_nbd();
  cluster.stop_and_compare();
}

TEST_CASE("resync: one that is interrupted again and again goes on, and does not begin anew") {
  const std::uint64_t mib = 48;
  const std::uint64_t disk_bytes = 256 * mib_bytes;
  Cluster cluster(2, Millis(600'000));
  cluster.create({.members = {"a", "b"},
                  .disk_bytes = {disk_bytes},
                  .create_options = {"--set=ring-bytes=4M", "--set=ack-timeout=500ms"}});
  cluster.activate();
  cluster.wait_streaming();
  RandomBlocks guest(cluster, "vda", disk_bytes, test_seed());
  cluster.host("b").kill9();
  guest.write(mib * mib_bytes);
  const std::uint64_t copied_before = cluster.copied_bytes();
  const std::uint64_t dirtied = guest.dirty_bytes();
  int interrupted = 0;
  const std::string stage = cluster.host("b").state_directory() + "/volumes/vm1/log/resync.stage";
  for (std::uint64_t round = 1; round <= 4; ++round) {
    cluster.host("b").launch();
    // Each time a further fifth of the whole, at least. Its size tells sooner than the status.
    wait_until("a part has come", Millis(120'000), [&] {
      std::error_code none;
      const auto bytes = std::filesystem::file_size(stage, none);
      return (!none && bytes >= round * dirtied / 5) ||
             replica_seen(cluster, "b").at("in_sync") == true;
    });
    cluster.host("b").kill9();
    if (std::filesystem::exists(stage)) ++interrupted;
    guest.write(64 * block_bytes);
  }
  CHECK(interrupted > 0);
  cluster.host("b").start();
  wait_until("b is in sync again", Millis(300'000), [&] {
    check_promotable(cluster, "b");
    return replica_seen(cluster, "b").at("in_sync") == true;
  });
  const std::uint64_t sent = cluster.copied_bytes() - copied_before;
  MESSAGE(
      "dirtied ", guest.dirty_bytes(), " bytes, interrupted ", interrupted, " times, sent ", sent);
  // What was on its way when it was killed comes again, at most: some megabytes each time, more on a slow machine.
  // Begun anew each time it would be three times as much in all.
  CHECK(sent <= guest.dirty_bytes() * 3 / 2);
  cluster.stop_and_compare();
}

namespace {

/// Bytes of the copies to `peer` that an export of `host` has begun, from its log: compared or sent.
std::vector<std::uint64_t> copies_begun(Cluster& cluster,
                                        const std::string& host,
                                        const std::string& peer) {
  std::vector<std::uint64_t> found;
  for (const auto& entry :
       std::filesystem::directory_iterator(cluster.host(host).run_directory())) {
    if (entry.path().extension() != ".log") continue;
    std::istringstream lines(read_text(entry.path().string()));
    const std::string wanted = "event=copy_started peer=" + peer + " bytes=";
    for (std::string line; std::getline(lines, line);) {
      const std::size_t at = line.find(wanted);
      if (at != std::string::npos) found.push_back(std::stoull(line.substr(at + wanted.size())));
    }
  }
  return found;
}

}  // namespace

TEST_CASE(
    "resync: after a failover the others compare what the histories differ in, not everything") {
  constexpr std::uint64_t disk_bytes = 192 * mib_bytes;
  Cluster cluster(3, Millis(600'000));
  cluster.create({.mode = "async",
                  .disk_bytes = {disk_bytes},
                  .create_options = {"--set=ack-timeout=4s", "--set=segment-bytes=16M"}});
  cluster.activate();
  cluster.wait_streaming();
  NbdClient client(cluster.uri());
  std::mt19937_64 random(test_seed());
  const auto write = [&](NbdClient& to, std::uint64_t offset, std::size_t bytes) {
    std::vector<std::byte> data(bytes);
    for (std::size_t at = 0; at < bytes; at += 8) {
      const std::uint64_t word = random();
      std::memcpy(data.data() + at, &word, 8);
    }
    to.write(offset, data);
  };
  for (std::uint64_t offset = 0; offset < disk_bytes; offset += mib_bytes)
    write(client, offset, mib_bytes);
  client.flush();
  wait_until("all have it, and no region is in use any more", Millis(120'000), [&] {
    const json exported = cluster.volume("a");
    return exported.at("counters").at("hot_regions") == 0 &&
           std::ranges::all_of(exported.at("replicas"), [](const json& replica) {
             return replica.at("in_sync") == true && replica.at("applied") == replica.at("sent");
           });
  });
  // c lacks what b has, b what a has.
  cluster.host("c").kill9();
  wait_until("c has left", Millis(30'000), [&] {
    return replica_seen(cluster, "c").at("in_sync") == false;
  });
  const auto sent_before = replica_seen(cluster, "b").at("sent").get<std::uint64_t>();
  write(client, 8 * mib_bytes, block_bytes);
  client.flush();
  wait_until("b has it", Millis(30'000), [&] {
    const json replica = replica_seen(cluster, "b");
    return replica.at("sent").get<std::uint64_t>() > sent_before &&
           replica.at("durable") == replica.at("sent");
  });
  cluster.host("b").kill9();
  write(client, 40 * mib_bytes, block_bytes);
  const pid_t exporter = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  cluster.host("b").start();
  cluster.host("c").start();
  wait_until("the failover is done", Millis(60'000), [&] {
    return cluster.ctl({"failover", "vm1", "--to=b"}).exit_code == 0;
  });
  NbdClient moved(cluster.uri());
  write(moved, 100 * mib_bytes, block_bytes);
  moved.flush();
  cluster.host("a").start();
  wait_until("all are in sync", Millis(120'000), [&] {
    return cluster.volume("b").at("in_sync").size() == 3;
  });
  for (const char* host : {"a", "c"}) {
    const auto copies = copies_begun(cluster, "b", host);
    CAPTURE(host);
    REQUIRE_FALSE(copies.empty());
    for (const std::uint64_t bytes : copies) {
      MESSAGE("copy to ", std::string(host), ": ", bytes, " bytes compared or sent");
      CHECK(bytes <= disk_bytes / 4);
    }
  }
  // What a alone had, and not what b has written since elsewhere.
  const json files = cluster.ctl_json({"lost-writes", "vm1"}).at("files");
  REQUIRE(files.size() == 1);
  CHECK(files[0].at("host") == "a");
  const json kept = cluster.ctl_json({"lost-writes", "vm1", "--host=a", "--file=1"}).at("ranges");
  REQUIRE(kept.size() == 1);
  CHECK(kept[0].at("offset") == 40 * mib_bytes);
  CHECK(kept[0].at("length") == block_bytes);
  cluster.stop_and_compare();
}

}  // namespace replicad::e2e
