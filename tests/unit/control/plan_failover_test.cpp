#include "core/control/failover_view.h"
#include "core/control/plan.h"
#include "tests/unit/control/facts.h"

namespace replicad {
namespace {

using control_test::dead_host;
using control_test::host;
using control_test::Json;
using control_test::member;
using control_test::member_said;
using control_test::silent;
using control_test::three;
using control_test::volume_json;
using control_test::VolumeOptions;

/// A replica at `sequence` whose connection has ended.
MemberReport orphan(const std::string& name, Sequence sequence, const VolumeOptions& options = {}) {
  Json json = volume_json(name, options);
  json["replica"]["connected"] = false;
  json["history"]["sequence"] = sequence;
  return member_said(json);
}

std::string line_of(const Plan& plan, const std::string& host) {
  for (const std::string& note : plan.notes) {
    if (note.starts_with(host)) return note;
  }
  return {};
}

TEST_CASE("failover: the most complete in-sync replica takes over") {
  const auto plan =
      plan_failover("vm1", {}, {silent("a"), orphan("b", 40), orphan("c", 42)}, {host("b")});
  REQUIRE_MESSAGE(plan.has_value(), (plan ? "" : plan.error().message));
  REQUIRE(plan->steps.size() == 1);
  CHECK(plan->steps[0].host == "c");
  CHECK(plan->steps[0].request.path == "/v1/volumes/vm1/failover");
  CHECK(plan->steps[0].request.body["force"] == false);
  CHECK(line_of(*plan, "b") ==
        "b: in sync, at write 40 of epoch 3, 2 writes behind the furthest copy that answers");
  CHECK(line_of(*plan, "a") == "a (primary): in sync, does not answer: cannot connect to a:7401");
}

TEST_CASE("failover: in JSON what a silent member has is not known") {
  const Json copies = copies_json(look_for_failover("", {silent("a"), orphan("b", 40)}));
  const auto of = [&](const std::string& name) {
    const auto found = std::ranges::find(
        copies, name, [](const Json& copy) { return copy["host"].get<std::string>(); });
    REQUIRE(found != copies.end());
    return *found;
  };
  CHECK(of("a")["reachable"] == false);
  for (const char* unknown : {"sequence", "epoch", "consistent", "short"})
    CHECK(of("a")[unknown].is_null());
  CHECK(of("b")["sequence"] == 40);
  CHECK(of("b")["epoch"]["number"] == 3);
}

TEST_CASE("failover: a copy that may lack what it acknowledged is not taken, unless forced") {
  Json longer = volume_json("c");
  longer["replica"]["connected"] = false;
  longer["replica"]["short"] = true;
  longer["history"]["sequence"] = 50;
  const std::vector<MemberReport> reports{silent("a"), orphan("b", 42), member_said(longer)};
  const auto plan = plan_failover("vm1", {}, reports, {});
  REQUIRE(plan.has_value());
  CHECK(plan->steps[0].host == "b");
  CHECK(line_of(*plan, "c") ==
        "c: in sync, at write 50 of epoch 3, may lack what it acknowledged before it crashed");
  const auto named = plan_failover("vm1", {"c", false}, reports, {});
  REQUIRE_FALSE(named.has_value());
  CHECK(named.error().code == Errc::refused);
  CHECK(named.error().message.starts_with("c may lack acknowledged writes of vm1"));
  CHECK(plan_failover("vm1", {"c", true}, reports, {})->steps[0].host == "c");
  // Nobody else is left: by force the most complete one.
  Json shorter = longer;
  shorter["host"] = "b";
  shorter["history"]["sequence"] = 49;
  const std::vector<MemberReport> both{silent("a"), member_said(shorter), member_said(longer)};
  const auto refused = plan_failover("vm1", {}, both, {});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().message.find("in sync and whole") != std::string::npos);
  CHECK(plan_failover("vm1", {"", true}, both, {})->steps[0].host == "c");
}

TEST_CASE(
    "failover: all in sync are short: the longest takes over if all answer and none may be "
    "longer") {
  const auto short_copy = [](const std::string& name, Sequence sequence) {
    Json json = volume_json(name);
    json["replica"]["connected"] = false;
    json["replica"]["short"] = true;
    json["history"]["sequence"] = sequence;
    return json;
  };
  Json stopped = volume_json("a");
  stopped["state"] = "stopped";
  stopped["clean"] = true;
  const Json b = short_copy("b", 41);
  const Json c = short_copy("c", 42);
  const auto plan =
      plan_failover("vm1", {}, {member_said(stopped), member_said(b), member_said(c)}, {});
  REQUIRE_MESSAGE(plan.has_value(), (plan ? "" : plan.error().message));
  CHECK(plan->steps[0].host == "c");
  CHECK(plan->steps[0].request.body["force"] == false);
  const auto said = [&](const std::string& to, const std::vector<MemberReport>& reports) {
    const auto refused = plan_failover("vm1", {to, false}, reports, {});
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code == Errc::refused);
    CHECK(plan_failover("vm1", {to, true}, reports, {}).has_value());
    return refused.error();
  };
  const Error shorter = said("b", {member_said(stopped), member_said(b), member_said(c)});
  CHECK(shorter.message.starts_with("b may lack acknowledged writes of vm1"));
  // The primary's copy is the longest, or may be.
  Json further = stopped;
  further["history"]["sequence"] = 43;
  const Error longer = said("", {member_said(further), member_said(b), member_said(c)});
  CHECK(longer.message.find("another one is longer") != std::string::npos);
  Json unclean = stopped;
  unclean["clean"] = false;
  const Error maybe = said("c", {member_said(unclean), member_said(b), member_said(c)});
  CHECK(maybe.message.find("how far the copy of a goes is not known") != std::string::npos);
  CHECK(maybe.hint.starts_with("`replicactl activate vm1`"));
  // Somebody who may have more does not answer, or could not read its log.
  const Error silence = said("", {silent("a"), member_said(b), member_said(c)});
  CHECK(silence.message.find("every member in sync answers, and a does not") != std::string::npos);
  Json unread = b;
  unread["replica"]["open"] = false;
  const Error closed = said("c", {member_said(stopped), member_said(unread), member_said(c)});
  CHECK(closed.message.find("how far the copy of b goes is not known") != std::string::npos);
  // One that lacks nothing goes before a longer one that may.
  Json whole = b;
  whole["replica"]["short"] = false;
  const auto safe =
      plan_failover("vm1", {}, {member_said(stopped), member_said(whole), member_said(c)}, {});
  CHECK(safe->steps[0].host == "b");
}

