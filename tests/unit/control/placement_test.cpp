#include "core/control/placement.h"

#include <cstdlib>
#include <random>

#include "tests/unit/control/facts.h"

namespace replicad {
namespace {

using control_test::dead_host;
using control_test::host;

PlacementRequest request_for(std::size_t copies, std::uint64_t bytes = 10 * gib) {
  PlacementRequest request;
  request.bytes = bytes;
  request.copies = copies;
  request.version = "0.1.0";
  return request;
}

std::vector<HostReport> abc() {
  return {host("a"), host("b"), host("c")};
}

TEST_CASE("placement: equal hosts are taken by name, whatever their order in the list") {
  std::vector<HostReport> hosts{host("c"), host("a"), host("b")};
  CHECK(place(hosts, request_for(2)).chosen == std::vector<std::string>{"a", "b"});
  std::swap(hosts[0], hosts[2]);
  CHECK(place(hosts, request_for(2)).chosen == std::vector<std::string>{"a", "b"});
}

TEST_CASE("placement: each measure moves the choice in the right direction") {
  struct Row {
    const char* what;
    void (*worsen)(HostFacts&);
  };
  const std::vector<Row> rows{
      {"load", [](HostFacts& f) { f.load_1m = 8; }},
      {"cpu pressure", [](HostFacts& f) { f.cpu_pressure_percent = 60; }},
      {"io pressure", [](HostFacts& f) { f.io_pressure_percent = 60; }},
      {"space", [](HostFacts& f) { f.image_dir_free_bytes = 30 * gib; }},
      {"memory", [](HostFacts& f) { f.memory_free_bytes = 1 * gib; }},
      {"uptime", [](HostFacts& f) { f.uptime_seconds = 60; }},
      {"unclean restarts", [](HostFacts& f) { f.unclean_restarts = 0.5; }},
      {"link losses", [](HostFacts& f) { f.link_losses = 2; }},
      {"disk errors", [](HostFacts& f) { f.disk_errors = 0.1; }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    std::vector<HostReport> hosts = abc();
    row.worsen(*hosts[0].facts);
    const Placement placement = place(hosts, request_for(2));
    REQUIRE_FALSE(placement.refusal.has_value());
    CHECK(placement.chosen == std::vector<std::string>{"b", "c"});
    CHECK(placement.hosts.back().host == "a");
  }
}

TEST_CASE("placement: uptime saturates after a week") {
  std::vector<HostReport> hosts = abc();
  hosts[1].facts->uptime_seconds = 400 * 86400;
  CHECK(place(hosts, request_for(1)).chosen == std::vector<std::string>{"a"});
}

TEST_CASE("placement: every term is kept and the weights add up to one") {
  const Placement placement = place(abc(), request_for(3));
  for (const HostScore& score : placement.hosts) {
    double weight = 0;
    double total = 0;
    for (const ScoreTerm& term : score.terms) {
      CHECK(term.score >= 0);
      CHECK(term.score <= 1);
      weight += term.weight;
      total += term.score * term.weight;
    }
    CHECK(weight == doctest::Approx(1.0));
    CHECK(total == doctest::Approx(score.total));
    CHECK(score.terms.size() == 9);
    CHECK(score.total ==
          doctest::Approx(0.4 * score.group_score("load") + 0.3 * score.group_score("capacity") +
                          0.3 * score.group_score("stability")));
  }
}

TEST_CASE("placement: a missing pressure gives its weight to the others of its group") {
  std::vector<HostReport> hosts = abc();
  hosts[0].facts->cpu_pressure_percent.reset();
  hosts[0].facts->io_pressure_percent.reset();
  const Placement placement = place(hosts, request_for(3));
  double weight = 0;
  for (const ScoreTerm& term : placement.score_of("a")->terms)
    weight += term.weight;
  CHECK(weight == doctest::Approx(1.0));
}

TEST_CASE("placement: the wanted primary comes first even if its score is the worst") {
  std::vector<HostReport> hosts = abc();
  hosts[2].facts->load_1m = 30;
  PlacementRequest request = request_for(2);
  request.primary = "c";
  CHECK(place(hosts, request).chosen == std::vector<std::string>{"c", "a"});
}

TEST_CASE("placement: a refusal names every host and why") {
  std::vector<HostReport> hosts{
      host("a"), host("b"), dead_host("c"), host("d"), host("e"), host("f")};
  hosts[1].facts->image_dir_free_bytes = 12 * gib;  // 5 GiB of it are the reserve
  hosts[3].facts->draining = true;
  hosts[4].facts->version = "7.0.0";
  hosts[5].facts->cpus = 0;
  const Placement placement = place(hosts, request_for(3));
  REQUIRE(placement.refusal.has_value());
  CHECK(placement.chosen.empty());
  CHECK(placement.refusal->code == Errc::refused);
  const std::string& text = placement.refusal->message;
  CHECK(text.find("3 copies wanted, but only 1 of 6 hosts can take one") != std::string::npos);
  CHECK(text.find("b: 12 GiB free where its images are, 10 GiB needed and 5 GiB kept in reserve") !=
        std::string::npos);
  CHECK(text.find("c: it does not answer: cannot connect to c:7401") != std::string::npos);
  CHECK(text.find("d: it is draining") != std::string::npos);
  CHECK(text.find("e: it runs version 7.0.0, this is version 0.1.0") != std::string::npos);
  CHECK(text.find("f: its metrics make no sense") != std::string::npos);
  CHECK(placement.refusal->hint == "--copies 1 would do");
}

TEST_CASE("placement: versions that cannot be read are not plausible") {
  for (const char* version : {"", "x", "1", ".1", "99999.1", "0", "-1.0", "\x1b[2J"}) {
    CAPTURE(version);
    std::vector<HostReport> hosts{host("a")};
    hosts[0].facts->version = version;
    CHECK(place(hosts, request_for(1)).refusal.has_value());
  }
  for (const char* version : {"0.1.0", "0.9.12", "0.1.0-rc1"}) {
    CAPTURE(version);
    std::vector<HostReport> hosts{host("a")};
    hosts[0].facts->version = version;
    CHECK_FALSE(place(hosts, request_for(1)).refusal.has_value());
  }
}

TEST_CASE("placement: a primary that cannot be one is refused with its reason") {
  std::vector<HostReport> hosts{host("a"), dead_host("b")};
  PlacementRequest request = request_for(1);
  request.primary = "b";
  const Placement placement = place(hosts, request);
  REQUIRE(placement.refusal.has_value());
  CHECK(placement.refusal->message.starts_with("b cannot be the primary: b: it does not answer"));
}

TEST_CASE("placement: an unknown host name is not found") {
  PlacementRequest request = request_for(1);
  request.on = {"z"};
  const Placement placement = place(abc(), request);
  REQUIRE(placement.refusal.has_value());
  CHECK(placement.refusal->code == Errc::not_found);
  CHECK(placement.refusal->message == "host z is not in the hosts list");
}

TEST_CASE(
    "placement: on named hosts the reserve may be used, with a warning, more only if asked for") {
  std::vector<HostReport> hosts = abc();
  hosts[0].facts->image_dir_free_bytes = 11 * gib;
  PlacementRequest request = request_for(2);
  request.on = {"a", "b"};
  Placement placement = place(hosts, request);
  REQUIRE_FALSE(placement.refusal.has_value());
  CHECK(placement.chosen == std::vector<std::string>{"b", "a"});
  CHECK(placement.score_of("a")->warnings.size() == 1);
  CHECK(placement.score_of("c")->rejected == std::vector<std::string>{"it was not named"});
  hosts[0].facts->image_dir_free_bytes = 9 * gib;
  CHECK(place(hosts, request).refusal.has_value());
  request.overcommit = true;
  placement = place(hosts, request);
  REQUIRE_FALSE(placement.refusal.has_value());
  CHECK(placement.score_of("a")->warnings.size() == 1);
}

TEST_CASE("placement: a primary that brings its images needs no free space") {
  std::vector<HostReport> hosts = abc();
  hosts[0].facts->image_dir_free_bytes = 0;
  PlacementRequest request = request_for(2);
  request.primary = "a";
  CHECK(place(hosts, request).refusal.has_value());
  request.primary_brings_images = true;
  CHECK(place(hosts, request).chosen == std::vector<std::string>{"a", "b"});
}

TEST_CASE("placement: the reserve is a twentieth of the file system, at most 10 GiB") {
  CHECK(reserve_bytes(20 * gib) == 1 * gib);
  CHECK(reserve_bytes(1000 * gib) == 10 * gib);
  CHECK(reserve_bytes(0) == 0);
}

TEST_CASE(
    "placement: any metrics give scores between 0 and 1 and a choice that shuffling does not "
    "change") {
  const char* seed_text = std::getenv("RD_SEED");
  const auto seed =
      seed_text != nullptr ? std::strtoull(seed_text, nullptr, 10) : std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const auto pick = [&](std::vector<double> from) { return from[random() % from.size()]; };
  for (int round = 0; round < 200; ++round) {
    std::vector<HostReport> hosts;
    for (const char* name : {"a", "b", "c", "d", "e"}) {
      HostReport& report = hosts.emplace_back(host(name));
      HostFacts& facts = *report.facts;
      facts.cpus = pick({0, 1, 4, 1e18, -3});
      facts.load_1m = pick({0, 0.5, 4, 1e300, -2});
      facts.cpu_pressure_percent = pick({0, 10, 100, 1e9, -5});
      facts.memory_free_bytes = random() % 3 == 0 ? ~0ULL : random();
      facts.image_dir_bytes = random() % 3 == 0 ? 0 : random();
      facts.image_dir_free_bytes = random();
      facts.uptime_seconds = pick({0, 1, 1e6, 1e300, -1});
      facts.disk_errors = pick({0, 0.1, 5, 1e300, -1});
    }
    const Placement first = place(hosts, request_for(3));
    for (const HostScore& score : first.hosts) {
      CHECK(score.total >= 0);
      CHECK(score.total <= 1.0000001);
    }
    std::shuffle(hosts.begin(), hosts.end(), random);
    const Placement second = place(hosts, request_for(3));
    CHECK(first.chosen == second.chosen);
    for (std::size_t i = 0; i < first.hosts.size(); ++i)
      CHECK(first.hosts[i].host == second.hosts[i].host);
  }
}

TEST_CASE("placement: candidates are ranked by the same score, silent ones left out") {
  std::vector<HostReport> hosts{host("a"), host("b"), dead_host("c"), host("d")};
  hosts[0].facts->load_1m = 20;
  CHECK(rank_hosts(hosts, {"a", "b", "c"}) == std::vector<std::string>{"b", "a"});
  CHECK(rank_hosts(hosts, {"c"}).empty());
}

}  // namespace
}  // namespace replicad
