#include "replicad/host_metrics.h"

#include <cmath>

#include <doctest/doctest.h>

#include "replicad/stability.h"
#include "replicad/stability_keeper.h"
#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

TEST_CASE("metrics: the kernel's files are read as documented") {
  CHECK(parse_load_average("0.52 0.58 0.59 1/467 12345\n") == 0.52);
  CHECK_FALSE(parse_load_average("").has_value());
  const std::string pressure =
      "some avg10=1.00 avg60=2.50 avg300=3.00 total=12\nfull avg10=9.00 avg60=9.50 avg300=0.00 "
      "total=1\n";
  CHECK(parse_pressure(pressure) == 2.5);
  CHECK_FALSE(parse_pressure("full avg10=9.00 avg60=9.50\n").has_value());
  CHECK_FALSE(parse_pressure("some avg60=rubbish\n").has_value());
  const std::string memory = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:   8192 kB\n";
  CHECK(parse_memory(memory, "MemTotal") == 16384 * kib);
  CHECK(parse_memory(memory, "MemAvailable") == 8192 * kib);
  CHECK_FALSE(parse_memory(memory, "Mem").has_value());
  CHECK_FALSE(parse_memory("MemTotal: 18446744073709551615 kB\n", "MemTotal").has_value());
}

TEST_CASE("metrics: this host's figures are plausible") {
  const HostMetrics metrics = read_host_metrics("/tmp");
  CHECK(metrics.cpus >= 1);
  CHECK(metrics.memory_bytes > metrics.memory_free_bytes);
  CHECK(metrics.memory_free_bytes > 0);
  CHECK(metrics.image_dir_bytes >= metrics.image_dir_free_bytes);
  CHECK(metrics.uptime_seconds > 0);
}

TEST_CASE("stability: counters halve every week and never grow by waiting") {
  const Stability fresh{4, 2, 1, 1000};
  const Stability week = fade(fresh, 1000 + stability_half_life_seconds);
  CHECK(week.unclean_restarts == doctest::Approx(2));
  CHECK(week.link_losses == doctest::Approx(1));
  CHECK(week.disk_errors == doctest::Approx(0.5));
  CHECK(week.updated_seconds == 1000 + stability_half_life_seconds);
  CHECK(fade(fresh, 0).unclean_restarts == 4);
  CHECK(fade(fresh, std::int64_t{1} << 40).unclean_restarts == doctest::Approx(0));
}

TEST_CASE("stability: the file survives a round trip, and garbage is an error") {
  const Stability stability{1.25, 3, 0, 1'700'000'000};
  CHECK(decode_stability(encode_stability(stability)) == stability);
  for (const char* garbage : {"", "{}", "[]", "{\"unclean_restarts\":-1}", "\xff\xfe"}) {
    const auto decoded = decode_stability(garbage);
    REQUIRE_FALSE(decoded.has_value());
    CHECK(decoded.error().code == Errc::corrupt);
  }
}

TEST_CASE("stability: a start finds out whether the last end was clean") {
  const DaemonDir dir;
  {
    StabilityKeeper first(dir.path());
    REQUIRE(first.start().has_value());
    CHECK(first.current().unclean_restarts == 0);
    first.count_link_loss();
    first.count_disk_error();
    first.end();
  }
  {
    StabilityKeeper second(dir.path());
    REQUIRE(second.start().has_value());
    CHECK(second.current().unclean_restarts == 0);
    CHECK(second.current().link_losses == doctest::Approx(1).epsilon(0.001));
    CHECK(second.current().disk_errors == doctest::Approx(1).epsilon(0.001));
  }
  StabilityKeeper third(dir.path());
  REQUIRE(third.start().has_value());
  CHECK(third.current().unclean_restarts == doctest::Approx(1).epsilon(0.001));
}

}  // namespace
}  // namespace replicad