TEST_CASE("failover: among equals the better host") {
  std::vector<HostReport> hosts{host("b"), host("c")};
  hosts[0].facts->load_1m = 9;
  const std::vector<MemberReport> reports{silent("a"), orphan("b", 42), orphan("c", 42)};
  CHECK(plan_failover("vm1", {}, reports, hosts)->steps[0].host == "c");
  CHECK(plan_failover("vm1", {"b", false}, reports, hosts)->steps[0].host == "b");
  CHECK(plan_failover("vm1", {}, reports, {})->steps[0].host == "b");
}

TEST_CASE("failover: while somebody hears the primary it is refused, unless forced") {
  const auto refused = plan_failover("vm1", {}, three(), {});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == Errc::refused);
  CHECK(refused.error().message.find("alive: a says that it is serving") != std::string::npos);
  CHECK(plan_failover("vm1", {"", true}, three(), {}).has_value());
  // The primary's replicad is silent, but a replica gets its heartbeats.
  Json json = volume_json("b");
  json["replica"]["heard_seconds"] = 0.5;
  const auto heard =
      plan_failover("vm1", {}, {silent("a"), member_said(json), orphan("c", 42)}, {});
  REQUIRE_FALSE(heard.has_value());
  CHECK(heard.error().message.find("b heard it 0.5 s ago") != std::string::npos);
  // A connection that has ended counts at once, however short ago something came over it, ...
  json["replica"]["connected"] = false;
  CHECK(
      plan_failover("vm1", {}, {silent("a"), member_said(json), orphan("c", 42)}, {}).has_value());
  // ... unless another one still hears: then it was the link.
  CHECK_FALSE(
      plan_failover("vm1", {}, {silent("a"), member_said(json), member("c")}, {}).has_value());
  json["replica"]["connected"] = true;
  json["replica"]["heard_seconds"] = 5.0;
  CHECK(
      plan_failover("vm1", {}, {silent("a"), member_said(json), orphan("c", 42)}, {}).has_value());
}

