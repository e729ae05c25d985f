// A member that the volume has gone on without comes back by itself, and what only it had is kept.
#include <algorithm>
#include <filesystem>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>

#include "io/file.h"
#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

std::vector<std::byte> filled(std::size_t bytes, unsigned char value) {
  return std::vector<std::byte>(bytes, std::byte{value});
}

/// The in-sync set, as the primary sees it, is all data members.
void wait_in_sync(Cluster& cluster) {
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
}

json lost_files(Cluster& cluster) {
  return cluster.ctl_json({"lost-writes", "vm1"}).at("files");
}

struct Kept {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  friend bool operator==(const Kept&, const Kept&) = default;
};

std::vector<Kept> ranges_of(Cluster& cluster, const std::string& host, std::uint64_t number) {
  std::vector<Kept> ranges;
  const json file =
      cluster.ctl_json({"lost-writes", "vm1", "--host=" + host, fmt::format("--file={}", number)});
  for (const json& range : file.at("ranges"))
    ranges.push_back({range.at("offset"), range.at("length")});
  std::ranges::sort(ranges, {}, &Kept::offset);
  // In which pieces it came does not matter.
  std::vector<Kept> merged;
  for (const Kept& range : ranges) {
    if (!merged.empty() && merged.back().offset + merged.back().length == range.offset) {
      merged.back().length += range.length;
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

std::vector<std::byte> extracted(Cluster& cluster,
                                 const std::string& host,
                                 std::uint64_t offset,
                                 std::size_t bytes) {
  const std::string directory = cluster.directory() + "/extracted";
  if (!std::filesystem::exists(directory)) {
    cluster.ctl_ok({"lost-writes", "vm1", "--host=" + host, "--file=1", "--extract=" + directory});
  }
  const Fd file(::open((directory + "/vda.raw").c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(file.valid());
  std::vector<std::byte> content(bytes);
  REQUIRE(read_all_at(file.get(), content, offset).has_value());
  return content;
}

/// b and c are away while a goes on answering, in async.
void write_alone(Cluster& cluster, NbdClient& client) {
  cluster.host("b").kill9();
  cluster.host("c").kill9();
  client.write(8 * block_bytes, filled(2 * block_bytes, 0xa1));
  client.write(5 << 20, filled(block_bytes, 0xa2));
  client.zero(0, block_bytes);
  client.flush();
}

void kill_first(Cluster& cluster) {
  const pid_t exporter = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  cluster.host("b").start();
  cluster.host("c").start();
}

void fail_over(Cluster& cluster, const std::string& to) {
  wait_until("the failover is done", Millis(60'000), [&] {
    return cluster.ctl({"failover", "vm1", "--to=" + to}).exit_code == 0;
  });
}

void begin_async(Cluster& cluster) {
  cluster.create(
      {.mode = "async",
       .create_options = {"--set=ack-timeout=2s", "--set=segment-bytes=4M", "--set=log-bytes=8M"}});
  cluster.activate();
  cluster.wait_streaming();
}

TEST_CASE("rewind: a killed primary comes back by itself and keeps what only it had") {
  Cluster cluster(3);
  begin_async(cluster);
  NbdClient client(cluster.uri());
  client.write(0, filled(1 << 20, 0x11));
  client.flush();
  cluster.wait_streaming();
  wait_until("all have it", Millis(30'000), [&] {
    return std::ranges::all_of(cluster.volume("a").at("replicas"), [](const json& replica) {
      return replica.at("lag_bytes") == 0 && replica.at("durable") == replica.at("sent");
    });
  });
  write_alone(cluster, client);
  kill_first(cluster);
  fail_over(cluster, "b");
  NbdClient moved(cluster.uri());
  std::vector<std::byte> read(block_bytes);
  moved.read(8 * block_bytes, read);
  CHECK(read == filled(block_bytes, 0x11));
  moved.write(9 * block_bytes, filled(block_bytes, 0xb1));  // a has something else there
  moved.write(20 * block_bytes, filled(block_bytes, 0xb2));
  moved.flush();
  cluster.host("a").start();
  wait_in_sync(cluster);

  const json files = lost_files(cluster);
  REQUIRE(files.size() == 1);
  CHECK(files[0].at("host") == "a");
  CHECK(files[0].at("primary") == "b");
  CHECK(files[0].at("complete") == true);
  // Block 20 differs as well: a lacks what b has written there since.
  const std::vector<Kept> expected{{0, block_bytes},
                                   {8 * block_bytes, 2 * block_bytes},
                                   {20 * block_bytes, block_bytes},
                                   {5 << 20, block_bytes}};
  CHECK(ranges_of(cluster, "a", 1) == expected);
  CHECK(extracted(cluster, "a", 0, block_bytes) == filled(block_bytes, 0));
  CHECK(extracted(cluster, "a", 8 * block_bytes, 2 * block_bytes) == filled(2 * block_bytes, 0xa1));
  CHECK(extracted(cluster, "a", 5 << 20, block_bytes) == filled(block_bytes, 0xa2));
  CHECK(cluster.ctl_ok({"lost-writes", "vm1"}).out.find("kept") != std::string::npos);

  cluster.stop_and_compare();
  const Finished refused = cluster.ctl({"delete", "vm1"});
  CHECK(refused.exit_code == 3);
  CHECK_MESSAGE(refused.err.find("a: 1 file(s) of lost writes") != std::string::npos,
                refused.text());
}

TEST_CASE("rewind: a replica whose tail is longer comes back by itself and keeps the tail") {
  Cluster cluster(3);
  begin_async(cluster);
  NbdClient client(cluster.uri());
  client.write(0, filled(1 << 20, 0x11));
  client.flush();
  wait_in_sync(cluster);
  // Only b hears the next write; then c takes over without it.
  cluster.host("c").kill9();
  client.write(3 * block_bytes, filled(block_bytes, 0xa3));
  client.flush();
  const auto sent = cluster.volume("a").at("history").at("sequence").get<std::uint64_t>();
  wait_until("b has it", Millis(30'000), [&] {
    return cluster.volume("b").at("replica").at("durable").get<std::uint64_t>() >= sent;
  });
  const pid_t exporter = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(exporter, SIGKILL);
  cluster.host("c").start();
  wait_until("c has taken over", Millis(60'000), [&] {
    return cluster.ctl({"failover", "vm1", "--to=c", "--force"}).exit_code == 0;
  });
  cluster.host("a").start();
  wait_in_sync(cluster);
  const json files = lost_files(cluster);
  REQUIRE(files.size() == 2);  // a had it, too
  for (const char* host : {"a", "b"})
    CHECK(ranges_of(cluster, host, 1) == std::vector<Kept>{{3 * block_bytes, block_bytes}});
  CHECK(extracted(cluster, "b", 3 * block_bytes, block_bytes) == filled(block_bytes, 0xa3));
  cluster.stop_and_compare();
}

TEST_CASE("rewind: without space to keep it nothing is replaced, and it goes on when there is") {
  Cluster cluster(0);
  const std::string mount = cluster.directory() + "/small";
  const SmallDisk small(mount, 24 << 20);
  for (const char* name : {"a", "b", "c"}) {
    HostOptions options;
    options.name = name;
    options.directory = cluster.directory() + "/" + name;
    if (*name == 'a') options.state_directory = mount + "/state";
    cluster.add_host(options);
  }
  begin_async(cluster);
  NbdClient client(cluster.uri());
  client.write(0, filled(1 << 20, 0x11));
  client.flush();
  wait_in_sync(cluster);
  const std::string image = cluster.image_path("a");
  write_alone(cluster, client);
  kill_first(cluster);
  fail_over(cluster, "b");
  const std::string before = cluster.directory() + "/before.raw";
  std::filesystem::copy_file(image, before);
  const std::string ballast = mount + "/ballast";
  // Nothing is rewound before the disk is full.
  const pid_t primary = cluster.export_pid();
  pause_process(primary);
  cluster.host("a").start();
  {
    // More than is to be kept, but a host needs it for its state files.
    const Fd fd(::open(ballast.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    const auto left = std::filesystem::space(mount).available;
    REQUIRE(left > (4U << 20));
    REQUIRE(::fallocate(fd.get(), 0, 0, static_cast<off_t>(left - (3U << 20))) == 0);
  }
  REQUIRE(::kill(primary, SIGCONT) == 0);
  wait_until("it says what is missing", Millis(60'000), [&] {
    return cluster.ctl({"status", "vm1"}).out.find("no space to keep what only this host has") !=
           std::string::npos;
  });
  CHECK(files_difference(image, before) == "");
  CHECK(lost_files(cluster).empty());
  std::filesystem::remove(ballast);
  wait_in_sync(cluster);
  CHECK(ranges_of(cluster, "a", 1).size() == 3);
  cluster.stop_and_compare();
}

}  // namespace
}  // namespace replicad::e2e
