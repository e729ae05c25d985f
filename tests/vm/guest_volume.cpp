#include "tests/vm/guest_volume.h"

#include <doctest/doctest.h>

namespace replicad::vm {

void install(Cluster& cluster,
             const std::vector<std::string>& members,
             const std::vector<std::string>& options,
             const std::vector<std::uint64_t>& more_disks) {
  std::vector<std::uint64_t> disks = {root_bytes};
  disks.insert(disks.end(), more_disks.begin(), more_disks.end());
  cluster.create({.members = members, .disk_bytes = disks, .create_options = options});
  cluster.activate();
  const std::string root = std::string(RD_GUEST) + "/root.raw";
  cluster.ctl_ok({"import", "vm1", root, "--disk", "vda"}, patience);
  cluster.ctl_ok({"wait", "vm1", "--for", "in-sync", "--timeout", "120"}, patience);
}

std::vector<std::string> disk_arguments(Cluster& cluster, const std::string& host) {
  const std::string serving = cluster.host(cluster.primary_host()).run_directory();
  const json info = cluster.ctl_json({"attach-info", "vm1"});
  std::vector<std::string> arguments;
  for (const json& disk : info.at("disks")) {
    for (std::string word : disk.at("qemu").get<std::vector<std::string>>()) {
      // Real hosts have the same path.
      if (const auto at = word.find(serving); at != std::string::npos)
        word.replace(at, serving.size(), cluster.host(host).run_directory());
      arguments.push_back(std::move(word));
    }
  }
  return arguments;
}

void wait_served_for_a_while() {
  constexpr Millis lives_at_least(3'200);
  const auto began = Clock::now();
  wait_until("it has served for a while", patience, [&] {
    return Clock::now() - began >= lives_at_least;
  });
}

void check_file_systems(Cluster& cluster) {
  for (const std::string& host : cluster.host_names()) {
    const e2e::Finished checked = e2e::run({"e2fsck", "-fn", cluster.image_path(host)},
                                           {.limit = patience, .environment = {}});
    CHECK_MESSAGE(checked.exit_code == 0, host, ": ", checked.text());
  }
}

}  // namespace replicad::vm