TEST_CASE("failover: without a majority it is refused, and every copy is named") {
  VolumeOptions two;
  two.members = two.in_sync = {"a", "b"};
  const std::vector<MemberReport> reports{silent("a"), orphan("b", 42, two)};
  const auto refused = plan_failover("vm1", {}, reports, {});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == Errc::unreachable);
  CHECK(refused.error().message.find("1 of the 2 voters of vm1 do not answer (a)") !=
        std::string::npos);
  CHECK(refused.error().message.find("\n  b: in sync, at write 42 of epoch 3") !=
        std::string::npos);
  CHECK(refused.error().hint.find("witness") != std::string::npos);
  const auto forced = plan_failover("vm1", {"", true}, reports, {});
  REQUIRE(forced.has_value());
  CHECK(forced->steps[0].request.body["force"] == true);
  CHECK(forced->notes.back().starts_with("forced: 1 of the 2 voters"));
}

TEST_CASE("failover: a copy that is not in sync takes over by force only") {
  VolumeOptions behind;
  behind.in_sync = {"a", "c"};
  const std::vector<MemberReport> reports{
      silent("a"), orphan("b", 30, behind), orphan("c", 42, behind)};
  CHECK(plan_failover("vm1", {}, reports, {})->steps[0].host == "c");
  const auto refused = plan_failover("vm1", {"b", false}, reports, {});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().message.find("b is not in sync") != std::string::npos);
  CHECK(refused.error().message.find("12 writes behind") != std::string::npos);
  CHECK(plan_failover("vm1", {"b", true}, reports, {}).has_value());
  VolumeOptions alone;
  alone.in_sync = {"a"};
  const auto none =
      plan_failover("vm1", {}, {silent("a"), orphan("b", 30, alone), orphan("c", 42, alone)}, {});
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().message.find("no replica of vm1 that answers is in sync") !=
        std::string::npos);
}

bool names_line(const Error& error, const std::string& line) {
  return error.message.find("\n  " + line) != std::string::npos;
}

TEST_CASE("failover: what a copy lacks of each disk is asked of the furthest one, and told") {
  VolumeOptions behind;
  behind.in_sync = {"a", "c"};
  Json b = volume_json("b", behind);
  b["replica"]["connected"] = false;
  b["replica"]["heard_seconds"] = 35.0;
  b["history"]["sequence"] = 30;
  Json c = volume_json("c", behind);
  c["replica"]["connected"] = false;
  c["replica"]["heard_seconds"] = 5.0;
  std::vector<MemberReport> reports{silent("a"), member_said(b), member_said(c)};
  const auto questions = log_questions(reports);
  REQUIRE(questions.size() == 1);
  CHECK(questions[0].of == "b");
  CHECK(questions[0].host == "c");
  CHECK(questions[0].address == "c:7401");
  CHECK(questions[0].after == 30);
  const auto answer = parse_log_count(Json::parse(
      R"({"complete":true,"disks":[{"disk":"vda","writes":10,"bytes":40960,"seconds":null},
                                   {"disk":"vdb","writes":2,"bytes":1024,"seconds":null}]})"));
  REQUIRE(answer.has_value());
  reports[1].lacks = **answer;
  const auto refused = plan_failover("vm1", {"b", false}, reports, {});
  REQUIRE_FALSE(refused.has_value());
  CHECK(names_line(refused.error(), "  it lacks of vda: 10 writes, 40 KiB, of the last 30 s"));
  CHECK(names_line(refused.error(), "  it lacks of vdb: 2 writes, 1 KiB, of the last 30 s"));
  const Json copies = copies_json(look_for_failover("b", reports));
  CHECK(copies[1]["lacks"][1] ==
        Json({{"disk", "vdb"}, {"writes", 2}, {"bytes", 1024}, {"seconds", 30.0}}));
  CHECK(copies[2]["lacks"].empty());
}

