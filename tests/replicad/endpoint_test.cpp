// The NBD socket outlives exports and daemons: killed exports, restarts, and what the service manager keeps.

#include "replicad/endpoint.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "io/net.h"
#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

using nlohmann::json;
using std::chrono::seconds;

ino_t inode_of(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? info.st_ino : 0;
}

int export_pid(const TestHost& host) {
  const json shown = host.get("vm1").at("export");
  return shown.is_object() ? shown.at("pid").get<int>() : 0;
}

/// The next export serves at the socket that the last one had.
void check_served_again(const TestHost& host, ino_t socket, int old_pid) {
  const Status greeted = probe_nbd(host.run_file("vm1.sock"), seconds(20));
  CHECK_MESSAGE(greeted.has_value(), (greeted ? "" : greeted.error().message));
  CHECK(eventually([&] { return export_pid(host) != 0 && export_pid(host) != old_pid; }));
  CHECK(inode_of(host.run_file("vm1.sock")) == socket);
}

/// A client that connects and says nothing.
Fd waiting_client(const std::string& path) {
  auto client = connect_blocking("unix:" + path, 1000);
  return client ? std::move(*client) : Fd();
}

/// What the other side sends within 20 s; 0: it has hung up, -1: nothing.
ssize_t first_byte_from(const Fd& client) {
  pollfd waiting{client.get(), POLLIN, 0};
  if (::poll(&waiting, 1, 20'000) <= 0) return -1;
  char byte = 0;
  return ::recv(client.get(), &byte, 1, 0);
}

TEST_CASE("endpoint: clients wait in it while a killed export is replaced, again and again") {
  TestHost host("a");
  create_volume({&host});
  REQUIRE(host.post("vm1", "activate").ok());
  const ino_t socket = inode_of(host.run_file("vm1.sock"));
  REQUIRE(socket != 0);
  for (int round = 0; round < 2; ++round) {
    CAPTURE(round);
    const int pid = export_pid(host);
    ::kill(pid, SIGKILL);
    check_served_again(host, socket, pid);
  }
  CHECK(host.get("vm1").at("active") == true);
  // The start of the last export may still be under way when it greets.
  std::string answer;
  CHECK_MESSAGE(eventually([&] {
                  const PeerAnswer stopped = host.post("vm1", "deactivate");
                  answer = stopped.body.dump();
                  return stopped.ok();
                }),
                answer);
}

TEST_CASE("endpoint: a restart ends the export cleanly and starts another at the same socket") {
  TestHost host("a");
  create_volume({&host});
  CHECK(host.post("vm1", "restart").status == 409);
  REQUIRE(host.post("vm1", "activate").ok());
  const ino_t socket = inode_of(host.run_file("vm1.sock"));
  const int pid = export_pid(host);
  const PeerAnswer again = host.post("vm1", "restart");
  REQUIRE_MESSAGE(again.ok(), again.body.dump());
  CHECK(again.body.at("clean") == true);
  CHECK(again.body.at("socket") == host.run_file("vm1.sock"));
  CHECK(host.disk_state("vm1").active);
  CHECK(host.disk_state("vm1").epoch.number == 2);
  check_served_again(host, socket, pid);
}

TEST_CASE("endpoint: the next replicad takes it from the export that is running") {
  TestHost host("a");
  create_volume({&host});
  REQUIRE(host.post("vm1", "activate").ok());
  const ino_t socket = inode_of(host.run_file("vm1.sock"));
  const int pid = export_pid(host);
  host.restart();
  REQUIRE(eventually([&] { return host.shows("vm1", "state", "serving"); }));
  CHECK(export_pid(host) == pid);
  ::kill(pid, SIGKILL);
  check_served_again(host, socket, pid);
}

TEST_CASE("endpoint: it is closed when nothing is to be served any more") {
  TestHost host("a");
  create_volume({&host});
  REQUIRE(host.post("vm1", "activate").ok());
  REQUIRE(host.post("vm1", "deactivate").ok());
  CHECK_FALSE(waiting_client(host.run_file("vm1.sock")).valid());
  REQUIRE(host.post("vm1", "activate").ok());
  ::kill(export_pid(host), SIGTERM);  // an end by request, too
  CHECK(eventually([&] { return !waiting_client(host.run_file("vm1.sock")).valid(); }));
  CHECK(host.shows("vm1", "state", "stopped"));
}

/// What a service manager would get: datagrams with descriptors.
class NotifySocket {
 public:
  explicit NotifySocket(const std::string& path)
      : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
            0);
    ::setenv("NOTIFY_SOCKET",
             path.c_str(),
             1);  // NOLINT(concurrency-mt-unsafe): before the daemon's threads
  }
  NotifySocket(const NotifySocket&) = delete;
  NotifySocket& operator=(const NotifySocket&) = delete;
  ~NotifySocket() { ::unsetenv("NOTIFY_SOCKET"); }  // NOLINT(concurrency-mt-unsafe): after them

  /// The next message, "" if none comes within 20 s; with the descriptor that came along.
  std::string receive(Fd& passed) const {
    pollfd waiting{socket_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 20'000) <= 0) return {};
    std::array<char, 512> text{};
    iovec part{text.data(), text.size()};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t got = ::recvmsg(socket_.get(), &header, MSG_CMSG_CLOEXEC);
    if (const cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
      passed = Fd(fd);
    }
    return {text.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0))};
  }

 private:
  Fd socket_;
};

