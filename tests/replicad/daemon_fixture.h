#pragma once
// Tests of the daemon: temporary directories, replicad in this process or as a process of its own,
// its control API.

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <httplib.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/store/volume_state.h"
#include "io/file.h"
#include "replicad/daemon.h"
#include "replicad/peer_client.h"
#include "tests/replicad/agent_peer.h"

namespace replicad {

inline constexpr const char* fixture_uuid = "01234567-89ab-cdef-0123-456789abcdef";

/// Asks `condition` until it holds. False after 20 s.
inline bool eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    ::poll(nullptr, 0, 5);
  }
  return true;
}

class DaemonDir {
 public:
  DaemonDir() {
    std::string pattern = "/tmp/replicad-test-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  DaemonDir(const DaemonDir&) = delete;
  DaemonDir& operator=(const DaemonDir&) = delete;
  ~DaemonDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string file_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// One host: its directories, and replicad in this process. `behaviour`: of the fake nbdkit.
class TestHost {
 public:
  using json = nlohmann::json;

  explicit TestHost(std::string name, const std::string& behaviour = "serve") {
    options_.host = std::move(name);
    options_.state_dir = dir_.path() + "/state";
    options_.image_dir = dir_.path() + "/images";
    options_.run_dir = dir_.path() + "/run";
    options_.listen = "127.0.0.1:0";
    options_.control = "127.0.0.1:0";
    options_.transport = "plaintext";
    options_.nbdkit = FAKE_NBDKIT;
    options_.plugin = behaviour;
    options_.log_level = LogLevel::error;
    start();
  }
  TestHost(const TestHost&) = delete;
  TestHost& operator=(const TestHost&) = delete;
  ~TestHost() {
    kill_exports();
    stop();
  }

  void start(GivenSockets given = {}) {
    set_log_level(LogLevel::error);
    auto daemon = Daemon::start(options_, std::move(given));
    REQUIRE_MESSAGE(daemon.has_value(), (daemon ? "" : daemon.error().message));
    daemon_ = std::move(*daemon);
    // The same ports after a restart: others know them.
    options_.listen = daemon_->stream_address();
    options_.control = daemon_->control_address();
  }
  void stop() { daemon_.reset(); }
  void restart() {
    stop();
    start();
  }

  [[nodiscard]] const std::string& name() const { return options_.host; }
  Options& options() { return options_; }
  [[nodiscard]] std::string dir() const { return dir_.path(); }
  [[nodiscard]] std::string run_file(const std::string& file) const {
    return options_.run_dir + "/" + file;
  }
  [[nodiscard]] std::string state_file(const std::string& volume) const {
    return options_.state_dir + "/volumes/" + volume + "/state";
  }
  /// What is durable.
  [[nodiscard]] VolumeState disk_state(const std::string& volume) const {
    const auto state = decode_volume_state(file_text(state_file(volume)));
    REQUIRE(state.has_value());
    return *state;
  }

  /// A request over the unix socket; the body as it is.
  [[nodiscard]] PeerAnswer ask_raw(const std::string& method,
                                   const std::string& path,
                                   const std::string& body) const {
    httplib::Client client(options_.control_socket(), 80);
    client.set_address_family(AF_UNIX);
    client.set_read_timeout(std::chrono::seconds(60));
    httplib::Request request;
    request.method = method;
    request.path = path;
    request.body = body;
    request.headers = {{"Host", "replicad"}};
    const httplib::Result result = client.send(request);
    REQUIRE_MESSAGE(static_cast<bool>(result), "no answer to ", method, " ", path);
    return PeerAnswer{result->status, json::parse(result->body, nullptr, false)};
  }
  [[nodiscard]] PeerAnswer ask(const std::string& method,
                               const std::string& path,
                               const json& body = json::object()) const {
    return ask_raw(method, path, method == "GET" ? std::string() : body.dump());
  }
  [[nodiscard]] json get(const std::string& volume) const {
    return ask("GET", "/v1/volumes/" + volume).body;
  }
  [[nodiscard]] PeerAnswer post(const std::string& volume,
                                const std::string& verb,
                                const json& body = json::object()) const {
    return ask("POST", "/v1/volumes/" + volume + "/" + verb, body);
  }
  [[nodiscard]] bool shows(const std::string& volume,
                           const std::string& field,
                           const json& value) const {
    const json description = get(volume);
    return description.contains(field) && description[field] == value;
  }
  [[nodiscard]] json member() const {
    return {{"host", name()}, {"stream", options_.listen}, {"control", options_.control}};
  }

  /// Requests that the fake plugin of `volume` has had, in order.
  /// What was asked of the plugin; what it is told of voters comes at any time and is left out.
  [[nodiscard]] std::vector<json> plugin_requests(const std::string& volume) const {
    std::vector<json> requests;
    std::istringstream lines(file_text(run_file(volume + ".ops")));
    for (std::string line; std::getline(lines, line);) {
      json request = json::parse(line);
      if (request.at("op") != "voter") requests.push_back(std::move(request));
    }
    return requests;
  }
  [[nodiscard]] std::vector<std::string> plugin_ops(const std::string& volume) const {
    std::vector<std::string> ops;
    for (const json& request : plugin_requests(volume))
      ops.push_back(request.at("op"));
    return ops;
  }
  [[nodiscard]] json last_plugin_request(const std::string& volume) const {
    const auto requests = plugin_requests(volume);
    return requests.empty() ? json() : requests.back();
  }

  Result<AgentPeer> connect_agent() const { return AgentPeer::connect(options_.agent_socket()); }

 private:
  /// Exports outlive replicad: the tests' ones must not.
  void kill_exports() const {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(options_.run_dir, ignored)) {
      if (entry.path().extension() != ".pid") continue;
      const int pid = std::atoi(file_text(entry.path().string()).c_str());
      const std::string command = file_text(fmt::format("/proc/{}/cmdline", pid));
      if (pid > 1 && command.find(dir_.path()) != std::string::npos) ::kill(pid, SIGKILL);
    }
  }

  DaemonDir dir_;
  Options options_;
  std::unique_ptr<Daemon> daemon_;
};

inline nlohmann::json create_body(const std::string& volume,
                                  const std::string& primary,
                                  const std::vector<nlohmann::json>& members) {
  nlohmann::json in_sync = nlohmann::json::array();
  for (const auto& member : members)
    in_sync.push_back(member.at("host"));
  return {{"name", volume},
          {"uuid", fixture_uuid},
          {"primary", primary},
          {"disks", {{{"name", "vda"}, {"bytes", 1 * mib}, {"adopt", nullptr}}}},
          {"members", members},
          {"settings", {{"mode", "sync"}, {"log_bytes", 8 * mib}, {"segment_bytes", 4 * mib}}},
          {"consistent", true},
          {"in_sync", in_sync}};
}

/// Creates volume "vm1" on all `hosts`; the first is the primary.
inline void create_volume(const std::vector<TestHost*>& hosts) {
  std::vector<nlohmann::json> members;
  members.reserve(hosts.size());
  for (const TestHost* host : hosts)
    members.push_back(host->member());
  for (const TestHost* host : hosts) {
    const PeerAnswer made =
        host->ask("POST", "/v1/volumes", create_body("vm1", hosts.front()->name(), members));
    REQUIRE_MESSAGE(made.ok(), made.body.dump());
  }
}

/// A program that is started, and ended by the test at the latest.
class ChildProgram {
 public:
  explicit ChildProgram(std::vector<std::string> arguments, const std::string& output) {
    std::vector<char*> pointers;
    pointers.reserve(arguments.size() + 1);
    for (std::string& argument : arguments)
      pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(
        &actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::posix_spawn_file_actions_adddup2(&actions, 1, 2);
    ::posix_spawn(&pid_, pointers[0], &actions, nullptr, pointers.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
  }
  ChildProgram(const ChildProgram&) = delete;
  ChildProgram& operator=(const ChildProgram&) = delete;
  ~ChildProgram() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }
  /// Exit status, -1 if it was killed by a signal, -2 if it does not end within 20 s.
  int wait() {
    int status = 0;
    const bool ended = eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; });
    if (!ended) return -2;
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
};

}  // namespace replicad
