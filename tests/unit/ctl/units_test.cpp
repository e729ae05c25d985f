#include "ctl/units.h"

#include <doctest/doctest.h>

#include "core/base/limits.h"

namespace replicad::ctl {
namespace {

TEST_CASE("units: sizes are powers of 1024") {
  CHECK(parse_size("4096") == 4096U);
  CHECK(parse_size("64K") == 64 * kib);
  CHECK(parse_size("20G") == 20 * gib);
  CHECK(parse_size("20g") == 20 * gib);
  CHECK(parse_size("1.5T") == 1536 * gib);
  CHECK(parse_size("20GiB") == 20 * gib);
  CHECK(parse_size("0") == 0U);
  for (const char* text : {"",
                           "G",
                           "20X",
                           "20GB",
                           "-1",
                           "1..5G",
                           "1.2.3",
                           "0.3",
                           "1e9",
                           "99999999T",
                           " 1",
                           "1 G",
                           "."}) {
    CAPTURE(text);
    const auto bytes = parse_size(text);
    REQUIRE_FALSE(bytes.has_value());
    CHECK(bytes.error().code == Errc::invalid_argument);
  }
}

TEST_CASE("units: times take ms, s, m and h, and seconds without a unit") {
  CHECK(parse_duration_ms("30s") == 30000U);
  CHECK(parse_duration_ms("500ms") == 500U);
  CHECK(parse_duration_ms("2m") == 120000U);
  CHECK(parse_duration_ms("1h") == 3600000U);
  CHECK(parse_duration_ms("2.5") == 2500U);
  for (const char* text : {"", "s", "30d", "-5", "1e3", "99999999999999h"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_duration_ms(text).has_value());
  }
}

TEST_CASE("units: lists have no empty parts") {
  CHECK(split_list("")->empty());
  CHECK(*split_list("a,b") == std::vector<std::string>{"a", "b"});
  CHECK_FALSE(split_list("a,,b").has_value());
  CHECK_FALSE(split_list(",").has_value());
}

TEST_CASE("units: settings are read with dashes, aliases and units") {
  const auto settings = parse_settings({"mode=semi-sync",
                                        "ring-bytes=64M",
                                        "ack-timeout=3s",
                                        "congestion=detach",
                                        "on-local-error=fail",
                                        "autostart=yes"});
  REQUIRE(settings.has_value());
  CHECK(*settings == nlohmann::json{{"mode", "semi-sync"},
                                    {"ring_bytes", 64 * mib},
                                    {"ack_timeout_ms", 3000},
                                    {"congestion", "detach"},
                                    {"on_local_error", "fail"},
                                    {"autostart", true}});
  CHECK((*parse_settings({"ack_timeout_ms=700"}))["ack_timeout_ms"] == 700);
}

TEST_CASE("units: a wrong setting is named with what it takes") {
  struct Row {
    std::vector<std::string> pairs;
    const char* text;
  };
  const std::vector<Row> rows{
      {{"mode=fast"}, "mode takes async, semi-sync or sync"},
      {{"mode"}, "has no value"},
      {{"ring=1"}, "is not between 4 MiB and 16 GiB"},
      {{"ack_timeout=99h"}, "is not between 100 and 600000 ms"},
      {{"colour=red"}, "there is no setting 'colour'; settings are mode, congestion"},
      {{"=x"}, "there is no setting ''"},
      {{"mode=sync", "mode=async"}, "mode is given twice"},
      {{"a\x1b[2J=1"}, "\\x1b"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const auto settings = parse_settings(row.pairs);
    REQUIRE_FALSE(settings.has_value());
    CHECK(settings.error().code == Errc::invalid_argument);
    CHECK(settings.error().message.find(row.text) != std::string::npos);
  }
}

}  // namespace
}  // namespace replicad::ctl
