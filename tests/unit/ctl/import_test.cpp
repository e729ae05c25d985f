#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <libnbd.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ctl/nbd_copy.h"
#include "io/fd.h"
#include "tests/unit/ctl/run_ctl.h"
#include "tests/unit/ctl/temp_dir.h"

extern char** environ;

namespace replicad::ctl_test {
namespace {

using control_test::VolumeOptions;

constexpr std::size_t disk_bytes = 4 << 20;

/// A real NBD server with one memory disk, in the place of a volume's export.
class MemoryExport {
 public:
  explicit MemoryExport(const TempDir& dir, const std::vector<std::string>& filters = {})
      : socket_(dir.file("vm1.sock")) {
    std::vector<std::string> words{"nbdkit", "-f", "--exit-with-parent", "-U", socket_};
    std::vector<std::string> parameters{"memory", std::to_string(disk_bytes)};
    for (const std::string& filter : filters) {
      (filter.starts_with("--") ? words : parameters).push_back(filter);
    }
    words.insert(words.end(), parameters.begin(), parameters.end());
    std::vector<char*> argv;
    for (std::string& word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    REQUIRE(::posix_spawnp(&pid_, argv[0], nullptr, nullptr, argv.data(), environ) == 0);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!ctl::export_bytes(uri()).has_value()) {
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      std::this_thread::yield();
    }
    wait_unused();
  }
  MemoryExport(const MemoryExport&) = delete;
  MemoryExport& operator=(const MemoryExport&) = delete;
  ~MemoryExport() {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }

  /// The server may see later than the client that a connection has ended.
  void wait_unused() const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    for (;;) {
      std::stringstream sockets;
      sockets << std::ifstream("/proc/net/unix").rdbuf();
      if (ctl::count_connections(sockets.str(), socket_) == 0) return;
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      std::this_thread::yield();
    }
  }

  [[nodiscard]] std::string uri() const { return "nbd+unix:///vda?socket=" + socket_; }
  [[nodiscard]] const std::string& socket() const { return socket_; }

 private:
  std::string socket_;
  pid_t pid_ = -1;
};

/// An open connection, as a guest has it.
class Connection {
 public:
  explicit Connection(const std::string& uri) : handle_(nbd_create(), nbd_close) {
    REQUIRE(nbd_connect_uri(handle_.get(), uri.c_str()) == 0);
  }
  std::string read(std::size_t bytes) {
    std::string data(bytes, '\0');
    REQUIRE(nbd_pread(handle_.get(), data.data(), bytes, 0, 0) == 0);
    return data;
  }

