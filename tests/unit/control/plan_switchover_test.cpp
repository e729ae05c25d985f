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

TEST_CASE("switchover: one request to the primary, with target and deadline") {
  const auto plan = plan_switchover("vm1", {"b", 5000}, three(), {});
  REQUIRE(plan.has_value());
  REQUIRE(plan->steps.size() == 1);
  const Step& step = plan->steps[0];
  CHECK(step.host == "a");
  CHECK(step.request.method == "POST");
  CHECK(step.request.path == "/v1/volumes/vm1/switchover");
  CHECK(step.request.body ==
        nlohmann::json{{"to", "b"}, {"deadline_ms", 5000}, {"dry_run", false}});
  CHECK(step.answer_ms > 5000);
}

TEST_CASE("switchover: without a target the best in-sync replica by score is taken") {
  std::vector<HostReport> hosts{host("a"), host("b"), host("c")};
  hosts[1].facts->load_1m = 9;
  auto plan = plan_switchover("vm1", {}, three(), hosts);
  REQUIRE(plan.has_value());
  CHECK(plan->steps[0].request.body["to"] == "c");
  CHECK(plan->notes.size() == 1);
  // c would score better but is not in sync.
  VolumeOptions behind;
  behind.in_sync = {"a", "b"};
  plan = plan_switchover("vm1", {}, three(behind), hosts);
  REQUIRE(plan.has_value());
  CHECK(plan->steps[0].request.body["to"] == "b");
  // No metrics at all: still a choice, by name.
  plan = plan_switchover("vm1", {}, three(), {dead_host("a"), dead_host("b"), dead_host("c")});
  REQUIRE(plan.has_value());
  CHECK(plan->steps[0].request.body["to"] == "b");
}

TEST_CASE("switchover: to the primary itself there is nothing to do") {
  const auto plan = plan_switchover("vm1", {"a", 30000}, three(), {});
  REQUIRE(plan.has_value());
  CHECK(plan->steps.empty());
  CHECK(plan->notes == std::vector<std::string>{"a is the primary of vm1 already"});
}

TEST_CASE("switchover: the state of the primary decides whether it can move") {
  struct Row {
    const char* state;
    Errc code;
    const char* text;
  };
  const std::vector<Row> rows{{"stopped", Errc::refused, "vm1 is not active on a"},
                              {"failed", Errc::refused, "the export of vm1 on a has failed"},
                              {"starting", Errc::busy, "vm1 is 'starting' on a"},
                              {"held", Errc::busy, "vm1 is 'held' on a"},
                              {"transferring", Errc::busy, "vm1 is being handed over"},
                              {"something new", Errc::busy, "vm1 is 'something new' on a"}};
  for (const Row& row : rows) {
    CAPTURE(row.state);
    VolumeOptions options;
    options.state = row.state;
    const auto plan = plan_switchover("vm1", {"b", 30000}, three(options), {});
    REQUIRE_FALSE(plan.has_value());
    CHECK(plan.error().code == row.code);
    CHECK(plan.error().message.find(row.text) == 0);
  }
}

TEST_CASE("switchover: a volume whose guest waits for the primary's image can be moved") {
  VolumeOptions options;
  options.state = "held";
  auto held = volume_json("a", options);
  held["error"] = {{"code", "no_space"}, {"message", "No space left on device"}, {"hint", ""}};
  const auto plan = plan_switchover(
      "vm1", {"b", 30000}, {member_said(held), member("b", options), member("c", options)}, {});
  REQUIRE_MESSAGE(plan.has_value(), plan.error().message);
  CHECK_FALSE(plan->steps.empty());
}

