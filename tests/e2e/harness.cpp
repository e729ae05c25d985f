#include "tests/e2e/harness.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>
#include <span>
#include <thread>

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl/api_client.h"
#include "io/fd.h"
#include "tests/e2e/sanitizer.h"

namespace replicad::e2e {

namespace fs = std::filesystem;

const std::string replicad_program = RD_REPLICAD;
const std::string replicactl_program = RD_REPLICACTL;
const std::string plugin_path = RD_PLUGIN;

namespace {

/// Whether an assertion of the running test case has failed; what prints logs asks it.
std::atomic<bool> test_failed{false};

class FailureListener : public doctest::IReporter {
 public:
  explicit FailureListener(const doctest::ContextOptions& /*options*/) {}
  void report_query(const doctest::QueryData& /*data*/) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& /*stats*/) override {}
  void test_case_start(const doctest::TestCaseData& /*data*/) override { test_failed = false; }
  void test_case_reenter(const doctest::TestCaseData& /*data*/) override {}
  void test_case_end(const doctest::CurrentTestCaseStats& /*stats*/) override {}
  void test_case_exception(const doctest::TestCaseException& /*error*/) override {
    test_failed = true;
  }
  void subcase_start(const doctest::SubcaseSignature& /*subcase*/) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData& data) override {
    if (data.m_failed) test_failed = true;
  }
  void log_message(const doctest::MessageData& data) override {
    if ((data.m_severity & doctest::assertType::is_warn) == 0) test_failed = true;
  }
  void test_case_skipped(const doctest::TestCaseData& /*data*/) override {}
};

DOCTEST_REGISTER_LISTENER("failure", 1, FailureListener);

/// Ends a test that hangs, with the logs and without leaving processes behind, before ctest kills
/// it blindly.
class Watchdog {
 public:
  Watchdog(const Cluster& cluster, Millis limit)
      : thread_([this, &cluster, limit] { watch(cluster, limit); }) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

 private:
  void watch(const Cluster& cluster, Millis limit) {
    std::unique_lock lock(mutex_);
    if (wake_.wait_for(lock, limit, [this] { return done_; })) return;
    std::cerr << "e2e: the test hangs; giving up after " << limit.count() << " ms\n";
    cluster.print_logs();
    kill_processes_with(cluster.directory() + "/");
    std::error_code ignored;
    fs::remove_all(cluster.directory(), ignored);
    ::_exit(1);
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::thread thread_;
};

std::unique_ptr<Watchdog> watchdog;

}  // namespace

Host::Host(HostOptions options)
    : options_(std::move(options)),
      stream_(options_.address + ":0"),
      control_(options_.address + ":0") {
  if (options_.image_directory.empty()) options_.image_directory = options_.directory + "/images";
  if (options_.state_directory.empty()) options_.state_directory = options_.directory + "/state";
  for (const std::string& dir :
       {options_.image_directory, options_.state_directory, run_directory()}) {
    fs::create_directories(dir);
  }
}

std::string Host::log() const {
  return read_text(options_.directory + "/replicad.log");
}

void Host::launch() {
  std::vector<std::string> arguments = options_.launcher;
  const std::string& build = options_.build;
  const std::vector<std::string> own = {
      build.empty() ? replicad_program : build + "/replicad/replicad",
      "--host=" + options_.name,
      "--state-dir=" + options_.state_directory,
      "--image-dir=" + options_.image_directory,
      "--run-dir=" + run_directory(),
      "--listen=" + stream_,
      "--control=" + control_,
      "--transport=plaintext",
      "--nbdkit=" + (options_.nbdkit.empty() ? nbdkit_program() : options_.nbdkit),
      "--plugin=" + (build.empty() ? plugin_path : build + "/nbd-plugin/nbdkit-replica-plugin.so")};
  arguments.insert(arguments.end(), own.begin(), own.end());
  arguments.insert(arguments.end(), options_.arguments.begin(), options_.arguments.end());
  const std::string log_path = options_.directory + "/replicad.log";
  process_ = std::make_unique<Process>(arguments, log_path, log_path);
}

void Host::wait_ready() {
  wait_until("replicad of host " + name() + " answers", Millis(20'000), [this] {
    if (!process_->running()) {
      throw HarnessError(fmt::format("replicad of host {} ended:\n{}", name(), log()));
    }
    const auto answer = get("/v1/host");
    if (!answer) return false;
    stream_ = answer->at("stream").get<std::string>();
    control_ = answer->at("control").get<std::string>();
    return true;
  });
}

