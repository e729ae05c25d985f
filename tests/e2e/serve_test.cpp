// What a guest sees of a served volume, and what the replicas hold afterwards.
#include <cstring>
#include <random>
#include <thread>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

std::vector<std::byte> random_bytes(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random() | 1);
  return bytes;
}

void fio_verify(Cluster& cluster, const std::string& workload) {
  const std::string uri = cluster.uri();
  run_ok({"fio",
          "--name=verify",
          "--directory=" + cluster.directory(),
          "--ioengine=nbd",
          "--uri=" + uri,
          "--rw=" + workload,
          "--bsrange=4k-64k",
          "--size=24m",
          "--iodepth=16",
          "--verify=crc32c",
          "--verify_fatal=1",
          "--verify_state_save=0",
          "--randseed=" + std::to_string(test_seed()),
          "--fsync=64"},
         {.limit = Millis(120'000), .environment = {}});
}

void fio_in_mode(const std::string& mode) {
  for (const std::size_t replicas : {1U, 2U}) {
    CAPTURE(replicas);
    Cluster cluster(replicas + 1);
    cluster.create({.mode = mode, .members = cluster.host_names()});
    cluster.activate();
    cluster.wait_streaming();
    fio_verify(cluster, "randwrite");
    fio_verify(cluster, "write");
    cluster.stop_and_compare();
    CHECK(cluster.volume("a").at("settings").at("mode") == mode);
  }
}

TEST_CASE("serve: fio verifies through NBD in async with 1 and 2 replicas, images end equal") {
  fio_in_mode("async");
}

TEST_CASE("serve: fio verifies through NBD in semi-sync with 1 and 2 replicas, images end equal") {
  fio_in_mode("semi-sync");
}

TEST_CASE("serve: fio verifies through NBD in sync with 1 and 2 replicas, images end equal") {
  fio_in_mode("sync");
}

TEST_CASE("serve: trim and zero arrive as such, the image stays sparse on every host") {
  Cluster cluster(3);
  cluster.create({});
  for (const std::string& host : cluster.host_names()) {
    CHECK(allocated_bytes(cluster.image_path(host)) < mib_bytes);
  }
  cluster.activate();
  cluster.wait_streaming();
  const auto data = random_bytes(24 * mib_bytes, 7);
  {
    NbdClient client(cluster.uri());
    for (std::size_t at = 0; at < data.size(); at += 4 * mib_bytes) {
      client.write(at, std::span(data).subspan(at, 4 * mib_bytes));
    }
    client.flush();
    client.trim(0, 8 * mib_bytes);
    client.zero(12 * mib_bytes, 8 * mib_bytes);
    client.flush();
    std::vector<std::byte> got(mib_bytes);
    client.read(7 * mib_bytes, got);
    CHECK(got == std::vector<std::byte>(mib_bytes));
    client.read(8 * mib_bytes, got);
    CHECK(std::memcmp(got.data(), data.data() + 8 * mib_bytes, got.size()) == 0);
  }
  cluster.stop_and_compare();
  for (const std::string& host : cluster.host_names()) {
    CAPTURE(host);
    CHECK(allocated_bytes(cluster.image_path(host)) < 9 * mib_bytes);
    CHECK(allocated_bytes(cluster.image_path(host)) >= 8 * mib_bytes);
  }
}

TEST_CASE("serve: a zero or trim of the whole disk in one request is cut into frames") {
  Cluster cluster(2);
  constexpr std::uint64_t disk = 1280 * mib_bytes;
  cluster.create({.members = {"a", "b"}, .disk_bytes = {disk}});
  cluster.activate();
  cluster.wait_streaming();
  {
    NbdClient client(cluster.uri());
    const auto data = random_bytes(mib_bytes, 8);
    client.write(0, data);
    client.write(disk - mib_bytes, data);
    client.write(disk / 2, data);
    client.zero(0, disk);
    client.write(disk / 3 / 512 * 512, data);
    client.trim(disk / 2, disk / 2);
    client.flush();
  }
  cluster.deactivate();
  cluster.wait_applied();
  for (const std::string& host : cluster.host_names()) {
    CHECK(allocated_bytes(cluster.image_path(host)) <= 2 * mib_bytes);
  }
  run_ok({"cmp", cluster.image_path("a"), cluster.image_path("b")});
}

TEST_CASE("serve: 16 overlapping writers on the same blocks end equal everywhere") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  const std::string uri = cluster.uri();
  const std::uint64_t seed = test_seed();
  INFO("RD_SEED=", seed);
  std::vector<std::thread> writers;
  std::atomic<int> failed{0};
  for (unsigned i = 0; i < 16; ++i) {
    writers.emplace_back([&uri, &failed, seed, i] {
      try {
        std::mt19937_64 random(seed + i);
        NbdClient client(uri);
        for (int n = 0; n < 250; ++n) {
          const auto data = random_bytes(512 * (1 + random() % 32), random());
          client.write(512 * (random() % 96), data);
          if (n % 50 == 0) client.zero(512 * (random() % 96), 8192);
        }
      } catch (const std::exception&) {
        ++failed;
      }
    });
  }
  for (std::thread& writer : writers)
    writer.join();
  CHECK(failed == 0);
  cluster.stop_and_compare();
}

// Writes i to disk vda, then, once answered, i to vdb. Returns the last i answered on both.
class AlternatingWriter {
 public:
  AlternatingWriter(const std::string& first, const std::string& second)
      : first_(first), second_(second), thread_([this] { run(); }) {}
  AlternatingWriter(const AlternatingWriter&) = delete;
  AlternatingWriter& operator=(const AlternatingWriter&) = delete;
  ~AlternatingWriter() {
    stopping_ = true;
    thread_.join();
  }
  [[nodiscard]] std::uint64_t answered() const { return answered_; }

 private:
  void run() {
    try {
      std::vector<std::byte> block(4096);
      for (std::uint64_t i = 1; !stopping_; ++i) {
        std::memcpy(block.data(), &i, sizeof i);
        first_.write(0, block);
        second_.write(0, block);
        answered_ = i;
      }
    } catch (const HarnessError&) {
      // The primary was killed: the end of this load.
    }
  }

  NbdClient first_;
  NbdClient second_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> answered_{0};
  std::thread thread_;
};

std::uint64_t counter_in(const std::string& path) {
  std::uint64_t counter = 0;
  const std::string text = read_text(path).substr(0, sizeof counter);
  std::memcpy(&counter, text.data(), text.size());
  return counter;
}

TEST_CASE("serve: two disks of a volume share one order, also on a replica that was cut off") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}, .disk_bytes = {4 * mib_bytes, 8 * mib_bytes}});
  cluster.activate();
  cluster.wait_streaming();
  {
    const AlternatingWriter writer(cluster.uri("vda"), cluster.uri("vdb"));
    wait_until("500 pairs are answered", Millis(60'000), [&] { return writer.answered() >= 500; });
    // The primary's whole host goes, then the replica's daemon: its log and image are what is left.
    const pid_t exporter = cluster.export_pid();
    cluster.host("a").kill9();
    ::kill(exporter, SIGKILL);
    cluster.host("b").kill9();
    cluster.host("b").start();
    wait_until("the replica has applied its log", Millis(30'000), [&] {
      const json replica = cluster.volume("b").at("replica");
      return replica.at("applied") == replica.at("logged");
    });
    const std::uint64_t on_vda = counter_in(cluster.image_path("b", "vda"));
    const std::uint64_t on_vdb = counter_in(cluster.image_path("b", "vdb"));
    CHECK(on_vdb >= writer.answered());
    CHECK(on_vda >= on_vdb);
    CHECK(on_vda <= on_vdb + 1);
  }
}

TEST_CASE("serve: an answered write is read back, at any size and alignment") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  const std::uint64_t seed = test_seed();
  INFO("RD_SEED=", seed);
  std::mt19937_64 random(seed);
  std::vector<std::byte> mirror(32 * mib_bytes);
  {
    NbdClient client(cluster.uri());
    for (const std::size_t length : {1U, 511U, 513U, 4095U, 65'537U, 1'048'577U, 5'000'001U}) {
      const auto data = random_bytes(length, random());
      const std::uint64_t offset = random() % (mirror.size() - length);
      client.write(offset, data, length % 2 == 0 ? 0 : LIBNBD_CMD_FLAG_FUA);
      std::memcpy(mirror.data() + offset, data.data(), length);
      std::vector<std::byte> got(length);
      client.read(offset, got);
      CHECK(got == data);
    }
    client.flush();
  }
  cluster.stop_and_compare();
  CHECK(file_difference(cluster.image_path("b"), mirror).empty());
}

}  // namespace
}  // namespace replicad::e2e