TEST_CASE("switchover: a target that cannot take over is refused with the reason") {
  VolumeOptions behind;
  behind.in_sync = {"a", "c"};
  auto inconsistent = volume_json("b");
  inconsistent["replica"]["consistent"] = false;
  auto detached = volume_json("a", behind);
  detached["replicas"][0]["state"] = "detached";
  // The recorded set still has b, the primary's live word is that it has left.
  auto leaving = volume_json("a");
  leaving["replicas"][0]["in_sync"] = false;
  struct Row {
    std::string to;
    std::vector<MemberReport> reports;
    Errc code;
    std::string text;
    std::string hint;
  };
  const std::vector<Row> rows{
      {"z", three(), Errc::refused, "it is no member", "members are a, b and c"},
      {"b", {member("a"), silent("b"), member("c")}, Errc::unreachable, "it does not answer", ""},
      {"b",
       {member("a"), without_part("b"), member("c")},
       Errc::unreachable,
       "there is no volume vm1",
       ""},
      {"b",
       {member("a"), member_said(inconsistent), member("c")},
       Errc::inconsistent,
       "its copy is not complete",
       "wait vm1"},
      {"b",
       three(behind),
       Errc::refused,
       "it is not in sync (catching-up, behind by 8 KiB)",
       "wait vm1 --for in-sync"},
      {"b",
       {member_said(detached), member("b", behind), member("c", behind)},
       Errc::refused,
       "detached",
       "resync vm1 --host b"},
      {"b", {member_said(leaving), member("b"), member("c")}, Errc::refused, "not in sync", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const auto plan = plan_switchover("vm1", {row.to, 30000}, row.reports, {});
    REQUIRE_FALSE(plan.has_value());
    CHECK(plan.error().code == row.code);
    CHECK(plan.error().message.find("cannot take over vm1: ") != std::string::npos);
    CHECK(plan.error().message.find(row.text) != std::string::npos);
    CHECK(plan.error().hint.find(row.hint) != std::string::npos);
  }
}

TEST_CASE("switchover: when no replica can take over each one's reason is given") {
  VolumeOptions behind;
  behind.in_sync = {"a"};
  const auto plan = plan_switchover(
      "vm1", {}, {member("a", behind), member("b", behind), silent("c")}, {host("b")});
  REQUIRE_FALSE(plan.has_value());
  CHECK(plan.error().code == Errc::refused);
  CHECK(plan.error().message.find("b cannot take over vm1: it is not in sync") !=
        std::string::npos);
  CHECK(plan.error().message.find("c cannot take over vm1: it does not answer") !=
        std::string::npos);
}

// --- handover ---

/// With a handover from a to b on record.
std::vector<MemberReport> with_handover() {
  std::vector<MemberReport> reports = three();
  for (MemberReport& report : reports)
    report.volume->vote.record->handover = HandoverState{7, "a", "b", 0};
  return reports;
}

TEST_CASE("handover: one request to the primary, refused for the reasons of a switchover") {
  const auto plan = plan_handover("vm1", {"b", 5000}, three());
  REQUIRE(plan.has_value());
  REQUIRE(plan->steps.size() == 1);
  CHECK(plan->steps[0].host == "a");
  CHECK(plan->steps[0].request.path == "/v1/volumes/vm1/handover");
  CHECK(plan->steps[0].request.body == nlohmann::json{{"to", "b"}, {"deadline_ms", 5000}});
  CHECK(plan_handover("vm1", {"a"}, three()).error().code == Errc::refused);
  CHECK(plan_handover("vm1", {"z"}, three()).error().code == Errc::refused);
  VolumeOptions behind;
  behind.in_sync = {"a", "c"};
  CHECK(plan_handover("vm1", {"b"}, three(behind)).error().code == Errc::refused);
  VolumeOptions stopped;
  stopped.state = "stopped";
  CHECK(plan_handover("vm1", {"b"}, three(stopped)).error().code == Errc::refused);
}

TEST_CASE("handover: one on record keeps others away, and is ended at the primary") {
  const std::string hint = "if the VM runs on b: `replicactl handover vm1 --finish`, else `--end`";
  CHECK(plan_handover("vm1", {"c"}, with_handover()).error().hint == hint);
  CHECK(plan_switchover("vm1", {"b", 30000}, with_handover(), {}).error().hint == hint);
  CHECK(plan_deactivate("vm1", with_handover()).error().hint == hint);
  CHECK(plan_restart("vm1", with_handover()).error().hint == hint);
  CHECK(plan_delete("vm1", true, with_handover()).error().hint == hint);
  CHECK(plan_activate("vm1", with_handover()).has_value());
  std::vector<MemberReport> moved = with_handover();
  for (MemberReport& report : moved)
    report.volume->vote.record->handover->term = 2;
  CHECK(plan_deactivate("vm1", moved).error().hint == "`replicactl handover vm1 --finish` ends it");
  const auto plan = plan_end_handover("vm1", with_handover());
  REQUIRE(plan.has_value());
  CHECK(plan->steps[0].host == "a");
  CHECK(plan->steps[0].request.path == "/v1/volumes/vm1/handover/end");
  CHECK(plan_end_handover("vm1", three()).error().code == Errc::refused);
}

TEST_CASE("handover: finished by the role's move, if that is still to come, and the end") {
  const auto idle = plan_finish_handover("vm1", with_handover());
  REQUIRE(idle.has_value());
  REQUIRE(idle->steps.size() == 2);
  CHECK(idle->steps[0].host == "a");
  CHECK(idle->steps[0].request.path == "/v1/volumes/vm1/handover/take");
  CHECK(idle->steps[0].request.body == nlohmann::json{{"id", 7}, {"to", "b"}});
  CHECK(idle->steps[1].host == "b");
  CHECK(idle->steps[1].request.path == "/v1/volumes/vm1/handover/end");
  // The old primary has accepted the record of the move, and is not told of its end yet.
  std::vector<MemberReport> reports = with_handover();
  for (MemberReport& report : reports) {
    report.volume->vote.record->handover->term = 2;
    report.volume->vote.record->primary = "b";
  }
  CHECK(plan_finish_handover("vm1", reports).error().code == Errc::busy);
  CHECK(plan_end_handover("vm1", reports).error().code == Errc::busy);
  for (MemberReport& report : reports) {
    report.volume->role = report.host == "b" ? Role::primary : Role::replica;
    report.volume->primary = "b";
  }
  const auto moved = plan_finish_handover("vm1", reports);
  REQUIRE(moved.has_value());
  REQUIRE(moved->steps.size() == 1);
  CHECK(moved->steps[0].host == "b");
  CHECK(moved->steps[0].request.path == "/v1/volumes/vm1/handover/end");
  CHECK(plan_finish_handover("vm1", three()).error().code == Errc::refused);
}

}  // namespace
}  // namespace replicad
