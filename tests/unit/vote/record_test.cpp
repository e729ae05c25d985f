// Records and votes that a peer or a damaged file may bring: each rule of check_record and of the JSON, by its message.

#include <functional>
#include <string>

#include <doctest/doctest.h>

#include "core/base/limits.h"
#include "core/vote/record_json.h"
#include "core/vote/voter.h"

namespace replicad {
namespace {

using nlohmann::json;

Record good_record() {
  Record record = first_record(
      "a",
      {"a", "b"},
      {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}, {"w", {}, "w:2", true}});
  record.before = VoterSet{{"a", "b"}, "a"};
  return record;
}
/// What check_record says of a good record that was changed.
std::string wrong(const std::function<void(Record&)>& change) {
  Record record = good_record();
  change(record);
  const Status status = check_record(record);
  return status ? "" : status.error().message;
}
bool says(const std::string& message, const std::string& part) {
  INFO("message: ", message);
  CHECK(message.find(part) != std::string::npos);
  return true;
}
std::vector<MemberState> many_members() {
  std::vector<MemberState> members = good_record().members;
  while (members.size() <= members_max)
    members.push_back({fmt::format("x{}", members.size()), "s", "c", false});
  return members;
}

TEST_CASE("record: a good one is taken, with voters before or without, and with a tie-break") {
  CHECK(wrong([](Record&) {}) == "");
  CHECK(wrong([](Record& r) { r.before.reset(); }) == "");
  CHECK(wrong([](Record& r) { r.before->tie_break = ""; }) == "");
  CHECK(wrong([](Record& r) { r.tie_break = "a"; }) == "");
}

TEST_CASE("record: members are some, not too many, with names, each once") {
  says(wrong([](Record& r) { r.members.clear(); }), "a record of 0 members");
  says(wrong([](Record& r) { r.members = many_members(); }), "a record of ");
  says(wrong([](Record& r) { r.members[1].host = "../b"; }), "bad or repeated member");
  says(wrong([](Record& r) { r.members[1].host = "w"; }), "bad or repeated member");
}

TEST_CASE("record: numbers are within their range") {
  says(wrong([](Record& r) { r.version = 0; }), "out of range");
  says(wrong([](Record& r) { r.version = counter_max + 1; }), "out of range");
  says(wrong([](Record& r) { r.epoch.number = counter_max + 1; }), "out of range");
}

TEST_CASE("record: primary and in-sync members have images, each once, the primary among them") {
  says(wrong([](Record& r) { r.primary = "w"; }), "whose primary has no images");
  says(wrong([](Record& r) { r.in_sync = {"a", "w"}; }), "bad or repeated in-sync member");
  says(wrong([](Record& r) { r.in_sync = {"a", "a"}; }), "bad or repeated in-sync member");
  says(wrong([](Record& r) { r.in_sync = {"b"}; }), "lacks the primary");
  says(wrong([](Record& r) { r.tie_break = "x"; }), "tie-break is no member");
}

TEST_CASE("record: voters before are some, not too many, with names, each once") {
  says(wrong([](Record& r) { r.before->hosts.clear(); }), "with 0 voters before");
  says(wrong([](Record& r) {
         r.before->hosts.clear();
         for (const MemberState& member : many_members())
           r.before->hosts.push_back(member.host);
       }),
       "voters before");
  says(wrong([](Record& r) { r.before->hosts[1] = "b/"; }), "bad or repeated voter before");
  says(wrong([](Record& r) { r.before->hosts[1] = "a"; }), "bad or repeated voter before");
  says(wrong([](Record& r) { r.before->tie_break = "x"; }), "tie-break before");
}

TEST_CASE("record: voters before are asked as well, each host once") {
  Record record = good_record();
  record.before = VoterSet{{"b", "gone"}, ""};
  CHECK(hosts_to_ask(record) == std::vector<std::string>{"a", "b", "w", "gone"});
  record.before.reset();
  CHECK(hosts_to_ask(record) == std::vector<std::string>{"a", "b", "w"});
}

// --- JSON ---

std::string wrong_json(const std::function<void(json&)>& change) {
  json value = record_json(good_record());
  change(value);
  const auto record = record_from_json(value);
  return record ? "" : record.error().message;
}

TEST_CASE("record: JSON of a record comes back as it was, voters before or none") {
  CHECK(record_from_json(record_json(good_record())) == good_record());
  Record record = good_record();
  record.before.reset();
  CHECK(record_from_json(record_json(record)) == record);
}

TEST_CASE("record: JSON with a field that is missing or wrong names the first of them") {
  CHECK(record_from_json(json("text")).error().message ==
        "vote: \"an object\" is missing or wrong");
  says(wrong_json([](json& j) { j.erase("epoch"); }), "\"epoch\"");
  says(wrong_json([](json& j) { j.erase("before"); }), "\"before\"");
  says(wrong_json([](json& j) { j["version"] = counter_max + 1; }), "\"version\"");
  says(wrong_json([](json& j) { j["epoch"]["tag"] = std::uint64_t{1} << 32; }), "\"epoch\"");
  says(wrong_json([](json& j) { j.erase("in_sync"); }), "\"in_sync\"");
  says(wrong_json([](json& j) { j["in_sync"] = {{"a", "b"}}; }), "\"in_sync\"");
  says(wrong_json([](json& j) { j["in_sync"] = json(std::vector<std::string>(99, "a")); }),
       "\"in_sync\"");
  says(wrong_json([](json& j) { j["primary"] = std::string(500, 'a'); }), "\"primary\"");
  says(wrong_json([](json& j) { j["members"][2]["role"] = "guest"; }), "\"role\"");
  says(wrong_json([](json& j) { j["version"] = "x", j["fork"] = "x"; }), "\"version\"");
}

TEST_CASE("vote: JSON of a voter whose ballots and record do not fit together is refused") {
  const VoterState good = founding_state(good_record());
  const auto parsed = [](const VoterState& state) { return voter_from_json(voter_json(state)); };
  REQUIRE(parsed(good).has_value());
  CHECK(*parsed(good) == good);
  VoterState ahead = good;
  ahead.accepted.round = 9;
  CHECK_FALSE(parsed(ahead).has_value());
  VoterState empty = good;
  empty.record.reset();
  CHECK_FALSE(parsed(empty).has_value());
  empty.chosen = false;
  CHECK(parsed(empty).has_value());
}

TEST_CASE("vote: an older notice, and the same ballot with another record, change nothing") {
  VoterState state = founding_state(good_record());
  const Ballot later{5, "a", 1};
  Record next = good_record();
  next.version = 2;
  REQUIRE(answer_accept(state, {later, next}));
  REQUIRE(learn_chosen(state, {Ballot{1, "a", 0}, good_record()}));
  CHECK(state.record == next);
  CHECK_FALSE(state.chosen);
  REQUIRE(learn_chosen(state, {later, next}));
  Record other = next;
  other.version = 3;
  const auto again = answer_accept(state, {later, other});
  REQUIRE(again);
  CHECK_FALSE(again->granted);
  CHECK(state.record == next);
  CHECK(answer_accept(state, {later, next})->granted);
  CHECK(state.chosen);
}

TEST_CASE("vote: a voter without a record belongs to no history and fences nobody") {
  VoterState state;
  CHECK(answer_prepare(state, {99, {1, "a", 1}}, {}).has_value());
  CHECK(raised_fence({3, 3}, state) == Epoch{3, 3});
}

}  // namespace
}  // namespace replicad
