#pragma once
// Hosts of a test: real replicad processes on loopback, each with its own folders and ports, and
// what the tests ask of them. Whatever a cluster started ends with it; if the test failed, the
// daemons' logs are printed first. One cluster at a time; the methods are for the main thread, but
// for those marked "any thread".

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/e2e/process.h"
#include "tests/e2e/sanitizer.h"

namespace replicad::e2e {

using nlohmann::json;

constexpr std::uint64_t block_bytes = 4096;
constexpr std::uint64_t mib_bytes = 1 << 20;
/// For what takes seconds on an idle machine.
constexpr Millis patience(90'000);

/// Programs under test, from the build.
extern const std::string replicad_program;
extern const std::string replicactl_program;
extern const std::string plugin_path;

struct HostOptions {
  std::string name;
  std::string directory;  ///< state, images and run below it unless given
  std::string image_directory;
  std::string state_directory;
  std::vector<std::string> arguments;  ///< further options of replicad
  std::vector<std::string> launcher;   ///< put before the program
  std::string address = "127.0.0.1";   ///< its ports are there
  std::string nbdkit = {};             ///< started in place of nbdkit
  std::string build = {};  ///< folder of another build, whose replicad and plugin it runs
};

/// The daemon of one host.
class Host {
 public:
  explicit Host(HostOptions options);

  [[nodiscard]] const std::string& name() const { return options_.name; }
  [[nodiscard]] const std::string& directory() const { return options_.directory; }
  [[nodiscard]] const std::string& image_directory() const { return options_.image_directory; }
  [[nodiscard]] const std::string& state_directory() const { return options_.state_directory; }
  [[nodiscard]] std::string run_directory() const { return options_.directory + "/run"; }
  [[nodiscard]] std::string agent_socket() const { return run_directory() + "/agent.sock"; }
  [[nodiscard]] const std::string& stream() const { return stream_; }
  [[nodiscard]] const std::string& control() const { return control_; }
  [[nodiscard]] std::string log() const;
  [[nodiscard]] pid_t pid() const { return process_->pid(); }

  /// Starts it and waits until it answers. The first start takes free ports, later ones the same
  /// again.
  void start();
  /// What starts from now on is of the build in `folder`; "": of this one.
  void run_build(const std::string& folder) { options_.build = folder; }
  /// Starts it without waiting.
  void launch();
  void wait_ready();
  [[nodiscard]] bool running() { return process_ && process_->running(); }
  /// SIGTERM; the exit code.
  int stop();
  void kill9();
  void signal(int number) { process_->signal(number); }
  int wait(Millis limit) { return process_->wait(limit); }

  /// GET on the control socket; nullopt on any error. Any thread.
  [[nodiscard]] std::optional<json> get(const std::string& path) const;

 private:
  HostOptions options_;
  std::string stream_;
  std::string control_;
  std::unique_ptr<Process> process_;
};

struct DiskSpec {
  std::string name;
  std::uint64_t bytes = 0;
};

struct VolumeSpec {
  std::string name = "vm1";
  std::string mode = "sync";
  std::vector<std::string> members = {"a", "b", "c"};  ///< primary first
  std::vector<std::uint64_t> disk_bytes = {32 << 20};
  std::vector<std::string> create_options = {};  ///< further options of `replicactl create`
};

/// An export, by who serves it and in which term.
struct ServedDisk {
  std::string host;
  std::string uri;
  std::uint64_t epoch = 0;
  pid_t pid = 0;
  bool operator==(const ServedDisk&) const = default;
};

/// A test that takes longer hangs.
constexpr Millis cluster_limit_default(240'000);

class Cluster {
 public:
  /// Hosts "a", "b", ..., started. What takes longer than `limit` in all is ended, with the logs.
  explicit Cluster(std::size_t hosts = 3, Millis limit = cluster_limit_default);
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  ~Cluster();

  [[nodiscard]] const std::string& directory() const { return dir_.path(); }
  Host& host(const std::string& name);
  Host& add_host(HostOptions options, bool start = true);
  [[nodiscard]] std::vector<std::string> host_names() const;
  /// "a=127.0.0.1:7401,b=..."
  [[nodiscard]] std::string hosts_option() const;

  /// replicactl with --hosts; any exit code.
  Finished ctl(const std::vector<std::string>& arguments, Millis limit = Millis(60'000));
  Finished ctl_ok(const std::vector<std::string>& arguments, Millis limit = Millis(60'000));
  json ctl_json(std::vector<std::string> arguments, Millis limit = Millis(60'000));

  /// Creates the volume by replicactl. Not activated.
  void create(const VolumeSpec& spec);
  void activate(const std::string& volume = "vm1");
  void deactivate(const std::string& volume = "vm1");
  /// Every named replica streams and is in sync, as its primary sees it. All members if none is
  /// named.
  void wait_streaming(const std::string& volume = "vm1", std::vector<std::string> replicas = {});
  /// The volume is stopped: waits until every member's image holds the primary's whole history.
  void wait_applied(const std::string& volume = "vm1", std::vector<std::string> replicas = {});

  /// The volume as `host` sees it, from its control API. Throws if it does not answer.
  json volume(const std::string& host, const std::string& volume = "vm1");
  /// The host whose control API says that it is the primary and serves. Any thread.
  [[nodiscard]] std::optional<std::string> serving_host(const std::string& volume = "vm1") const;
  [[nodiscard]] std::string primary_host(const std::string& volume = "vm1") const;
  /// The export of a disk, of the latest term if several hosts say that they serve it. Any thread.
  [[nodiscard]] std::optional<ServedDisk> find_export(const std::string& volume,
                                                      const std::string& disk) const;
  /// The same; waits, then throws.
  std::string uri(const std::string& disk = "vda", const std::string& volume = "vm1");
  [[nodiscard]] pid_t export_pid(const std::string& volume = "vm1");

  std::string image_path(const std::string& host,
                         const std::string& disk = "vda",
                         const std::string& volume = "vm1");
  /// What differs between the images of a volume's members, or "" if all are equal.
  std::string image_differences(const std::string& volume = "vm1");
  /// Stops the volume, waits for the replicas and compares all images; throws on a difference.
  void stop_and_compare(const std::string& volume = "vm1");

  /// Bytes that the primary of vm1 has sent in full copies and resyncs.
  std::uint64_t copied_bytes();

  /// Prints every daemon's and export's log to stderr.
  void print_logs() const;

 private:
  TempDir dir_;
  std::map<std::string, std::unique_ptr<Host>> hosts_;
};

/// Bytes of `path` that occupy disk space.
std::uint64_t allocated_bytes(const std::string& path);
/// First difference between a file and `expected`, or "".
std::string file_difference(const std::string& path, const std::vector<std::byte>& expected);
/// First difference between two files, or "".
std::string files_difference(const std::string& a, const std::string& b);
/// A TCP port that was free a moment ago.
int free_port();

/// A tmpfs of a fixed size, mounted while the object lives (needs root).
class SmallDisk {
 public:
  SmallDisk(std::string path, std::uint64_t bytes);
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk();
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace replicad::e2e