TEST_CASE("failover: a primary that can be asked has told what a copy lacks of each disk") {
  Json a = volume_json("a");
  a["replicas"][0]["lag_disks"] = {
      {{"disk", "vda"}, {"writes", 7}, {"bytes", 28672}, {"seconds", 1.5}}};
  const std::vector<MemberReport> reports{member_said(a), orphan("b", 40), orphan("c", 42)};
  CHECK(log_questions(reports).empty());
  const auto refused = plan_failover("vm1", {"b", false}, reports, {});
  REQUIRE_FALSE(refused.has_value());
  CHECK(names_line(refused.error(), "  it lacks of vda: 7 writes, 28 KiB, of the last 1.5 s"));
}

TEST_CASE("failover: a log that does not go back so far says nothing") {
  const auto unknown = parse_log_count(Json::parse(R"({"complete":false,"disks":[]})"));
  REQUIRE(unknown.has_value());
  CHECK_FALSE(unknown->has_value());
  for (const char* text : {R"({})",
                           R"({"complete":true})",
                           R"({"complete":true,"disks":[{"disk":"vda","writes":-1,"bytes":1}]})"})
    CHECK(parse_log_count(Json::parse(text)).error().code == Errc::protocol);
}

TEST_CASE("failover: nothing to do at the primary, nothing possible without an answer") {
  CHECK(plan_failover("vm1", {"a", false}, three(), {})->steps.empty());
  CHECK(plan_failover("vm1", {}, {silent("a"), silent("b")}, {}).error().code == Errc::unreachable);
}

TEST_CASE("failover: a witness makes the majority and is never chosen") {
  VolumeOptions options;
  options.members = {"a", "b", "w"};
  options.in_sync = {"a", "b"};
  Json b = volume_json("b", options);
  b["replica"]["connected"] = false;
  b["vote"]["record"]["members"][2]["role"] = "witness";
  Json w = volume_json("w", options);
  w["vote"] = b["vote"];
  w["state"] = "witness";
  w.erase("replica");
  const auto plan = plan_failover("vm1", {}, {silent("a"), member_said(b), member_said(w)}, {});
  REQUIRE_MESSAGE(plan.has_value(), (plan ? "" : plan.error().message));
  CHECK(plan->steps[0].host == "b");
  CHECK(line_of(*plan, "w") == "w: witness, no copy");
}

TEST_CASE(
    "failover: voters that were there before count until the new ones are known to be chosen") {
  VolumeOptions options;
  options.members = {"a", "b", "w"};
  options.in_sync = {"a", "b"};
  Json b = volume_json("b", options);
  b["replica"]["connected"] = false;
  b["vote"]["record"]["members"][2]["role"] = "witness";
  b["vote"]["record"]["before"] = {{"hosts", {"a", "b"}}, {"tie_break", "a"}};
  Json w = volume_json("w", options);
  w["vote"] = b["vote"];
  w["state"] = "witness";
  w.erase("replica");
  const auto known = plan_failover("vm1", {}, {silent("a"), member_said(b), member_said(w)}, {});
  REQUIRE_MESSAGE(known.has_value(), (known ? "" : known.error().message));
  b["vote"]["chosen"] = w["vote"]["chosen"] = false;
  const auto unknown = plan_failover("vm1", {}, {silent("a"), member_said(b), member_said(w)}, {});
  REQUIRE_FALSE(unknown.has_value());
  CHECK(unknown.error().code == Errc::unreachable);
}

}  // namespace
}  // namespace replicad
