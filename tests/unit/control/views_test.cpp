#include "core/control/views.h"

#include "tests/unit/control/facts.h"

namespace replicad {
namespace {

using control_test::host_json;
using control_test::volume_json;
using Json = nlohmann::json;

TEST_CASE("views: a host's answer is read field by field") {
  const auto facts = parse_host(host_json("a"));
  REQUIRE(facts.has_value());
  CHECK(facts->host == "a");
  CHECK(facts->cpus == 4);
  CHECK(facts->io_pressure_percent == 2.0);
  CHECK(facts->image_dir_free_bytes == 64424509440);
  CHECK(facts->volumes_replica == 2);
  CHECK_FALSE(facts->draining);
}

TEST_CASE("views: a pressure the kernel does not measure is absent, not zero") {
  Json json = host_json("a");
  json["metrics"]["cpu_pressure_percent"] = nullptr;
  const auto facts = parse_host(json);
  REQUIRE(facts.has_value());
  CHECK_FALSE(facts->cpu_pressure_percent.has_value());
}

TEST_CASE("views: a volume's answer is read on the primary and on a replica") {
  const auto primary = parse_volume(volume_json("a"));
  REQUIRE(primary.has_value());
  CHECK(primary->role == Role::primary);
  CHECK(primary->epoch == Epoch{3, 77});
  CHECK(primary->bytes() == gib);
  REQUIRE(primary->nbd.has_value());
  CHECK(primary->nbd->uris.at("vda") == "nbd+unix:///vda?socket=/run/replica/vm1.sock");
  REQUIRE(primary->replica_on("b") != nullptr);
  CHECK(primary->replica_on("b")->durable == 42);
  CHECK(primary->replica_on("x") == nullptr);
  const auto replica = parse_volume(volume_json("b"));
  REQUIRE(replica.has_value());
  CHECK(replica->role == Role::replica);
  REQUIRE(replica->replica.has_value());
  CHECK(replica->replica->consistent);
}

TEST_CASE("views: each missing or mistyped field is named") {
  struct Row {
    const char* pointer;
    Json value;
    const char* named;
  };
  const std::vector<Row> rows{
      {"/uuid", "../../etc", "'uuid'"},
      {"/uuid", 7, "'uuid'"},
      {"/role", "boss", "'role'"},
      {"/epoch", 3, "'epoch'"},
      {"/epoch/number", -1, "'number'"},
      {"/epoch/tag", 4294967296, "'tag'"},
      {"/disks/0/bytes", "big", "'bytes'"},
      {"/disks/0/bytes", 18446744073709551615ULL, "'bytes'"},
      {"/members", Json::object(), "'members'"},
      {"/in_sync/0", 5, "'in_sync'"},
      {"/history", nullptr, "'history'"},
      {"/settings/mode", nullptr, "'mode'"},
      {"/replicas/0/in_sync", "yes", "'in_sync'"},
      {"/replicas/0/lag_seconds", "long", "'lag_seconds'"},
      {"/replicas/0/copy", 12, "'copy'"},
      {"/export/uris", Json::array(), "'uris'"},
      {"/transfer", "x", "'transfer'"},
      {"/error", "boom", "'error'"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pointer);
    Json json = volume_json("a");
    json[Json::json_pointer(row.pointer)] = row.value;
    const auto volume = parse_volume(json);
    REQUIRE_FALSE(volume.has_value());
    CHECK(volume.error().code == Errc::protocol);
    CHECK(volume.error().message.find(row.named) != std::string::npos);
  }
}

TEST_CASE("views: lists longer than the limits are refused") {
  Json json = volume_json("a");
  for (int i = 0; i < 20; ++i)
    json["members"].push_back(json["members"][0]);
  CHECK_FALSE(parse_volume(json).has_value());
}

TEST_CASE("views: JSON of the wrong shape altogether is an error") {
  for (const char* text : {"null", "[]", "3", "\"x\"", "{}", "{\"metrics\":[]}"}) {
    CAPTURE(text);
    CHECK_FALSE(parse_host(Json::parse(text)).has_value());
    CHECK_FALSE(parse_volume(Json::parse(text)).has_value());
    CHECK_FALSE(parse_error_body(Json::parse(text)).has_value());
  }
}

TEST_CASE("views: an error body gives code, message and hint") {
  const auto error = parse_error_body(
      Json::parse(R"({"schema":1,"error":{"code":"busy","message":"m","hint":"h"}})"));
  REQUIRE(error.has_value());
  CHECK(error->code == Errc::busy);
  CHECK(error->message == "m");
  CHECK(error->hint == "h");
}

}  // namespace
}  // namespace replicad