void Host::start() {
  launch();
  wait_ready();
}

int Host::stop() {
  process_->signal(SIGTERM);
  return process_->wait(Millis(30'000));
}

void Host::kill9() {
  process_->kill9();
}

std::optional<json> Host::get(const std::string& path) const {
  auto answer = ctl::call_api("unix:" + run_directory() + "/control.sock",
                              ApiRequest{"GET", path, nullptr},
                              ctl::Timeouts{1000, 3000});
  if (!answer.body) return std::nullopt;
  return std::move(*answer.body);
}

Cluster::Cluster(std::size_t hosts, Millis limit) {
  collect_sanitizer_reports(dir_.path());
  watchdog = std::make_unique<Watchdog>(*this, limit * sanitizer_slowdown);
  for (std::size_t i = 0; i < hosts; ++i) {
    const std::string name(1, static_cast<char>('a' + i));
    add_host({.name = name,
              .directory = dir_.path() + "/" + name,
              .image_directory = "",
              .state_directory = "",
              .arguments = {},
              .launcher = {}});
  }
}

Cluster::~Cluster() {
  if (test_failed || std::uncaught_exceptions() > 0) print_logs();
  for (auto& [name, host] : hosts_) {
    if (host->running()) host->kill9();
  }
  kill_processes_with(dir_.path() + "/");
  for (auto& [name, host] : hosts_)
    kill_processes_with(host->directory() + "/");
  watchdog.reset();
  const std::string reports = sanitizer_reports(dir_.path());
  if (!reports.empty()) ADD_FAIL_CHECK_AT(__FILE__, __LINE__, reports);
}

Host& Cluster::host(const std::string& name) {
  return *hosts_.at(name);
}

Host& Cluster::add_host(HostOptions options, bool start) {
  const std::string name = options.name;
  auto& host = hosts_[name];
  host = std::make_unique<Host>(std::move(options));
  if (start) host->start();
  return *host;
}

std::vector<std::string> Cluster::host_names() const {
  std::vector<std::string> names;
  for (const auto& [name, host] : hosts_)
    names.push_back(name);
  return names;
}

std::string Cluster::hosts_option() const {
  std::vector<std::string> parts;
  for (const auto& [name, host] : hosts_)
    parts.push_back(name + "=" + host->control());
  return fmt::format("{}", fmt::join(parts, ","));
}

Finished Cluster::ctl(const std::vector<std::string>& arguments, Millis limit) {
  std::vector<std::string> all = {replicactl_program, "--hosts=" + hosts_option()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return run(all, {.limit = limit, .environment = {}});
}

Finished Cluster::ctl_ok(const std::vector<std::string>& arguments, Millis limit) {
  Finished finished = ctl(arguments, limit);
  if (finished.exit_code != 0) {
    throw HarnessError(
        fmt::format("replicactl {}: {}", fmt::join(arguments, " "), finished.text()));
  }
  return finished;
}

json Cluster::ctl_json(std::vector<std::string> arguments, Millis limit) {
  arguments.insert(arguments.end(), {"-o", "json"});
  return json::parse(ctl_ok(arguments, limit).out);
}

void Cluster::create(const VolumeSpec& spec) {
  std::vector<std::string> sizes;
  for (const std::uint64_t bytes : spec.disk_bytes)
    sizes.push_back(std::to_string(bytes));
  std::vector<std::string> arguments = {"create",
                                        spec.name,
                                        fmt::format("--size={}", fmt::join(sizes, ",")),
                                        fmt::format("--on={}", fmt::join(spec.members, ",")),
                                        "--mode=" + spec.mode,
                                        "--primary=" + spec.members.front()};
  arguments.insert(arguments.end(), spec.create_options.begin(), spec.create_options.end());
  ctl_ok(arguments);
}

void Cluster::activate(const std::string& volume) {
  ctl_ok({"activate", volume});
}
void Cluster::deactivate(const std::string& volume) {
  ctl_ok({"deactivate", volume});
}

json Cluster::volume(const std::string& host, const std::string& volume) {
  auto answer = this->host(host).get("/v1/volumes/" + volume);
  if (!answer) throw HarnessError(fmt::format("host {} does not tell of volume {}", host, volume));
  return std::move(*answer);
}

std::optional<std::string> Cluster::serving_host(const std::string& volume) const {
  for (const auto& [name, host] : hosts_) {
    const auto answer = host->get("/v1/volumes/" + volume);
    if (answer && answer->value("role", "") == "primary" &&
        answer->value("state", "") == "serving") {
      return name;
    }
  }
  return std::nullopt;
}

std::string Cluster::primary_host(const std::string& volume) const {
  for (const auto& [name, host] : hosts_) {
    const auto answer = host->get("/v1/volumes/" + volume);
    if (answer && answer->value("role", "") == "primary") return name;
  }
  throw HarnessError("no host is the primary of " + volume);
}

std::optional<ServedDisk> Cluster::find_export(const std::string& volume,
                                               const std::string& disk) const {
  std::optional<ServedDisk> latest;
  for (const auto& [name, host] : hosts_) {
    const auto answer = host->get("/v1/volumes/" + volume);
    if (!answer || answer->value("role", "") != "primary") continue;
    const json exported = answer->value("export", json());
    if (answer->value("state", "") != "serving" || !exported.is_object()) continue;
    const json uris = exported.value("uris", json::object());
    const json& record = answer->at("vote").at("record");
    if (!uris.contains(disk) || record.at("primary") != name) continue;
    const ServedDisk found{name,
                           uris.at(disk).get<std::string>(),
                           record.at("epoch").at("number").get<std::uint64_t>(),
                           exported.value("pid", pid_t{0})};
    if (!latest || latest->epoch < found.epoch) latest = found;
  }
  return latest;
}

std::string Cluster::uri(const std::string& disk, const std::string& volume) {
  std::optional<ServedDisk> found;
  wait_until("some host serves " + volume + "/" + disk, Millis(20'000), [&] {
    found = find_export(volume, disk);
    return found.has_value();
  });
  return found->uri;
}

pid_t Cluster::export_pid(const std::string& volume) {
  return this->volume(primary_host(volume), volume).at("export").at("pid").get<pid_t>();
}

namespace {

std::vector<std::string> other_members(const json& volume) {
  std::vector<std::string> others;
  for (const json& member : volume.at("members")) {
    const auto host = member.at("host").get<std::string>();
    if (host != volume.at("primary").get<std::string>()) others.push_back(host);
  }
  return others;
}

bool streams(const json& primary, const std::string& replica) {
  for (const json& entry : primary.value("replicas", json::array())) {
    if (entry.value("host", "") == replica) {
      return entry.value("state", "") == "streaming" && entry.value("in_sync", false);
    }
  }
  return false;
}

}  // namespace

void Cluster::wait_streaming(const std::string& volume, std::vector<std::string> replicas) {
  const std::string primary = primary_host(volume);
  json last;
  if (replicas.empty()) replicas = other_members(this->volume(primary, volume));
  try {
    wait_until("replicas stream", Millis(60'000), [&] {
      last = this->volume(primary, volume);
      // What the plugin says of its replicas is up to half a second old; the recorded set is not.
      const json& in_sync = last.at("in_sync");
      return std::ranges::all_of(replicas, [&](const auto& host) {
        return streams(last, host) && std::ranges::find(in_sync, json(host)) != in_sync.end();
      });
    });
  } catch (const HarnessError& error) {
    throw HarnessError(fmt::format("{}: {}", error.what(), last.dump(1)));
  }
}

void Cluster::wait_applied(const std::string& volume, std::vector<std::string> replicas) {
  const json primary = this->volume(primary_host(volume), volume);
  const json history = primary.at("history");
  if (replicas.empty()) replicas = other_members(primary);
  for (const std::string& name : replicas) {
    json last;
    try {
      wait_until("host " + name + " has applied everything", Millis(60'000), [&] {
        last = this->volume(name, volume);
        const json& replica = last.at("replica");
        return replica.at("applied") == history.at("sequence") &&
               replica.at("applied_digest") == history.at("digest");
      });
    } catch (const HarnessError& error) {
      throw HarnessError(
          fmt::format("{}\nprimary: {}\nreplica: {}", error.what(), primary.dump(1), last.dump(1)));
    }
  }
}

std::string Cluster::image_path(const std::string& host,
                                const std::string& disk,
                                const std::string& volume) {
  const json answer = this->volume(host, volume);
  for (const json& entry : answer.at("disks")) {
    if (entry.at("name") == disk) return entry.at("path").get<std::string>();
  }
  throw HarnessError(fmt::format("host {}: volume {} has no disk {}", host, volume, disk));
}

std::uint64_t Cluster::copied_bytes() {
  return volume(primary_host()).at("counters").at("copied_bytes").get<std::uint64_t>();
}

std::string Cluster::image_differences(const std::string& volume) {
  const std::string primary = primary_host(volume);
  const json answer = this->volume(primary, volume);
  std::string differences;
  for (const json& disk : answer.at("disks")) {
    const auto name = disk.at("name").get<std::string>();
    for (const std::string& other : other_members(answer)) {
      const std::string found =
          files_difference(disk.at("path").get<std::string>(), image_path(other, name, volume));
      if (!found.empty()) {
        differences += fmt::format("{} of {} against {}: {}\n", name, other, primary, found);
      }
    }
  }
  return differences;
}

void Cluster::stop_and_compare(const std::string& volume) {
  deactivate(volume);
  wait_applied(volume);
  const std::string differences = image_differences(volume);
  if (!differences.empty()) throw HarnessError("images differ: " + differences);
}

void Cluster::print_logs() const {
  for (const auto& [name, host] : hosts_) {
    std::cerr << "==== replicad of host " << name << "\n" << host->log();
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(host->run_directory(), ignored)) {
      if (entry.path().extension() != ".log") continue;
      std::cerr << "==== " << entry.path().filename().string() << " of host " << name << "\n"
                << read_text(entry.path().string());
    }
  }
}

std::uint64_t allocated_bytes(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) throw HarnessError("cannot stat " + path);
  return static_cast<std::uint64_t>(info.st_blocks) * 512;
}

namespace {

std::uint64_t first_difference(std::span<const char> a, std::span<const std::byte> b) {
  const auto same = [](char x, std::byte y) { return static_cast<std::byte>(x) == y; };
  const auto [at, end] = std::mismatch(a.begin(), a.end(), b.begin(), same);
  return static_cast<std::uint64_t>(at - a.begin());
}

}  // namespace

std::string file_difference(const std::string& path, const std::vector<std::byte>& expected) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  std::uint64_t at = 0;
  while (at < expected.size()) {
    const std::size_t want = std::min<std::size_t>(buffer.size(), expected.size() - at);
    if (!file.read(buffer.data(), static_cast<std::streamsize>(want))) {
      return fmt::format("{} ends before byte {}", path, expected.size());
    }
    const auto part = std::span(expected).subspan(at, want);
    if (std::memcmp(buffer.data(), part.data(), want) != 0) {
      return fmt::format("{} differs at byte {}",
                         path,
                         at + first_difference(std::span(buffer).first(want), part));
    }
    at += want;
  }
  return {};
}

