#include "ctl/hosts_list.h"

#include <doctest/doctest.h>

namespace replicad::ctl {
namespace {

TEST_CASE("hosts list: addresses are host:port, [v6]:port or unix:/path") {
  CHECK(parse_address("10.0.0.1:7401")->port == 7401);
  CHECK(parse_address("[fd00::1]:7401")->host == "fd00::1");
  CHECK(parse_address("unix:/run/a.sock")->host == "/run/a.sock");
  CHECK(parse_address("unix:/run/a.sock")->port == 0);
  for (const char* text : {"",
                           "a",
                           ":1",
                           "a:",
                           "a:0",
                           "a:65536",
                           "a:1x",
                           "fd00::1:7401",
                           "[]:1",
                           "[fd00::1:1",
                           "unix:",
                           "unix:rel",
                           "http://a:1",
                           "a b:1",
                           "a\n:1"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_address(text).has_value());
  }
  CHECK_FALSE(parse_address("unix:/" + std::string(200, 'x')).has_value());
}

TEST_CASE("hosts list: --hosts names hosts, or places to start from") {
  const auto hosts = parse_hosts("a=10.0.0.1:7401,b=unix:/run/b.sock,unix:/run/c.sock");
  REQUIRE(hosts.has_value());
  REQUIRE(hosts->size() == 3);
  CHECK((*hosts)[1].name == "b");
  CHECK((*hosts)[2].name.empty());
  for (const char* text :
       {",", "a=", "=10.0.0.1:1", "A=10.0.0.1:1", "a=10.0.0.1:1,a=10.0.0.2:1", "a/b=10.0.0.1:1"}) {
    CAPTURE(text);
    const auto bad = parse_hosts(text);
    REQUIRE_FALSE(bad.has_value());
    CHECK(bad.error().code == Errc::invalid_argument);
  }
}

TEST_CASE("hosts list: a hosts file has names, addresses and comments, errors name the line") {
  const auto hosts =
      parse_hosts_file("# ours\n\na 10.0.0.1:7401   # first\n\tb\tunix:/run/b.sock\r\n", "f");
  REQUIRE(hosts.has_value());
  CHECK(hosts->size() == 2);
  CHECK((*hosts)[1].address == "unix:/run/b.sock");
  CHECK(parse_hosts_file("a 1.1.1.1:1\na\n", "f").error().message ==
        "f:2: a line is 'name address'");
  CHECK(parse_hosts_file("a 1.1.1.1:1 more\n", "f").error().message ==
        "f:1: a line is 'name address'");
  CHECK(parse_hosts_file("a nowhere\n", "f").error().message == "f:1: 'nowhere' is no address");
  CHECK(parse_hosts_file("# nothing\n", "f").error().message == "the hosts file f names no host");
}

}  // namespace
}  // namespace replicad::ctl