TEST_CASE("endpoint: the service manager keeps it for the next replicad when all else is killed") {
  const DaemonDir dir;
  TestHost host("a");
  host.stop();
  const NotifySocket manager(dir.path() + "/notify");
  host.start();
  create_volume({&host});
  REQUIRE(host.post("vm1", "activate").ok());
  REQUIRE(host.post("vm1", "set", {{"settings", {{"autostart", true}}}}).ok());
  Fd kept;
  CHECK(manager.receive(kept) == "FDSTORE=1\nFDNAME=stored@vm1");
  REQUIRE(kept.valid());
  const ino_t socket = inode_of(host.run_file("vm1.sock"));
  const int pid = export_pid(host);
  host.stop();
  ::kill(pid, SIGKILL);
  const Fd early = waiting_client(host.run_file("vm1.sock"));
  REQUIRE(early.valid());
  GivenSockets given;
  given["stored@vm1"] = std::move(kept);
  host.start(std::move(given));
  check_served_again(host, socket, pid);
  CHECK(first_byte_from(early) == 1);
  REQUIRE(host.post("vm1", "deactivate").ok());
  Fd none;
  CHECK(manager.receive(none) == "FDSTOREREMOVE=1\nFDNAME=stored@vm1");
}

/// As a socket unit would.
Fd opened_by_unit(const TestHost& host) {
  auto socket = listen_on("unix:" + host.run_file("vm1.sock"));
  REQUIRE(socket.has_value());
  return std::move(*socket);
}

TEST_CASE("endpoint: at a socket unit's socket clients are turned away where nothing is served") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  b.stop();
  GivenSockets given;
  given["vm1"] = opened_by_unit(b);
  b.start(std::move(given));
  CHECK(first_byte_from(waiting_client(b.run_file("vm1.sock"))) == 0);
  CHECK(std::filesystem::exists(b.run_file("vm1.sock")));
}

TEST_CASE("endpoint: the program takes a socket unit's socket and leaves it open after a stop") {
  TestHost host("a");
  create_volume({&host});
  host.stop();
  Fd socket = opened_by_unit(host);
  const ino_t inode = inode_of(host.run_file("vm1.sock"));
  const Fd inherited(::fcntl(socket.get(), F_DUPFD, 20));  // without CLOEXEC
  const std::string script =
      fmt::format("exec 3<&{}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=vm1; exec \"$@\"",
                  inherited.get());
  const Options& options = host.options();
  const ChildProgram program({"/bin/bash",
                              "-c",
                              script,
                              "sh",
                              REPLICAD_PROGRAM,
                              "--host=a",
                              "--transport=plaintext",
                              "--state-dir=" + options.state_dir,
                              "--image-dir=" + options.image_dir,
                              "--run-dir=" + options.run_dir,
                              "--listen=" + options.listen,
                              "--control=" + options.control,
                              "--nbdkit=" + options.nbdkit,
                              "--plugin=serve"},
                             host.dir() + "/output");
  REQUIRE(eventually([&] { return std::filesystem::exists(options.control_socket()); }));
  REQUIRE(eventually(
      [&] { return connect_blocking("unix:" + options.control_socket(), 1000).has_value(); }));
  const PeerAnswer started = host.post("vm1", "activate");
  REQUIRE_MESSAGE(started.ok(), started.body.dump(), file_text(host.dir() + "/output"));
  CHECK(inode_of(host.run_file("vm1.sock")) == inode);
  CHECK(probe_nbd(host.run_file("vm1.sock"), seconds(20)).has_value());
  REQUIRE(host.post("vm1", "deactivate").ok());
  CHECK(first_byte_from(waiting_client(host.run_file("vm1.sock"))) == 0);
}

TEST_CASE("endpoint: socket-group names who may connect besides the user of replicad") {
  TestHost host("a");
  create_volume({&host});
  host.stop();
  host.options().socket_group = "no-such-group";
  host.start();
  const PeerAnswer refused = host.post("vm1", "activate");
  CHECK(refused.status == 404);
  CHECK(refused.body.at("error").at("message").get<std::string>().find("no-such-group") !=
        std::string::npos);
  CHECK(::access(host.run_file("vm1.sock").c_str(), F_OK) != 0);
  host.stop();
  host.options().socket_group = "daemon";
  host.start();
  REQUIRE(host.post("vm1", "activate").ok());
  struct stat info {};
  REQUIRE(::stat(host.run_file("vm1.sock").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0660);
  CHECK(info.st_gid == 1);  // of `daemon`, on every Debian
}

}  // namespace
}  // namespace replicad
