#include "tests/chaos/small_world.h"

#include <algorithm>
#include <filesystem>

#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tests/e2e/process.h"

namespace replicad::e2e {

namespace fs = std::filesystem;

namespace {

constexpr unsigned subnets = 250;

void ip(const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {"ip"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  run_ok(all);
}

/// For taking down, and for undoing what may be undone already.
void try_ip(const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {"ip"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  static_cast<void>(run(all));
}

}  // namespace

SmallWorld::SmallWorld(std::string directory,
                       const std::vector<std::string>& hosts,
                       std::uint64_t disk_bytes)
    : directory_(std::move(directory)),
      hosts_(hosts),
      id_(fmt::format("rd{}", ::getpid())),
      subnet_(static_cast<unsigned>(::getpid()) % subnets) {
  if (::geteuid() != 0)
    throw HarnessError("chaos needs root: it makes network namespaces and mounts file systems");
  try {
    build_network();
    for (const std::string& host : hosts_)
      build_disk(host, disk_bytes);
  } catch (const HarnessError& error) {
    take_down();
    throw HarnessError(
        fmt::format("chaos needs `ip netns`, veth and bridge interfaces, loop devices and "
                    "mkfs.ext4, which a container may forbid: {}",
                    error.what()));
  }
}

SmallWorld::~SmallWorld() {
  take_down();
}

void SmallWorld::build_network() {
  ip({"link", "add", id_, "type", "bridge"});
  ip({"addr", "add", fmt::format("10.213.{}.254/24", subnet_), "dev", id_});
  ip({"link", "set", id_, "up"});
  for (const std::string& host : hosts_) {
    const std::string space = space_of(host);
    ip({"netns", "add", space});
    ip({"link", "add", link_of(host), "type", "veth", "peer", "name", "eth0", "netns", space});
    ip({"link", "set", link_of(host), "master", id_, "up"});
    ip({"-n", space, "addr", "add", address(host) + "/24", "dev", "eth0"});
    ip({"-n", space, "link", "set", "lo", "up"});
    ip({"-n", space, "link", "set", "eth0", "up"});
  }
}

void SmallWorld::build_disk(const std::string& host, std::uint64_t bytes) {
  const std::string image = directory_ + "/" + host + ".ext4";
  run_ok({"truncate", "-s", std::to_string(bytes), image});
  run_ok({"mkfs.ext4", "-q", "-F", "-m", "0", image});
  fs::create_directories(disk(host));
  run_ok({"mount", "-o", "loop", image, disk(host)});
}

void SmallWorld::take_down() {
  for (const std::string& host : hosts_) {
    try_ip({"netns", "del", space_of(host)});
    try_ip({"link", "del", link_of(host)});
    ::umount2(disk(host).c_str(), MNT_DETACH);
  }
  try_ip({"link", "del", id_});
}

std::size_t SmallWorld::index_of(const std::string& host) const {
  const auto found = std::ranges::find(hosts_, host);
  if (found == hosts_.end()) throw HarnessError("no host " + host);
  return static_cast<std::size_t>(found - hosts_.begin());
}

std::vector<std::string> SmallWorld::launcher(const std::string& host) const {
  return {"ip", "netns", "exec", space_of(host)};
}

std::string SmallWorld::address(const std::string& host) const {
  return fmt::format("10.213.{}.{}", subnet_, index_of(host) + 1);
}

std::string SmallWorld::disk(const std::string& host) const {
  return directory_ + "/" + host;
}

void SmallWorld::isolate(const std::string& host) {
  ip({"link", "set", link_of(host), "down"});
}

void SmallWorld::reconnect(const std::string& host) {
  ip({"link", "set", link_of(host), "up"});
}

void SmallWorld::cut(const std::string& from, const std::string& to) {
  ip({"-n", space_of(from), "route", "replace", "blackhole", address(to) + "/32"});
}

void SmallWorld::mend(const std::string& from, const std::string& to) {
  try_ip({"-n", space_of(from), "route", "del", "blackhole", address(to) + "/32"});
}

void SmallWorld::fill_disk(const std::string& host, std::uint64_t left_bytes) {
  struct statvfs room {};
  if (::statvfs(disk(host).c_str(), &room) != 0) throw HarnessError("statvfs " + disk(host));
  const std::uint64_t free_bytes = std::uint64_t{room.f_bavail} * room.f_frsize;
  if (free_bytes <= left_bytes) return;
  // What is taken meanwhile is no matter.
  static_cast<void>(
      run({"fallocate", "-l", std::to_string(free_bytes - left_bytes), disk(host) + "/hog"}));
}

void SmallWorld::free_disk(const std::string& host) {
  std::error_code ignored;
  fs::remove(disk(host) + "/hog", ignored);
}

}  // namespace replicad::e2e
