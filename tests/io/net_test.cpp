#include "io/net.h"

#include <cstddef>
#include <vector>

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "tests/io/io_fixture.h"

namespace replicad {
namespace {

std::uint16_t port_of(int fd) {
  sockaddr_in address{};
  socklen_t length = sizeof address;
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return ntohs(address.sin_port);
}

TEST_CASE("net: addresses are understood or refused with the form to use") {
  CHECK(resolve("127.0.0.1:7000").value().family() == AF_INET);
  CHECK(resolve("[::1]:7000").value().family() == AF_INET6);
  CHECK(resolve("unix:/run/x.sock").value().family() == AF_UNIX);
  CHECK(resolve("localhost:0").has_value());
  for (const char* bad : {"",
                          "host",
                          ":7000",
                          "127.0.0.1",
                          "127.0.0.1:",
                          "127.0.0.1:65536",
                          "127.0.0.1:-1",
                          "127.0.0.1:80x",
                          "::1:7000",
                          "[]:7000",
                          "[::1:7000",
                          "unix:",
                          "1.2.3.4:+5"}) {
    CAPTURE(bad);
    const auto result = resolve(bad);
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().code == Errc::invalid_argument);
  }
  CHECK(resolve("no-port").error().hint.find("host:port") != std::string::npos);
  CHECK(resolve("unix:/" + std::string(200, 'x')).error().code == Errc::invalid_argument);
  CHECK(resolve("no.such.host.invalid:1").error().code == Errc::invalid_argument);
}

TEST_CASE("net: is_local knows loopback and unix sockets") {
  for (const char* local :
       {"127.0.0.1:1", "127.3.4.5:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/tmp/x"}) {
    CAPTURE(local);
    CHECK(resolve(local).value().is_local());
  }
  for (const char* remote : {"0.0.0.0:1",
                             "192.0.2.1:1",
                             "[::]:1",
                             "[2001:db8::1]:1",
                             "[::ffff:192.0.2.1]:1",
                             "128.0.0.1:1"}) {
    CAPTURE(remote);
    CHECK_FALSE(resolve(remote).value().is_local());
  }
}

TEST_CASE("net: a port that is in use is named") {
  const auto first = listen_on("127.0.0.1:0");
  REQUIRE(first.has_value());
  const std::string address = "127.0.0.1:" + std::to_string(port_of(first->get()));
  const auto second = listen_on(address);
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().code == Errc::busy);
  CHECK(second.error().message == address + " is in use");
  CHECK(listen_on("192.0.2.77:0").error().code == Errc::invalid_argument);
  const auto connected = connect_blocking(address, 1000);
  CHECK(connected.has_value());
}

TEST_CASE("net: a unix socket is private to its group, kept while alive, replaced when stale") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("agent.sock");
  {
    const auto first = listen_on("unix:" + path);
    REQUIRE(first.has_value());
    struct stat status {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0660);
    CHECK(listen_on("unix:" + path).error().code == Errc::busy);
    CHECK(connect_blocking("unix:" + path, 1000).has_value());
  }
  const auto gone = connect_blocking("unix:" + path, 1000);
  REQUIRE_FALSE(gone.has_value());
  CHECK(gone.error().code == Errc::unreachable);
  CHECK(listen_on("unix:" + path).has_value());
}

TEST_CASE("net: a file that is no socket is never replaced") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("precious");
  REQUIRE(::mkdir(path.c_str(), 0700) == 0);
  CHECK(listen_on("unix:" + path).error().code == Errc::busy);
  CHECK(std::filesystem::is_directory(path));
}

TEST_CASE("net: connect_blocking tells nobody there from no answer") {
  const TemporaryDirectory directory;
  CHECK(connect_blocking("unix:" + directory.file("none.sock"), 1000).error().code ==
        Errc::unreachable);
  std::string address;
  {
    const auto listener = listen_on("127.0.0.1:0");
    address = "127.0.0.1:" + std::to_string(port_of(listener.value().get()));
  }
  CHECK(connect_blocking(address, 1000).error().code == Errc::unreachable);

  const std::string path = directory.file("full.sock");
  const auto resolved = resolve("unix:" + path).value();
  const Fd full(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(full.get(), resolved.get(), resolved.length) == 0);
  REQUIRE(::listen(full.get(), 0) == 0);
  std::vector<Fd> waiting;
  for (int i = 0; i < 10; ++i) {
    auto next = connect_blocking("unix:" + path, 50);
    if (!next) {
      CHECK(next.error().code == Errc::timeout);
      CHECK(next.error().message.find("50 ms") != std::string::npos);
      return;
    }
    waiting.push_back(std::move(*next));
  }
  FAIL("the backlog never filled");
}

}  // namespace
}  // namespace replicad