 private:
  std::unique_ptr<nbd_handle, void (*)(nbd_handle*)> handle_;
};

/// The volume vm1, 4 MiB, primary a, whose export is at `socket`.
Json served(const Trio& trio, const std::string& socket, const char* state = "serving") {
  VolumeOptions options;
  options.state = state;
  Json view = trio.view("a", options);
  view["disks"][0]["bytes"] = disk_bytes;
  if (view["export"].is_object()) {
    view["export"]["socket"] = socket;
    view["export"]["uris"] = {{"vda", "nbd+unix:///vda?socket=" + socket}};
  }
  return view;
}

std::string write_source(const TempDir& dir, std::size_t bytes, const std::string& head = {}) {
  std::string content = head;
  for (std::size_t i = head.size(); i < bytes; ++i)
    content += static_cast<char>('a' + (i * 7 + i / 4096) % 23);
  std::ofstream(dir.file("source.raw"), std::ios::binary) << content;
  return content;
}

TEST_CASE("import: the disk holds the file's bytes afterwards") {
  const TempDir dir;
  const MemoryExport server(dir);
  Trio trio;
  trio.a().set_volume(served(trio, server.socket()));
  const std::string content = write_source(dir, disk_bytes - 512);
  const Outcome outcome = trio.run({"import", "vm1", dir.file("source.raw")});
  CHECK_MESSAGE(outcome.code == 0, outcome.err);
  CHECK(contains(outcome.out, "copied "));
  CHECK(contains(outcome.err, "source.raw to vm1/vda: 100%  4 MiB of 4 MiB"));
  CHECK(Connection(server.uri()).read(content.size()) == content);
  CHECK(trio.changes().empty());
}

TEST_CASE("import: --progress must name a descriptor that is open for writing") {
  Trio trio;
  const Fd read_only(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const int fd : {-3, 7777, read_only.get()}) {
    const std::string option = "--progress=" + std::to_string(fd);
    for (const std::vector<std::string>& command :
         {std::vector<std::string>{"import", "vm1", "/dev/zero", option},
          {"resync", "vm1", "--host=b", "--wait", option}}) {
      const Outcome outcome = trio.run(command);
      CHECK(outcome.code == 2);
      CHECK_MESSAGE(contains(outcome.err, option + ": no descriptor"), outcome.err);
    }
  }
  CHECK(trio.changes().empty());
}

TEST_CASE("import: an NBD URI is a source, and --progress writes N/100") {
  const TempDir dir;
  const TempDir source_dir;
  const MemoryExport server(dir);
  const MemoryExport source(source_dir);
  Trio trio;
  trio.a().set_volume(served(trio, server.socket()));
  std::array<int, 2> pipe{};
  REQUIRE(::pipe(pipe.data()) == 0);
  const Outcome outcome = trio.run(
      {"import", "vm1", source.uri(), "--progress=" + std::to_string(pipe[1]), "-o", "json"});
  ::close(pipe[1]);
  std::string progress(4096, '\0');
  progress.resize(static_cast<std::size_t>(::read(pipe[0], progress.data(), progress.size())));
  ::close(pipe[0]);
  CHECK_MESSAGE(outcome.code == 0, outcome.err);
  CHECK(progress.starts_with("0/100\n"));
  CHECK(progress.ends_with("100/100\n"));
  CHECK(outcome.json()["bytes"] == disk_bytes);
  CHECK(outcome.err.empty());
}

TEST_CASE("import: an inactive volume is activated first") {
  const TempDir dir;
  const MemoryExport server(dir);
  VolumeOptions stopped;
  stopped.state = "stopped";
  Trio trio(stopped);
  trio.a().set_volume(served(trio, server.socket(), "stopped"));
  trio.a().set_volume_after("POST /v1/volumes/vm1/activate", served(trio, server.socket()));
  write_source(dir, 8192);
  const Outcome dry = trio.run({"import", "vm1", dir.file("source.raw"), "--dry-run"});
  CHECK(dry.code == 0);
  CHECK(contains(dry.out, "would: activate the volume and copy"));
  CHECK(trio.changes().empty());
  const Outcome outcome = trio.run({"import", "vm1", dir.file("source.raw")});
  CHECK_MESSAGE(outcome.code == 0, outcome.err);
  CHECK(trio.changes() == std::vector<std::string>{"a POST /v1/volumes/vm1/activate"});
}

TEST_CASE("import: refuses what cannot or must not be copied") {
  const TempDir dir;
  const MemoryExport server(dir);
  Trio trio;
  trio.a().set_volume(served(trio, server.socket()));
  const std::string source = dir.file("source.raw");

  const Outcome missing = trio.run({"import", "vm1", dir.file("none.raw")});
  CHECK(missing.code == 5);
  const Outcome directory = trio.run({"import", "vm1", dir.file("")});
  CHECK(directory.code == 2);
  write_source(dir, disk_bytes + 512);
  const Outcome large = trio.run({"import", "vm1", source});
  CHECK(large.code == 3);
  CHECK(contains(large.err, "disk vda only 4 MiB"));
  write_source(dir, 4096, "QFI\xfb");
  const Outcome qcow2 = trio.run({"import", "vm1", source});
  CHECK(qcow2.code == 2);
  CHECK(contains(qcow2.err, "is a qcow2 image"));
  write_source(dir, 4096);
  const Outcome disk = trio.run({"import", "vm1", source, "--disk", "vdz"});
  CHECK(disk.code == 5);
  CHECK(contains(disk.err, "its disks are vda"));
  {
    const Connection guest(server.uri());
    const Outcome used = trio.run({"import", "vm1", source});
    CHECK(used.code == 3);
    CHECK(contains(used.err, "vm1 is in use: its export has 1 connection"));
  }
  server.wait_unused();
  trio.a().set_volume(served(trio, dir.file("elsewhere.sock")));
  const Outcome elsewhere = trio.run({"import", "vm1", source});
  CHECK(elsewhere.code == 3);
  CHECK(contains(elsewhere.err, "is not on this machine"));
  CHECK(contains(elsewhere.err, "give the command on a, the primary"));
  Json other = served(trio, server.socket());
  other["disks"][0]["bytes"] = 2 * disk_bytes;
  trio.a().set_volume(other);
  const Outcome wrong = trio.run({"import", "vm1", source});
  CHECK(wrong.code == 3);
  CHECK(contains(wrong.err, "that is another export"));
  CHECK(Connection(server.uri()).read(4096) == std::string(4096, '\0'));
}

TEST_CASE("import: a copy that fails says so, with what nbdcopy said") {
  const TempDir dir;
  const MemoryExport server(dir, {"--filter=error", "error-pwrite-rate=100%"});
  Trio trio;
  trio.a().set_volume(served(trio, server.socket()));
  write_source(dir, 65536);
  const Outcome outcome = trio.run({"import", "vm1", dir.file("source.raw"), "-o", "json"});
  CHECK(outcome.code == 1);
  const Json error = outcome.error();
  CHECK(contains(error["message"], "the import failed; disk vda holds part of it: nbdcopy failed"));
  CHECK(contains(error["message"], "Input/output error"));
}

TEST_CASE("import: only accepted connections on that very socket count as use") {
  const std::string table =
      "Num       RefCount Protocol Flags    Type St Inode Path\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/replica/vm1.sock\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 101 /run/replica/vm1.sock\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 102\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 103 /run/replica/vm1.sock2\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 104 /run/with space.sock\n";
  CHECK(ctl::count_connections(table, "/run/replica/vm1.sock") == 1);
  CHECK(ctl::count_connections(table, "/run/with space.sock") == 1);
  CHECK(ctl::count_connections(table, "/run/none.sock") == 0);
  CHECK(ctl::count_connections("", "/run/none.sock") == 0);
}

}  // namespace
}  // namespace replicad::ctl_test
