#pragma once
// Answers of made-up hosts, in the shapes of docs/control-api.md.

#include <algorithm>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/limits.h"
#include "core/control/views.h"
#include "core/vote/record_json.h"

namespace replicad::control_test {

using Json = nlohmann::json;

constexpr const char* uuid = "11111111-2222-4333-8444-555555555555";

inline Json host_json(const std::string& name) {
  return Json::parse(R"({"schema":1,"host":")" + name +
                     R"(","version":"0.1.0","stream":"127.0.0.1:7400",
    "control":"127.0.0.1:7401","image_dir":"/images","metrics":{"cpus":4,"load_1m":0.4,
    "cpu_pressure_percent":1.0,
    "io_pressure_percent":2.0,"memory_bytes":8589934592,"memory_free_bytes":4294967296,
    "image_dir_bytes":107374182400,
    "image_dir_free_bytes":64424509440,"uptime_seconds":604800,
    "unclean_restarts":0.0,"link_losses":0.0,
    "disk_errors":0.0},"volumes":{"primary":1,"replica":2}})");
}

inline HostReport host(const std::string& name) {
  HostReport report{name, name + ":7401", parse_host(host_json(name))};
  REQUIRE(report.facts.has_value());
  return report;
}

inline HostReport dead_host(const std::string& name) {
  return {name, name + ":7401", fail(Errc::unreachable, "cannot connect to {}:7401", name)};
}

struct VolumeOptions {
  std::string primary = "a";
  std::vector<std::string> members{"a", "b", "c"};
  std::vector<std::string> in_sync{"a", "b", "c"};
  std::uint64_t epoch = 3;
  std::string state = "serving";
  std::string mode = "sync";
};

inline Json epoch_json(std::uint64_t number) {
  return {{"number", number}, {"tag", 77}};
}

/// The volume vm1 as `name` sees it.
inline Json volume_json(const std::string& name, const VolumeOptions& options = {}) {
  const bool is_primary = options.primary == name;
  Json json{
      {"schema", 1},
      {"host", name},
      {"name", "vm1"},
      {"uuid", uuid},
      {"role", is_primary ? "primary" : "replica"},
      {"primary", options.primary},
      {"epoch", epoch_json(options.epoch)},
      {"settings", {{"mode", options.mode}, {"congestion", "throttle"}}},
      {"disks",
       {{{"name", "vda"},
         {"bytes", gib},
         {"path", "/images/vm1.vda.raw"},
         {"allocated_bytes", 4096},
         {"adopted", false}}}},
      {"in_sync", options.in_sync},
      {"state", is_primary ? options.state : "streaming"},
      {"error", nullptr},
      {"history",
       {{"epoch", epoch_json(options.epoch)}, {"sequence", 42}, {"digest", std::string(32, 'a')}}}};
  json["members"] = Json::array();
  for (const std::string& member : options.members) {
    json["members"].push_back(
        {{"host", member}, {"stream", member + ":7400"}, {"control", member + ":7401"}});
  }
  std::vector<MemberState> members;
  std::vector<std::string> recorded;
  for (const std::string& member : options.members) {
    members.push_back({member, member + ":7400", member + ":7401", false});
    const auto& known = options.in_sync;
    if (std::find(known.begin(), known.end(), member) != known.end()) recorded.push_back(member);
  }
  Record record = first_record(options.primary, recorded, members);
  if (check_record(record)) {
    record.version = options.epoch;
    record.epoch = {options.epoch, 77};
    VoterState state = founding_state(record);
    json["vote"] = voter_json(state);
  }
  if (!is_primary) {
    json["replica"] = {{"open", true},
                       {"connected", true},
                       {"consistent", true},
                       {"short", false},
                       {"received", 42},
                       {"logged", 42},
                       {"durable", 42},
                       {"applied", 42},
                       {"logged_digest", std::string(32, 'a')},
                       {"applied_digest", std::string(32, 'a')},
                       {"backlog_bytes", 0},
                       {"log_bytes", 0}};
    return json;
  }
  json["clean"] = false;
  json["export"] = {{"pid", 4711},
                    {"uri", "nbd+unix:///?socket=/run/replica/vm1.sock"},
                    {"socket", "/run/replica/vm1.sock"},
                    {"uris", {{"vda", "nbd+unix:///vda?socket=/run/replica/vm1.sock"}}}};
  if (options.state == "stopped") json["export"] = nullptr;
  json["transfer"] = nullptr;
  json["replicas"] = Json::array();
  for (const std::string& member : options.members) {
    if (member == name) continue;
    const bool in_sync =
        std::find(options.in_sync.begin(), options.in_sync.end(), member) != options.in_sync.end();
    json["replicas"].push_back({{"host", member},
                                {"state", in_sync ? "streaming" : "catching-up"},
                                {"in_sync", in_sync},
                                {"sent", 42},
                                {"received", 42},
                                {"logged", 42},
                                {"durable", 42},
                                {"applied", 42},
                                {"digest", std::string(32, 'a')},
                                {"lag_bytes", in_sync ? 0 : 8192},
                                {"lag_seconds", 0.0},
                                {"copy", nullptr},
                                {"error", nullptr}});
  }
  return json;
}

inline MemberReport member_said(const Json& json) {
  const auto name = json.at("host").get<std::string>();
  MemberReport report{name, name + ":7401", parse_volume(json)};
  REQUIRE_MESSAGE(report.volume.has_value(), (report.volume ? "" : report.volume.error().message));
  return report;
}

inline MemberReport member(const std::string& name, const VolumeOptions& options = {}) {
  return member_said(volume_json(name, options));
}

inline MemberReport silent(const std::string& name) {
  return {name, name + ":7401", fail(Errc::unreachable, "cannot connect to {}:7401", name)};
}

inline MemberReport without_part(const std::string& name) {
  return {name, name + ":7401", fail(Errc::not_found, "there is no volume vm1")};
}

/// a (primary), b and c, all well.
inline std::vector<MemberReport> three(const VolumeOptions& options = {}) {
  std::vector<MemberReport> reports;
  for (const std::string& name : options.members)
    reports.push_back(member(name, options));
  return reports;
}

}  // namespace replicad::control_test
