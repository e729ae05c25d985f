// `replicactl verify`: bit rot is found and mended beside live writes, lag is not mistaken for it.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "io/fd.h"
#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

constexpr std::uint64_t quiet_bytes = 12 * mib_bytes + 512;

/// Turns a byte of a host's image over, past the daemon that has it open.
void flip(Cluster& cluster,
          const std::string& host,
          const std::string& disk,
          std::uint64_t offset) {
  const Fd file(::open(cluster.image_path(host, disk).c_str(), O_RDWR | O_CLOEXEC));
  REQUIRE(file.valid());
  char byte = 0;
  REQUIRE(::pread(file.get(), &byte, 1, static_cast<off_t>(offset)) == 1);
  byte = static_cast<char>(~byte);
  REQUIRE(::pwrite(file.get(), &byte, 1, static_cast<off_t>(offset)) == 1);
}

/// Runs verify with -o json; its exit code and what it says.
struct Verified {
  int code = -1;
  json verify;
  std::string err;

  [[nodiscard]] json side(const std::string& host) const {
    for (const json& replica : verify.at("replicas")) {
      if (replica.at("host") == host) return replica;
    }
    throw HarnessError("verify says nothing of " + host + ": " + verify.dump());
  }
};

Verified verify(Cluster& cluster, std::vector<std::string> options = {}) {
  std::vector<std::string> words{"verify", "vm1", "-o", "json", "-q"};
  words.insert(words.end(), options.begin(), options.end());
  const Finished finished = cluster.ctl(words, Millis(120'000));
  Verified result;
  result.code = finished.exit_code;
  result.err = finished.err;
  INFO("out: ", finished.out, "\nerr: ", finished.err);
  const json record = json::parse(finished.out);
  result.verify = record.at("verify");
  return result;
}

void fill(Cluster& cluster, const std::string& disk, std::uint64_t bytes) {
  NbdClient client(cluster.uri(disk));
  std::vector<std::byte> data(256 << 10);
  std::mt19937_64 random(7);
  for (std::byte& byte : data)
    byte = static_cast<std::byte>(random());
  for (std::uint64_t at = 0; at < bytes; at += data.size()) {
    data.resize(std::min<std::uint64_t>(data.size(), bytes - at));
    client.write(at, data);
  }
  client.flush();
}

json seen_verify(Cluster& cluster) {
  return cluster.volume(cluster.primary_host()).at("verify");
}

void check_finds_and_mends(const std::string& mode) {
  Cluster cluster(3);
  cluster.create({.mode = mode, .disk_bytes = {8 * mib_bytes, quiet_bytes}});
  cluster.activate();
  cluster.wait_streaming();
  fill(cluster, "vdb", quiet_bytes);
  const std::uint64_t seed = test_seed();
  INFO("seed ", seed);
  Load load(cluster, {.disks = {{"vda", 8 * mib_bytes}}, .seed = seed});
  load.start();
  load.wait_answered(50);

  // Every block of vda is written to again and again: none of that is a finding.
  for (int round = 0; round < 3; ++round) {
    const Verified clean = verify(cluster);
    INFO("round ", round, ": ", clean.verify.dump(), clean.err);
    for (const char* host : {"b", "c"}) {
      CHECK(clean.side(host).at("different_blocks") == 0);
      CHECK(clean.side(host).at("state") == "done");
    }
    load.wait_answered(20);
  }

  flip(cluster, "b", "vdb", 5 * block_bytes + 17);
  flip(cluster, "b", "vdb", quiet_bytes - 1);
  const Verified found = verify(cluster);
  INFO(found.verify.dump(), found.err);
  CHECK(found.code == 1);
  CHECK(found.side("c").at("different_blocks") == 0);
  CHECK(found.side("b").at("different_blocks") == 2);
  const json expected = {{{"disk", "vdb"}, {"offset", 5 * block_bytes}, {"length", block_bytes}},
                         {{"disk", "vdb"}, {"offset", 12 * mib_bytes}, {"length", 512}}};
  CHECK(found.side("b").at("ranges") == expected);
  CHECK(found.verify.at("alone_blocks") == 0);
  CHECK(found.err.find("--repair") != std::string::npos);
  const Finished status = cluster.ctl_ok({"status", "vm1"});
  CHECK(status.out.find("b differs in 2 block(s)") != std::string::npos);
  CHECK(status.out.find("found different by the last verify") != std::string::npos);

  // c confirms the primary.
  const Verified repaired = verify(cluster, {"--repair"});
  INFO(repaired.verify.dump(), repaired.err);
  CHECK(repaired.side("b").at("ranges") == expected);
  CHECK(repaired.side("b").at("repaired_blocks") == 2);
  CHECK(repaired.verify.at("kept_blocks") == 0);
  const Verified after = verify(cluster);
  CHECK(after.side("b").at("different_blocks") == 0);
  load.stop();
  // At rest all of it can be compared.
  CHECK(verify(cluster).code == 0);
  cluster.stop_and_compare();
}

}  // namespace

TEST_CASE("verify: finds and mends flipped bytes under load, and nothing else, async") {
  check_finds_and_mends("async");
}

TEST_CASE("verify: finds and mends flipped bytes under load, and nothing else, sync") {
  check_finds_and_mends("sync");
}

/// What a disk does at a crash that has lied about flushes: blocks are again what they were before `now` was written.
void lose_flushed(const std::string& image,
                  const std::vector<std::uint64_t>& offsets,
                  std::byte before,
                  std::byte now) {
  const Fd file(::open(image.c_str(), O_RDWR | O_CLOEXEC));
  REQUIRE(file.valid());
  std::vector<std::byte> block(block_bytes);
  for (const std::uint64_t offset : offsets) {
    REQUIRE(::pread(file.get(), block.data(), block.size(), static_cast<off_t>(offset)) ==
            static_cast<ssize_t>(block.size()));
    REQUIRE(block.front() == now);  // it was there
    std::fill(block.begin(), block.end(), before);
    REQUIRE(::pwrite(file.get(), block.data(), block.size(), static_cast<off_t>(offset)) ==
            static_cast<ssize_t>(block.size()));
  }
}

TEST_CASE("verify: finds what a disk that lied about a flush has lost at a crash, and mends it") {
  constexpr std::uint64_t disk_bytes = 12 * mib_bytes;
  // Neither written last nor at a sixteenth of the disk: no mark of the image has them.
  const std::vector<std::uint64_t> lost{
      mib_bytes + 5 * block_bytes, mib_bytes + 6 * block_bytes, 7 * mib_bytes + 33 * block_bytes};
  Cluster cluster(3);
  cluster.create({.mode = "sync", .disk_bytes = {disk_bytes}});
  cluster.activate();
  cluster.wait_streaming();
  {
    NbdClient client(cluster.uri());
    for (const std::byte value : {std::byte{1}, std::byte{2}}) {
      const std::vector<std::byte> data(256 << 10, value);
      for (std::uint64_t at = 0; at < disk_bytes; at += data.size())
        client.write(at, data);
      client.flush();
    }
  }
  CHECK(verify(cluster).code == 0);  // so all have applied it
  const std::string image = cluster.image_path("b");
  // b's log says nothing of these blocks any more: what it holds is behind the next checkpoint.
  cluster.host("b").stop();
  cluster.host("b").start();
  cluster.wait_streaming();
  cluster.host("b").kill9();
  lose_flushed(image, lost, std::byte{1}, std::byte{2});
  cluster.host("b").start();
  cluster.wait_streaming();
  const json expected = {{{"disk", "vda"}, {"offset", lost[0]}, {"length", 2 * block_bytes}},
                         {{"disk", "vda"}, {"offset", lost[2]}, {"length", block_bytes}}};
  const Verified found = verify(cluster);
  INFO(found.verify.dump(), found.err);
  CHECK(found.code == 1);
  CHECK(found.side("b").at("ranges") == expected);
  CHECK(found.side("c").at("different_blocks") == 0);
  const Verified mended = verify(cluster, {"--repair"});
  INFO(mended.verify.dump(), mended.err);
  CHECK(mended.side("b").at("repaired_blocks") == 3);
  CHECK(verify(cluster).code == 0);

  // The same at the primary, behind a clean end: both others have what it lost.
  cluster.deactivate();
  cluster.activate();
  cluster.wait_streaming();
  lose_flushed(cluster.image_path("a"), {lost[2]}, std::byte{1}, std::byte{2});
  const Verified odd = verify(cluster);
  INFO(odd.verify.dump(), odd.err);
  CHECK(odd.code == 1);
  for (const char* host : {"b", "c"})
    CHECK(odd.side(host).at("ranges") == json::array({expected[1]}));
  // A good copy becomes the primary, and mends the one that lost it.
  cluster.ctl_ok({"switchover", "vm1", "--to=b"});
  cluster.wait_streaming();
  const Verified by_b = verify(cluster, {"--repair"});
  INFO(by_b.verify.dump(), by_b.err);
  CHECK(by_b.side("a").at("repaired_blocks") == 1);
  cluster.stop_and_compare();
}

TEST_CASE("verify: without a second opinion nothing is written over but by force") {
  Cluster cluster(3);
  cluster.create({.mode = "sync", .members = {"a", "b"}, .disk_bytes = {4 * mib_bytes}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  fill(cluster, "vda", 4 * mib_bytes);
  CHECK(verify(cluster).code == 0);  // so b has applied all of it
  flip(cluster, "b", "vda", mib_bytes);
  const Verified kept = verify(cluster, {"--repair"});
  INFO(kept.verify.dump(), kept.err);
  CHECK(kept.code == 1);
  CHECK(kept.verify.at("kept_blocks") == 1);
  CHECK(kept.side("b").at("repaired_blocks") == 0);
  CHECK(kept.err.find("nothing tells which side is right") != std::string::npos);
  CHECK(cluster.image_differences() != "");

  // With a third copy that agrees with the replica, it is the primary that is odd.
  cluster.ctl_ok({"add-replica", "vm1", "c"});
  cluster.wait_streaming();
  flip(cluster, "a", "vda", 2 * mib_bytes);
  const Verified odd = verify(cluster, {"--repair"});
  INFO(odd.verify.dump(), odd.err);
  CHECK(odd.code == 1);
  CHECK(odd.side("c").at("different_blocks") == 1);
  CHECK(odd.side("b").at("different_blocks") == 2);
  CHECK(odd.side("b").at("repaired_blocks") == 1);  // c confirms the primary in that one
  CHECK(odd.verify.at("kept_blocks") == 1);
  CHECK(odd.err.find("switchover vm1") != std::string::npos);

  const Verified forced = verify(cluster, {"--repair", "--force", "--yes"});
  INFO(forced.verify.dump(), forced.err);
  CHECK(forced.code == 0);
  CHECK(forced.side("b").at("repaired_blocks") == 1);
  CHECK(forced.side("c").at("repaired_blocks") == 1);
  cluster.stop_and_compare();
}

TEST_CASE("verify: ends with its replica, with a word why, and by --stop") {
  Cluster cluster(3);
  // A replica that is silent is let go after twice the ack-timeout.
  cluster.create({.mode = "async",
                  .disk_bytes = {4 * mib_bytes},
                  .create_options = {"--set=ack-timeout=60s"}});
  CHECK(cluster.ctl({"verify", "vm1"}).exit_code == 3);  // not active
  cluster.activate();
  cluster.wait_streaming();
  fill(cluster, "vda", 4 * mib_bytes);
  CHECK(cluster.ctl({"verify", "vm1", "--stop"}).exit_code == 3);  // there is none
  CHECK(cluster.ctl({"verify", "vm1", "--host", "a"}).exit_code == 3);
  CHECK(cluster.ctl({"verify", "vm1", "--host", "x"}).exit_code == 5);

  // b does not answer, so it lasts.
  cluster.host("b").signal(SIGSTOP);
  cluster.ctl_ok({"verify", "vm1", "--host", "b", "--no-wait"});
  CHECK(seen_verify(cluster).at("state") == "running");
  const Finished second = cluster.ctl({"verify", "vm1"});
  CHECK(second.exit_code == 3);
  CHECK(second.err.find("is under way") != std::string::npos);
  cluster.ctl_ok({"verify", "vm1", "--stop"});
  cluster.host("b").signal(SIGCONT);
  wait_until(
      "it has ended", patience, [&] { return seen_verify(cluster).at("state") == "stopped"; });

  cluster.wait_streaming();
  cluster.host("b").signal(SIGSTOP);
  cluster.ctl_ok({"verify", "vm1", "--no-wait"});
  cluster.host("b").kill9();
  wait_until(
      "it has ended", patience, [&] { return seen_verify(cluster).at("state") == "failed"; });
  const Verified ended{1, seen_verify(cluster), {}};
  INFO(ended.verify.dump());
  CHECK(ended.side("b").at("state") == "failed");
  CHECK(ended.side("b").at("error").at("message") != "");
  CHECK(ended.side("c").at("state") == "done");
  const Verified without = verify(cluster, {"--host", "b"});
  CHECK(without.code == 1);
  CHECK(without.err.find("only a replica that follows the stream") != std::string::npos);
  cluster.host("b").start();
  cluster.wait_streaming();
  CHECK(verify(cluster).code == 0);
}

}  // namespace replicad::e2e
