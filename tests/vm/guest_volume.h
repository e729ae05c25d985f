#pragma once
// A volume that has a guest's root file system, and what a guest needs to run on it.

#include <string>
#include <vector>

#include "tests/e2e/harness.h"
#include "tests/vm/guest.h"

namespace replicad::vm {

using e2e::Cluster;
using e2e::HarnessError;
using e2e::json;
using e2e::read_text;
using e2e::wait_until;
using Clock = std::chrono::steady_clock;

constexpr Millis scenario_limit(1'500'000);
constexpr Millis patience(120'000);
constexpr std::uint64_t root_bytes = 192 << 20;

/// vm1, primary a, with the guest's root file system on its first disk; served.
void install(Cluster& cluster,
             const std::vector<std::string>& members,
             const std::vector<std::string>& options = {},
             const std::vector<std::uint64_t>& more_disks = {});
/// QEMU's options for the disks of vm1, as they are on `host`.
std::vector<std::string> disk_arguments(Cluster& cluster, const std::string& host);
/// An export that has ended sooner is started again later and later (tests/e2e/endpoint_test.cpp).
void wait_served_for_a_while();
/// The volume is stopped: every host's image is a clean file system.
void check_file_systems(Cluster& cluster);

}  // namespace replicad::vm
