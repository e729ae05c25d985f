#include "core/control/members.h"
#include "core/control/plan.h"
#include "tests/unit/control/facts.h"

namespace replicad {
namespace {

using control_test::Json;
using control_test::member;
using control_test::member_said;
using control_test::silent;
using control_test::three;
using control_test::volume_json;
using control_test::VolumeOptions;

/// b, alone in a history of its own; `state` as a and b show it.
Json forced_b(const std::string& state) {
  VolumeOptions options;
  options.primary = "b";
  options.members = {"b"};
  options.in_sync = {"b"};
  options.epoch = 7;
  options.state = state;
  Json json = volume_json("b", options);
  json["vote"]["record"]["fork"] = 77U;
  return json;
}

MemberReport left_behind(const std::string& name) {
  Json json = volume_json(name);
  json["state"] = "split";
  json["error"] = {{"code", "diverged"}, {"message", "two histories of volume vm1"}, {"hint", ""}};
  return member_said(json);
}

std::vector<std::string> texts(const Plan& plan) {
  std::vector<std::string> all;
  for (const Step& step : plan.steps)
    all.push_back(step.host + " " + step.request.method + " " + step.request.path);
  return all;
}

TEST_CASE("resolve: those with another history give it up, then the kept one takes them in") {
  const auto plan = plan_resolve(
      "vm1", "b", {left_behind("a"), member_said(forced_b("serving")), left_behind("c")});
  REQUIRE_MESSAGE(plan.has_value(), (plan ? "" : plan.error().message));
  CHECK(texts(*plan) == std::vector<std::string>{"a POST /v1/volumes/vm1/resolve",
                                                 "c POST /v1/volumes/vm1/resolve",
                                                 "b POST /v1/volumes/vm1/resolve",
                                                 "b PUT /v1/volumes/vm1/members"});
  CHECK(plan->steps[0].request.body["record"]["fork"] == 77);
  const Json members = plan->steps[3].request.body["members"];
  REQUIRE(members.size() == 3);
  CHECK(members[0]["host"] == "b");
  CHECK(members[1]["host"] == "a");
  CHECK(members[1]["stream"] == "a:7400");
  REQUIRE(plan->notes.size() == 3);
  CHECK(plan->notes[0] ==
        "given up: a: history 00000000, version 3, epoch 3, primary a, at write 42 of epoch 3");
  CHECK(plan->notes[1].starts_with("kept: b: history 0000004d"));
}

TEST_CASE("resolve: the other way round the forced host gives up") {
  const auto plan = plan_resolve(
      "vm1", "c", {left_behind("a"), member_said(forced_b("split")), left_behind("c")});
  REQUIRE_MESSAGE(plan.has_value(), (plan ? "" : plan.error().message));
  CHECK(texts(*plan) == std::vector<std::string>{"a PUT /v1/volumes/vm1/members",
                                                 "b POST /v1/volumes/vm1/resolve",
                                                 "a POST /v1/volumes/vm1/resolve",
                                                 "c POST /v1/volumes/vm1/resolve",
                                                 "a PUT /v1/volumes/vm1/members"});
  // b has forgotten what it promised in the old history, so it leaves before it comes back.
  CHECK(plan->steps[0].request.body["members"].size() == 2);
  CHECK(plan->steps[4].request.body["members"].size() == 3);
}

TEST_CASE("resolve: refused with one history, and without the primary of the one to be kept") {
  const auto one = plan_resolve("vm1", "b", three());
  REQUIRE_FALSE(one.has_value());
  CHECK(one.error().code == Errc::refused);
  CHECK(one.error().message == "vm1 has one history");
  const auto headless =
      plan_resolve("vm1", "c", {silent("a"), member_said(forced_b("split")), left_behind("c")});
  REQUIRE_FALSE(headless.has_value());
  CHECK(headless.error().message.find("a, the primary of the history to be kept") !=
        std::string::npos);
  const auto nobody = plan_resolve("vm1", "a", {silent("a"), member("c")});
  REQUIRE_FALSE(nobody.has_value());
  CHECK(nobody.error().code == Errc::unreachable);
}

TEST_CASE("members: a member that is split is not called a left-over") {
  const auto problems = volume_problems(
      "vm1", {left_behind("a"), member_said(forced_b("serving")), left_behind("c")});
  REQUIRE_FALSE(problems.empty());
  for (const std::string& problem : problems)
    CHECK_MESSAGE(problem.find("two histories") != std::string::npos, problem);
}

}  // namespace
}  // namespace replicad
