#include "core/base/log.h"

#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace replicad {
namespace {

std::vector<std::string>& lines() {
  static std::vector<std::string> collected;
  return collected;
}

void collect(LogLevel /*level*/, std::string_view line) {
  lines().emplace_back(line);
}

TEST_CASE("log_value: plain words stay as they are") {
  CHECK(log_value("vm1") == "vm1");
  CHECK(log_value("127.0.0.1:7400") == "127.0.0.1:7400");
  CHECK(log_value("/var/lib/replicad") == "/var/lib/replicad");
  CHECK(log_value("m\xc3\xbcnchen") == "m\xc3\xbcnchen");
}

TEST_CASE("log_value: whatever would break a logfmt line is quoted and escaped") {
  CHECK(log_value("") == "\"\"");
  CHECK(log_value("two words") == "\"two words\"");
  CHECK(log_value("a=b") == "\"a=b\"");
  CHECK(log_value("say \"hi\"") == "\"say \\\"hi\\\"\"");
  CHECK(log_value("back\\slash") == "\"back\\\\slash\"");
  CHECK(log_value("line\nlevel=error event=forged") == "\"line\\x0alevel=error event=forged\"");
  CHECK(log_value("\x1b[2J\x7f") == "\"\\x1b[2J\\x7f\"");
  CHECK(log_value(std::string_view("a\0b", 3)) == "\"a\\x00b\"");
}

TEST_CASE("log: one line per event, and nothing below the level") {
  set_log_sink(&collect);
  set_log_level(LogLevel::warn);
  log(LogLevel::warn, "peer_lost", "peer={} epoch={}", log_value("b"), 7);
  log(LogLevel::info, "peer_found", "peer={}", "b");
  CHECK(log_enabled(LogLevel::error));
  CHECK_FALSE(log_enabled(LogLevel::info));
  REQUIRE(lines().size() == 1);
  CHECK(lines().front() == "level=warn event=peer_lost peer=b epoch=7");
}

}  // namespace
}  // namespace replicad