std::string files_difference(const std::string& a, const std::string& b) {
  const Fd file(::open(b.c_str(), O_RDONLY | O_CLOEXEC));
  const Fd other(::open(a.c_str(), O_RDONLY | O_CLOEXEC));
  const off_t bytes = ::lseek(file.get(), 0, SEEK_END);
  if (bytes < 0 || bytes != ::lseek(other.get(), 0, SEEK_END)) return "sizes differ";
  std::vector<std::byte> content(static_cast<std::size_t>(bytes));
  std::size_t at = 0;
  while (at < content.size()) {
    const ssize_t got =
        ::pread(file.get(), content.data() + at, content.size() - at, static_cast<off_t>(at));
    if (got <= 0) return "cannot read " + b;
    at += static_cast<std::size_t>(got);
  }
  return file_difference(a, content);
}

int free_port() {
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(socket.get(), generic, length) != 0 ||
      ::getsockname(socket.get(), generic, &length) != 0) {
    throw HarnessError("no free port");
  }
  return ntohs(address.sin_port);
}

SmallDisk::SmallDisk(std::string path, std::uint64_t bytes) : path_(std::move(path)) {
  fs::create_directories(path_);
  const std::string options = fmt::format("size={}", bytes);
  if (::mount("replicad-test", path_.c_str(), "tmpfs", 0, options.c_str()) != 0) {
    throw HarnessError("cannot mount a tmpfs (this test needs root)");
  }
}

SmallDisk::~SmallDisk() {
  ::umount2(path_.c_str(), MNT_DETACH);
}

}  // namespace replicad::e2e
