#include "core/control/plan.h"

#include "tests/unit/control/facts.h"

namespace replicad {
namespace {

using control_test::dead_host;
using control_test::host;
using control_test::member;
using control_test::member_said;
using control_test::silent;
using control_test::three;
using control_test::volume_json;
using control_test::VolumeOptions;
using control_test::without_part;
using Strings = std::vector<std::string>;

/// "host METHOD path" of each step.
Strings lines(const Result<Plan>& plan) {
  Strings list;
  if (!plan) return {"refused: " + plan.error().message};
  for (const Step& step : plan->steps)
    list.push_back(step.host + " " + step.request.method + " " + step.request.path);
  return list;
}

const std::string delete_path = std::string("/v1/volumes/vm1?uuid=") + control_test::uuid;

CreateRequest create_request() {
  CreateRequest request;
  request.name = "vm1";
  request.uuid = control_test::uuid;
  request.disks = {{"vda", 20 * gib, {}}, {"vdb", 10 * gib, {}}};
  request.settings = {{"mode", "semi-sync"}};
  return request;
}

std::vector<MemberReport> nowhere() {
  return {without_part("a"), without_part("b"), without_part("c")};
}

TEST_CASE("plan: create makes the replicas first, the primary last, and can undo each") {
  const auto plan =
      plan_create(create_request(), {"b", "a", "c"}, {host("a"), host("b"), host("c")}, nowhere());
  REQUIRE(plan.has_value());
  CHECK(lines(plan) == Strings{"c POST /v1/volumes", "a POST /v1/volumes", "b POST /v1/volumes"});
  for (const Step& step : plan->steps) {
    REQUIRE(step.undo.has_value());
    CHECK(step.undo->method == "DELETE");
    CHECK(step.undo->path == delete_path);
    CHECK(step.required);
    CHECK(step.request.body["primary"] == "b");
    CHECK(step.request.body["consistent"] == true);
    CHECK(step.request.body["in_sync"] == Strings{"b", "a", "c"});
    CHECK(step.request.body["members"].size() == 3);
    CHECK(step.request.body["settings"]["mode"] == "semi-sync");
    CHECK(step.request.body["disks"][1]["bytes"] == 10 * gib);
    CHECK(step.request.body["disks"][1]["adopt"].is_null());
  }
}

TEST_CASE("plan: hosts hear of overcommit only where it was asked for") {
  CreateRequest request = create_request();
  const auto plain = plan_create(request, {"a", "b"}, {host("a"), host("b")}, nowhere());
  request.overcommit = true;
  const auto plan = plan_create(request, {"a", "b"}, {host("a"), host("b")}, nowhere());
  REQUIRE((plain.has_value() && plan.has_value()));
  for (const Step& step : plain->steps)
    CHECK(!step.request.body.contains("overcommit"));
  for (const Step& step : plan->steps)
    CHECK(step.request.body.at("overcommit") == true);
  const auto added = plan_add_replica("vm1", "d", three(), {host("d")}, AddedMember::overcommitted);
  REQUIRE(added.has_value());
  CHECK(added->steps[0].request.body.at("overcommit") == true);
  CHECK(added->steps[0].request.body.at("disks").size() == 1);
}

TEST_CASE("plan: an adopted image goes to the primary alone, and the replicas need a first copy") {
  CreateRequest request = create_request();
  request.disks = {{"vda", 20 * gib, "/dev/vg0/vm1"}};
  const auto plan = plan_create(request, {"a", "b"}, {host("a"), host("b")}, nowhere());
  REQUIRE(plan.has_value());
  REQUIRE(plan->steps.size() == 2);
  CHECK(plan->steps[0].request.body["disks"][0]["adopt"].is_null());
  CHECK(plan->steps[0].request.body["consistent"] == false);
  CHECK(plan->steps[1].request.body["disks"][0]["adopt"] == "/dev/vg0/vm1");
  CHECK(plan->steps[1].request.body["consistent"] == true);
  CHECK(plan->steps[1].request.body["in_sync"] == Strings{"a"});
  CHECK(plan->notes.size() == 1);
}

TEST_CASE("plan: a member without a TCP control address is known by where it was reached") {
  std::vector<HostReport> hosts{host("a")};
  hosts[0].address = "unix:/run/a.sock";
  hosts[0].facts->control.clear();
  const auto plan = plan_create(create_request(), {"a"}, hosts, {without_part("a")});
  REQUIRE(plan.has_value());
  CHECK(plan->steps[0].request.body["members"][0]["control"] == "unix:/run/a.sock");
}

TEST_CASE("plan: create refuses a name that any host has, and hosts that do not say") {
  const auto taken = plan_create(create_request(),
                                 {"a", "b"},
                                 {host("a"), host("b")},
                                 {without_part("a"), without_part("b"), member("c")});
  REQUIRE_FALSE(taken.has_value());
  CHECK(taken.error().code == Errc::exists);
  CHECK(taken.error().message == "c has a volume vm1 already");
  const auto unsure = plan_create(
      create_request(), {"a", "b"}, {host("a"), host("b")}, {without_part("a"), silent("b")});
  REQUIRE_FALSE(unsure.has_value());
  CHECK(unsure.error().code == Errc::unreachable);
  const auto other_silent = plan_create(
      create_request(), {"a"}, {host("a"), host("b")}, {without_part("a"), silent("b")});
  CHECK(other_silent.has_value());
}

TEST_CASE("plan: activate and deactivate go to the primary alone") {
  CHECK(lines(plan_activate("vm1", three())) == Strings{"a POST /v1/volumes/vm1/activate"});
  CHECK(lines(plan_deactivate("vm1", three())) == Strings{"a POST /v1/volumes/vm1/deactivate"});
}

TEST_CASE("plan: nothing changes while a volume is being handed over") {
  auto json = volume_json("a");
  json["transfer"] = {
      {"to", "b"}, {"epoch", control_test::epoch_json(4)}, {"history", json["history"]}};
  const std::vector<MemberReport> reports{member_said(json), member("b"), member("c")};
  const std::vector<Result<Plan>> plans{plan_activate("vm1", reports),
                                        plan_deactivate("vm1", reports),
                                        plan_switchover("vm1", {"b", 30000}, reports, {}),
                                        plan_remove_replica("vm1", "b", false, reports),
                                        plan_delete("vm1", true, reports),
                                        plan_resync("vm1", "b", reports),
                                        plan_add_replica("vm1", "d", reports, {host("d")})};
  for (const auto& plan : plans) {
    REQUIRE_FALSE(plan.has_value());
    CHECK(plan.error().code == Errc::busy);
    CHECK(plan.error().message == "vm1 is being handed over from a to b");
  }
}

TEST_CASE("plan: set tells the primary first and reports members that are down") {
  const auto plan = plan_set("vm1", {{"mode", "async"}}, {silent("c"), member("b"), member("a")});
  REQUIRE(plan.has_value());
  CHECK(lines(plan) == Strings{"a POST /v1/volumes/vm1/set", "b POST /v1/volumes/vm1/set"});
  CHECK(plan->steps[0].required);
  CHECK_FALSE(plan->steps[1].required);
  CHECK(plan->steps[0].request.body["settings"]["mode"] == "async");
  REQUIRE(plan->skipped.size() == 1);
  CHECK(plan->skipped[0].host == "c");
  CHECK(plan->skipped[0].reason == "cannot connect to c:7401");
}

TEST_CASE("plan: a mode that asks more of the replicas reaches them first") {
  const Strings replicas_first{
      "b POST /v1/volumes/vm1/set", "c POST /v1/volumes/vm1/set", "a POST /v1/volumes/vm1/set"};
  const auto plan = plan_set("vm1", {{"mode", "semi-sync"}}, three());
  CHECK(lines(plan) == replicas_first);
  CHECK(plan->steps[0].required);
  VolumeOptions async;
  async.mode = "async";
  CHECK(lines(plan_set("vm1", {{"mode", "sync"}}, three(async))) == replicas_first);
  CHECK(lines(plan_set("vm1", {{"ring_bytes", 1}}, three(async)))[0] ==
        "a POST /v1/volumes/vm1/set");
  const auto refused =
      plan_set("vm1", {{"mode", "semi-sync"}}, {silent("c"), member("b"), member("a")});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == Errc::unreachable);
  CHECK(refused.error().message == "c is in sync and does not answer: cannot connect to c:7401");
}

TEST_CASE("plan: set without the primary does nothing at all") {
  const auto plan = plan_set("vm1", {{"mode", "async"}}, {silent("a"), member("b"), member("c")});
  REQUIRE_FALSE(plan.has_value());
  CHECK(plan.error().code == Errc::unreachable);
}

TEST_CASE("plan: resync asks the primary, and refuses what makes no sense") {
  VolumeOptions behind;
  behind.in_sync = {"a", "b"};
  CHECK(lines(plan_resync("vm1", "c", three(behind))) == Strings{"a POST /v1/volumes/vm1/resync"});
  struct Row {
    const char* host;
    VolumeOptions options;
    Errc code;
    const char* text;
  };
  VolumeOptions stopped;
  stopped.state = "stopped";
  const std::vector<Row> rows{
      {"a", {}, Errc::refused, "a is the primary of vm1"},
      {"z", {}, Errc::not_found, "z is no member of vm1"},
      {"b", {}, Errc::refused, "b is in sync"},
      {"c", stopped, Errc::refused, "vm1 is not active"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const auto plan = plan_resync("vm1", row.host, three(row.options));
    REQUIRE_FALSE(plan.has_value());
    CHECK(plan.error().code == row.code);
    CHECK(plan.error().message.find(row.text) == 0);
  }
  const auto down =
      plan_resync("vm1", "c", {member("a", behind), member("b", behind), silent("c")});
  REQUIRE_FALSE(down.has_value());
  CHECK(down.error().code == Errc::unreachable);
}

TEST_CASE("plan: a new replica gets its part before the members learn of it") {
  const auto plan = plan_add_replica("vm1", "d", three(), {host("d")});
  REQUIRE(plan.has_value());
  CHECK(lines(plan) == Strings{"d POST /v1/volumes", "a PUT /v1/volumes/vm1/members"});
  CHECK(plan->steps[0].undo.has_value());
  CHECK(plan->steps[0].request.body["consistent"] == false);
  CHECK(plan->steps[0].request.body["uuid"] == control_test::uuid);
  CHECK(plan->steps[0].request.body["in_sync"] == Strings{"a", "b", "c"});
  CHECK(plan->steps[0].request.body["members"].size() == 4);
  CHECK(plan->steps[0].request.body["founder"] == false);
  CHECK(plan->steps[1].required);
  CHECK(plan->steps[1].request.body["members"] == plan->steps[0].request.body["members"]);
  const auto again = plan_add_replica("vm1", "b", three(), {host("b")});
  REQUIRE_FALSE(again.has_value());
  CHECK(again.error().code == Errc::exists);
  const auto dead = plan_add_replica("vm1", "d", three(), {dead_host("d")});
  REQUIRE_FALSE(dead.has_value());
  CHECK(dead.error().code == Errc::unreachable);
}

TEST_CASE("plan: a removed replica leaves the lists before its part goes") {
  const auto plan = plan_remove_replica("vm1", "b", false, three());
  REQUIRE(plan.has_value());
  CHECK(lines(plan) == Strings{"a PUT /v1/volumes/vm1/members", "b DELETE " + delete_path});
  CHECK(plan->steps[0].request.body["members"].size() == 2);
  const auto primary = plan_remove_replica("vm1", "a", false, three());
  REQUIRE_FALSE(primary.has_value());
  CHECK(primary.error().hint == "`replicactl switchover vm1` first");
  CHECK(plan_remove_replica("vm1", "z", false, three()).error().code == Errc::not_found);
}

TEST_CASE("plan: a silent replica can be removed, what is left there is reported") {
  const auto plan = plan_remove_replica("vm1", "c", false, {member("a"), member("b"), silent("c")});
  REQUIRE(plan.has_value());
  CHECK(lines(plan) == Strings{"a PUT /v1/volumes/vm1/members"});
  REQUIRE(plan->skipped.size() == 1);
  CHECK(plan->skipped[0].host == "c");
}

TEST_CASE("plan: the part of a host that is no member any more is cleared alone") {
  VolumeOptions two;
  two.members = {"a", "b"};
  const auto plan =
      plan_remove_replica("vm1", "c", false, {member("a", two), member("b", two), member("c")});
  CHECK(lines(plan) == Strings{"c DELETE " + delete_path});
}

TEST_CASE("plan: delete without force lists what would be lost") {
  VolumeOptions stopped;
  stopped.state = "stopped";
  const auto plan = plan_delete("vm1", false, three(stopped));
  REQUIRE_FALSE(plan.has_value());
  CHECK(plan.error().code == Errc::refused);
  CHECK(plan.error().message.find("\n  a: disk vda, 1 GiB") != std::string::npos);
  CHECK(plan.error().message.find("\n  c: disk vda, 1 GiB") != std::string::npos);
}

TEST_CASE("plan: delete with force removes the replicas first and the primary last") {
  VolumeOptions stopped;
  stopped.state = "stopped";
  const auto plan = plan_delete("vm1", true, three(stopped));
  CHECK(lines(plan) ==
        Strings{"b DELETE " + delete_path, "c DELETE " + delete_path, "a DELETE " + delete_path});
}

TEST_CASE("plan: delete is refused while the volume is active, and while the primary is silent") {
  const auto active = plan_delete("vm1", true, three());
  REQUIRE_FALSE(active.has_value());
  CHECK(active.error().code == Errc::busy);
  const auto headless = plan_delete("vm1", true, {silent("a"), member("b"), member("c")});
  REQUIRE_FALSE(headless.has_value());
  CHECK(headless.error().code == Errc::unreachable);
}

TEST_CASE("plan: a delete that was cut short can be finished") {
  const auto plan = plan_delete("vm1", true, {without_part("a"), without_part("b"), member("c")});
  CHECK(lines(plan) == Strings{"c DELETE " + delete_path});
  VolumeOptions stopped;
  stopped.state = "stopped";
  const auto down =
      plan_delete("vm1", true, {member("a", stopped), member("b", stopped), silent("c")});
  CHECK(lines(down) == Strings{"b DELETE " + delete_path, "a DELETE " + delete_path});
  REQUIRE(down->skipped.size() == 1);
  CHECK(down->skipped[0].host == "c");
}

TEST_CASE("plan: delete touches nothing when two hosts claim to be primary") {
  VolumeOptions stopped;
  stopped.state = "stopped";
  VolumeOptions other = stopped;
  other.primary = "b";
  const auto plan = plan_delete("vm1", true, {member("a", stopped), member("b", other)});
  REQUIRE_FALSE(plan.has_value());
  CHECK(plan.error().code == Errc::refused);
  CHECK(plan.error().message.find("both say") != std::string::npos);
}

}  // namespace
}  // namespace replicad
