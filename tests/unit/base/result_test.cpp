#include "core/base/result.h"

#include <cerrno>
#include <set>
#include <string>

#include <doctest/doctest.h>

namespace replicad {
namespace {

constexpr int errc_count = static_cast<int>(Errc::not_supported) + 1;

TEST_CASE("errc: every code has its own stable name, there and back") {
  std::set<std::string> names;
  for (int i = 0; i < errc_count; ++i) {
    const auto code = static_cast<Errc>(i);
    const std::string name(errc_name(code));
    CAPTURE(name);
    CHECK(name != "unknown");
    CHECK(names.insert(name).second);
    CHECK(errc_from_name(name) == code);
  }
  CHECK(errc_name(Errc::stale_epoch) == "stale_epoch");
  CHECK(errc_name(Errc::no_space) == "no_space");
}

TEST_CASE("errc: a name from a later version is read as protocol") {
  CHECK(errc_from_name("invented_later") == Errc::protocol);
  CHECK(errc_from_name("") == Errc::protocol);
  CHECK(errc_from_name("REFUSED") == Errc::protocol);
}

TEST_CASE("errno: kinds that callers decide upon") {
  struct Expected {
    int sys_errno;
    Errc code;
  };
  const Expected table[] = {
      {ENOENT, Errc::not_found},
      {ENODEV, Errc::not_found},
      {EEXIST, Errc::exists},
      {ENOSPC, Errc::no_space},
      {EDQUOT, Errc::no_space},
      {EADDRINUSE, Errc::busy},
      {EAGAIN, Errc::busy},
      {EBUSY, Errc::busy},
      {ECONNREFUSED, Errc::unreachable},
      {ECONNRESET, Errc::unreachable},
      {EPIPE, Errc::unreachable},
      {EHOSTUNREACH, Errc::unreachable},
      {ETIMEDOUT, Errc::timeout},
      {ENOSYS, Errc::not_supported},
      {EOPNOTSUPP, Errc::not_supported},
      {EINVAL, Errc::invalid_argument},
      {EIO, Errc::io_error},
      {EACCES, Errc::io_error},
      {EPERM, Errc::io_error},
      {0x7fff, Errc::io_error},
  };
  for (const Expected& row : table) {
    CAPTURE(row.sys_errno);
    CHECK(errno_to_error(row.sys_errno, "open x").code == row.code);
  }
}

TEST_CASE("errno: the error keeps number, context and the system's text") {
  const Error error = errno_to_error(ENOSPC, "write /images/vm1");
  CHECK(error.sys_errno == ENOSPC);
  CHECK(error.message == "write /images/vm1: No space left on device");
  CHECK(error.hint.empty());
}

Status fails() {
  return fail_errno(EIO, "fsync {}", "log");
}

Result<int> passes_on() {
  RD_TRY(fails());
  return 1;
}

TEST_CASE("result: RD_TRY returns the error unchanged") {
  const Result<int> result = passes_on();
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Errc::io_error);
  CHECK(result.error().sys_errno == EIO);
  CHECK(result.error().message == "fsync log: Input/output error");
}

TEST_CASE("result: with_hint adds what to do next and changes nothing else") {
  const Status status = with_hint(fail(Errc::refused, "host {} is not in sync", "b"), "run resync");
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Errc::refused);
  CHECK(status.error().message == "host b is not in sync");
  CHECK(status.error().hint == "run resync");
}

}  // namespace
}  // namespace replicad
