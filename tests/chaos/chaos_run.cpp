#include "tests/chaos/chaos_run.h"

#include <algorithm>
#include <iostream>
#include <thread>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace replicad::e2e {

namespace {

constexpr std::uint64_t disk_size = 24 * mib_bytes;
/// Image, state, and a log of 16 MiB fit; a full disk is then one that something else fills.
constexpr std::uint64_t file_system_size = 192 * mib_bytes;
constexpr std::uint64_t ring_size = 16 * mib_bytes;
constexpr Millis recovery_limit(240'000);
constexpr Millis command_limit(40'000);
/// For building, recovery and the checks, beside what was asked for.
constexpr std::chrono::seconds around(900);

}  // namespace

ChaosRun::ChaosRun(const ChaosOptions& options)
    : options_(options),
      random_(options.seed),
      hosts_({"a", "b", "c", "d", "e"}),
      copies_({"a", "b", "c", "d"}),
      world_(dir_.path(), hosts_, file_system_size),
      cluster_(0, options.length + around) {}

void ChaosRun::say(const std::string& text) {
  const auto at = std::chrono::duration_cast<Millis>(Clock::now() - began_).count();
  std::cout << fmt::format("[{:7.2f}] {}", static_cast<double>(at) / 1000.0, text) << std::endl;
}

std::string ChaosRun::any_host() {
  return hosts_[draw(hosts_.size())];
}

std::string ChaosRun::any_copy() {
  return copies_[draw(copies_.size())];
}

std::string ChaosRun::counts() const {
  std::vector<std::string> parts;
  for (const auto& [what, count] : counts_)
    parts.push_back(fmt::format("{} {}", count, what));
  return fmt::format("{}", fmt::join(parts, ", "));
}

void ChaosRun::run() {
  start_hosts();
  create_volume();
  load_ = std::make_unique<Load>(
      cluster_,
      LoadOptions{.disks = {{"vda", disk_size}},
                  .writers_per_disk = 4,
                  .seed = options_.seed,
                  .write_bytes_max = 32 << 10,
                  .reconnect_limit = options_.length + around,
                  // In async a term may lack what was in the ring of the one before.
                  .lost_bytes_max = options_.mode == "async" ? ring_size : 0});
  load_->start();
  load_->wait_answered(50);
  rage();
  recover();
  say("stopping the guest");
  load_->stop();
  check_at_rest();
  check_each_promoted();
  counts_["requests answered"] = static_cast<unsigned>(load_->answered());
  if (options_.mode != "async") return;
  counts_["answered writes lost"] = static_cast<unsigned>(load_->losses().lost_writes());
  counts_["bytes lost"] = static_cast<unsigned>(load_->losses().lost_bytes());
}

void ChaosRun::start_hosts() {
  for (const std::string& host : hosts_) {
    cluster_.add_host({.name = host,
                       .directory = world_.disk(host),
                       .image_directory = "",
                       .state_directory = "",
                       .arguments = {"--plaintext-beyond-loopback=yes"},
                       .launcher = world_.launcher(host),
                       .address = world_.address(host)});
  }
}

void ChaosRun::create_volume() {
  cluster_.create({.mode = options_.mode,
                   .members = copies_,
                   .disk_bytes = {disk_size},
                   .create_options = {"--witness=e",
                                      "--overcommit",
                                      "--autostart",
                                      "--set=ack-timeout=1s",
                                      "--set=log=16M",
                                      "--set=segment=4M",
                                      fmt::format("--set=ring={}", ring_size)}});
  cluster_.activate();
  cluster_.wait_streaming("vm1", {"b", "c", "d"});
}

void ChaosRun::rage() {
  const auto end = Clock::now() + options_.length;
  auto next_fault = Clock::now();
  while (Clock::now() < end) {
    end_faults(false);
    if (Clock::now() >= next_fault) {
      inject();
      next_fault = Clock::now() + Millis(300 + draw(1700));
    }
    operate();
    load_->wait_answered(0);  // throws what a writer ran into
    std::this_thread::sleep_for(Millis(50));
  }
}

/// Faults end; then everything must become whole, with no more help than an operator's.
void ChaosRun::recover() {
  say("the faults end");
  end_faults(true);
  std::string last;
  wait_until("the volume is whole again", recovery_limit, [&] {
    operate();
    load_->wait_answered(0);
    const auto found = cluster_.find_export("vm1", "vda");
    if (!found) return false;
    const json view = cluster_.volume(found->host);
    if (view.at("in_sync").size() != copies_.size()) return false;
    return std::ranges::all_of(view.at("replicas"), [](const json& replica) {
      return replica.at("state") == "streaming" && replica.at("in_sync") == true;
    });
  });
  load_->wait_answered(50, recovery_limit);
}

void ChaosRun::check_at_rest() {
  say("comparing every image with what was answered");
  load_->check_through_nbd();
  cluster_.deactivate();
  const std::string primary = cluster_.primary_host();
  std::vector<std::string> replicas = copies_;
  std::erase(replicas, primary);
  cluster_.wait_applied("vm1", replicas);
  load_->check_images(cluster_);
}

void ChaosRun::check_each_promoted() {
  cluster_.activate();
  const std::string first = cluster_.primary_host();
  for (const std::string& host : copies_) {
    if (host == first) continue;
    cluster_.wait_streaming("vm1", {host});
    cluster_.ctl_ok({"switchover", "vm1", "--to=" + host});
    load_->check_through_nbd();
    say("read through NBD on " + host);
  }
}

// --- the operator

void ChaosRun::operate() {
  follow_guest();
  const auto now = Clock::now();
  const auto unserved = std::chrono::duration_cast<Millis>(now - served_at_);
  if (unserved > Millis(1500)) {
    fail_over();
    served_at_ = Clock::now();  // the next attempt comes later
  }
  if (now - tidied_at_ > std::chrono::seconds(10)) {
    remove_lost_writes();
    tidied_at_ = Clock::now();
  }
}

/// What rewinds keep would fill the file systems.
void ChaosRun::remove_lost_writes() {
  const Finished list = cluster_.ctl({"lost-writes", "vm1", "-o", "json"}, command_limit);
  const json found = json::parse(list.out, nullptr, false);
  if (!found.is_object()) return;
  for (const json& file : found.value("files", json::array())) {
    const Finished done = cluster_.ctl({"lost-writes",
                                        "vm1",
                                        "--host=" + file.at("host").get<std::string>(),
                                        fmt::format("--file={}", file.at("number").get<int>()),
                                        "--remove",
                                        "--force"},
                                       command_limit);
    if (done.exit_code == 0) note("files of lost writes removed");
  }
}

/// The guest runs where the volume is served in the latest term.
void ChaosRun::follow_guest() {
  const auto found = cluster_.find_export("vm1", "vda");
  if (!found) return;
  served_at_ = Clock::now();
  load_->move_to(found->epoch);
}

void ChaosRun::switch_over() {
  const std::string to = any_copy();
  const Finished done =
      cluster_.ctl({"switchover", "vm1", "--to=" + to, "--timeout=10"}, command_limit);
  note(done.exit_code == 0 ? "switchovers" : "switchovers refused");
  say(fmt::format("switchover to {}: exit code {}", to, done.exit_code));
}

void ChaosRun::fail_over() {
  const Finished done = cluster_.ctl({"failover", "vm1"}, command_limit);
  note(done.exit_code == 0 ? "failovers" : "failovers refused");
  say(fmt::format("failover: exit code {} {}", done.exit_code, done.err.substr(0, 200)));
  follow_guest();
}

}  // namespace replicad::e2e
