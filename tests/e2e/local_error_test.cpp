// The primary's own image fails: on-local-error.

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <optional>
#include <thread>

#include <doctest/doctest.h>

#include "tests/e2e/harness.h"
#include "tests/e2e/load.h"
#include "tests/e2e/nbd_client.h"

namespace replicad::e2e {
namespace {

constexpr std::uint64_t disk_size = 10 * mib_bytes;

/// Host a, the primary, has a file system on which the image does not fit beside a file that can be
/// removed; host b has room.
class FullPrimary {
 public:
  explicit FullPrimary(const std::string& policy)
      : cluster(0), small_(cluster.directory() + "/small", 16 * mib_bytes) {
    add("a", small_.path());
    add("b", "");
    cluster.create({.members = {"a", "b"},
                    .disk_bytes = {disk_size},
                    .create_options = {"--set=on-local-error=" + policy}});
    run_ok({"fallocate", "-l", "10M", hog()});
    cluster.activate();
    cluster.wait_streaming();
  }

  void make_room() const { std::filesystem::remove(hog()); }
  void wait_held() {
    json last;
    wait_until("the volume is held", Millis(60'000), [&] {
      last = cluster.volume("a");
      return last.at("state") == "held" && !last.at("error").is_null();
    });
    CHECK(last.at("error").at("code") == "no_space");
    CHECK(last.at("error").at("message").get<std::string>().find("vda.raw") != std::string::npos);
    CHECK(last.at("error").at("hint").get<std::string>().find("on-local-error=fail") !=
          std::string::npos);
  }

  Cluster cluster;

 private:
  [[nodiscard]] std::string hog() const { return small_.path() + "/hog"; }
  void add(const std::string& name, const std::string& image_directory) {
    cluster.add_host({.name = name,
                      .directory = cluster.directory() + "/" + name,
                      .image_directory = image_directory,
                      .state_directory = "",
                      .arguments = {},
                      .launcher = {}});
  }

  SmallDisk small_;
};

TEST_CASE("local error: the guest of a full primary waits, and goes on when there is room") {
  FullPrimary full("hold");
  Cluster& cluster = full.cluster;
  Load load(cluster, {.disks = {{"vda", disk_size}}, .zeroes = false});
  load.start();
  full.wait_held();
  // What cannot be written is not answered, and the replica stays where it is.
  CHECK(cluster.volume("a").at("in_sync").size() == 2);
  const Finished shown = cluster.ctl_ok({"status", "vm1"});
  CHECK_MESSAGE(shown.out.find("held") != std::string::npos, shown.out);
  CHECK_MESSAGE((shown.out + shown.err).find("No space left") != std::string::npos, shown.text());
  full.make_room();
  load.wait_answered(300);
  wait_until("it serves again", Millis(30'000), [&] {
    return cluster.volume("a").at("state") == "serving" &&
           cluster.volume("a").at("error").is_null();
  });
  load.stop();
  CHECK(load.reconnects() == 0);
  cluster.stop_and_compare();
  load.check_images(cluster);
}

TEST_CASE("local error: on-local-error=fail, set while the guest waits, gives it the error") {
  FullPrimary full("hold");
  Cluster& cluster = full.cluster;
  int error = 0;
  std::thread guest([&] {
    NbdClient client(cluster.uri());
    const std::vector<std::byte> block(mib_bytes, std::byte{0x33});
    try {
      for (std::uint64_t at = 0; at < disk_size; at += mib_bytes)
        client.write(at, block);
    } catch (const NbdError& failure) {
      error = failure.sys_errno;
    }
  });
  std::optional<std::string> trouble;
  try {
    full.wait_held();
    cluster.ctl_ok({"set", "vm1", "on-local-error=fail"});
  } catch (const HarnessError& failure) {
    trouble = failure.what();
    full.make_room();
  }
  guest.join();
  CHECK_MESSAGE(!trouble, trouble.value_or(""));
  CHECK(error == ENOSPC);
  // Nothing else has happened to the volume.
  CHECK(cluster.volume("a").at("settings").at("on_local_error") == "fail");
  cluster.stop_and_compare();
  CHECK(cluster.volume("a").at("clean") == true);
}

TEST_CASE("local error: a full primary moves away, and the write that waited is made there") {
  FullPrimary full("hold");
  Cluster& cluster = full.cluster;
  Load load(cluster, {.disks = {{"vda", disk_size}}, .zeroes = false});
  load.start();
  full.wait_held();
  cluster.ctl_ok({"switchover", "vm1", "--to=b"});
  load.wait_answered(200);
  CHECK(cluster.serving_host() == "b");
  full.make_room();
  wait_until("a follows", Millis(60'000), [&] {
    const json volume = cluster.volume("b");
    if (volume.at("in_sync").size() == 2) return true;
    cluster.ctl({"resync", "vm1", "--host=a", "--wait"}, Millis(60'000));
    return false;
  });
  load.wait_answered(100);
  load.stop();
  cluster.stop_and_compare();
  load.check_images(cluster);
}

TEST_CASE("local error: SIGTERM ends an export whose requests wait, cleanly") {
  FullPrimary full("hold");
  Cluster& cluster = full.cluster;
  const pid_t exporter = cluster.export_pid();
  std::thread guest([&] {
    NbdClient client(cluster.uri());
    const std::vector<std::byte> block(mib_bytes, std::byte{0x33});
    try {
      for (std::uint64_t at = 0; at < disk_size; at += mib_bytes)
        client.write(at, block);
    } catch (const NbdError&) {
      // Held requests fail when the server ends.
    }
  });
  try {
    full.wait_held();
  } catch (const HarnessError& failure) {
    FAIL_CHECK(failure.what());
  }
  ::kill(exporter, SIGTERM);
  guest.join();
  wait_until("the export has ended", Millis(30'000), [&] {
    const json volume = cluster.volume("a");
    return volume.at("export").is_null() && volume.at("state") == "stopped";
  });
  CHECK(cluster.volume("a").at("clean") == true);
  cluster.wait_applied();
  CHECK(cluster.image_differences() == "");
}

}  // namespace
}  // namespace replicad::e2e
