// A state file that was put back to an older copy (docs/decisions/0013): who notices, and that its vote does not count.
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "core/base/limits.h"
#include "core/vote/changes.h"
#include "core/vote/proposer.h"
#include "core/vote/record_json.h"

namespace replicad {
namespace {

using nlohmann::json;

TEST_CASE("state stamp: a file knows of what its process told, and of what it was loaded behind") {
  const StateStamp own{12, 7, 10};
  CHECK(knows_of(own, {12, 7, 10}));
  CHECK(knows_of(own, {11, 7, 10}));
  CHECK(knows_of(own, {10, 6, 3}));
  CHECK(knows_of(own, {9, 6, 3}));
  // An earlier process had come further, however far this one has come since.
  CHECK_FALSE(knows_of(own, {11, 6, 3}));
  CHECK_FALSE(knows_of(own, {900, 6, 3}));
  // Nobody else can have told that of this process.
  CHECK(knows_of(own, {900, 7, 10}));
}

TEST_CASE("state stamp: the later one on the same way is remembered, of another way nothing") {
  StateStamps known;
  remember(known, "b", {10, 6, 3});
  CHECK(known.at("b") == StateStamp{10, 6, 3});
  remember(known, "b", {9, 6, 3});  // overtaken on the way
  CHECK(known.at("b").generation == 10);
  remember(known, "b", {12, 6, 3});
  CHECK(known.at("b").generation == 12);
  remember(known, "b", {13, 8, 11});  // started from an older copy
  CHECK(known.at("b") == StateStamp{12, 6, 3});
  remember(known, "b", {13, 9, 12});
  CHECK(known.at("b") == StateStamp{13, 9, 12});
  remember(known, "b", {12, 6, 3});  // of the process before, late
  CHECK(known.at("b") == StateStamp{13, 9, 12});
  remember(known, StateStamps{{"b", {14, 9, 12}}, {"c", {1, 2, 0}}});
  CHECK(known.at("b").generation == 14);
  CHECK(known.at("c") == StateStamp{1, 2, 0});
}

TEST_CASE(
    "state stamp: who is added later begins above all that an earlier member of its name told") {
  CHECK(first_generation(1) == forgotten_max);
  CHECK(first_generation(5) == 5 * forgotten_max);
  CHECK(first_generation(6) > first_generation(5) + 1'000'000);
  CHECK(first_generation(counter_max) < counter_max);
}

TEST_CASE("state stamp: JSON of stamps comes back as it was, and anything else is refused") {
  const StateStamps stamps{{"a", {1, 2, 0}}, {"b", {counter_max, 0xffffffffU, counter_max}}};
  CHECK(*stamps_from_json(stamps_json(stamps)) == stamps);
  CHECK(stamps_from_json(json::object())->empty());
  CHECK_FALSE(stamps_from_json(json::array()));
  CHECK_FALSE(stamps_from_json(json(3)));
  for (const char* field : {"generation", "start", "loaded"}) {
    CAPTURE(field);
    json wrong = stamps_json(stamps);
    wrong["a"].erase(field);
    CHECK_FALSE(stamps_from_json(wrong));
    wrong["a"][field] = -1;
    CHECK_FALSE(stamps_from_json(wrong));
    wrong["a"][field] = counter_max + 1;
    CHECK_FALSE(stamps_from_json(wrong));
  }
  json many = json::object();
  for (std::size_t i = 0; i < members_max; ++i)
    many["h" + std::to_string(i)] = stamps_json(stamps).at("a");
  CHECK(stamps_from_json(many));
  many["x"] = stamps_json(stamps).at("a");
  CHECK_FALSE(stamps_from_json(many));
}

TEST_CASE("changes: the next version alone changes nothing else") {
  const Record base =
      first_record("a", {"a", "b"}, {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}});
  const auto next = change_version()(base, {9, 9});
  REQUIRE(next);
  Record expected = base;
  expected.version = base.version + 1;
  CHECK(*next == expected);
}

/// A proposer on a, whose voters are a, b and c; it remembers c's state as of generation 20.
struct StampedRound {
  using Effects = std::vector<ProposerEffect>;
  static Record record() {
    return first_record(
        "a",
        {"a", "b", "c"},
        {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}, {"c", "c:1", "c:2", false}});
  }
  Proposer proposer{"a", 7, change_claim({"a", 9, 0, true}), 3};
  VoterState state = founding_state(record());
  Effects begun;
  Ballot ballot;

  explicit StampedRound(const StateStamps& known = {{"c", {20, 6, 15}}}) {
    begun = step(proposer_event::Start{state, known});
    ballot = std::get<proposer_effect::SendPrepare>(begun[0]).request.ballot;
  }
  Effects step(const ProposerEvent& event) {
    Effects effects;
    proposer.step(event, effects);
    return effects;
  }
  Effects prepared(const std::string& host, const StateStamps& stamps = {}) {
    return step(proposer_event::PrepareAnswered{host, ballot, {true, state, {}, stamps}});
  }
};

bool is_accept(const std::vector<ProposerEffect>& effects) {
  return effects.size() == 3 && std::holds_alternative<proposer_effect::SendAccept>(effects[0]);
}

TEST_CASE("proposer: everybody who is asked hears what is remembered") {
  StampedRound round;
  for (const ProposerEffect& effect : round.begun)
    CHECK(std::get<proposer_effect::SendPrepare>(effect).request.stamps.at("c").generation == 20);
  round.prepared("a", {{"a", {4, 1, 2}}});
  const auto accepts = round.prepared("b", {{"b", {8, 1, 2}}, {"c", {21, 6, 15}}});
  REQUIRE(is_accept(accepts));
  const StateStamps expected{{"a", {4, 1, 2}}, {"b", {8, 1, 2}}, {"c", {21, 6, 15}}};
  CHECK(std::get<proposer_effect::SendAccept>(accepts[0]).request.stamps == expected);
  round.step(proposer_event::AcceptAnswered{"a", round.ballot, {true, {}, {{"a", {5, 1, 2}}}}});
  const auto told =
      round.step(proposer_event::AcceptAnswered{"b", round.ballot, {true, {}, {{"b", {9, 1, 2}}}}});
  REQUIRE(told.size() == 4);
  const StateStamps last = std::get<proposer_effect::SendChosen>(told[0]).notice.stamps;
  CHECK(last.at("a").generation == 5);
  CHECK(last.at("b").generation == 9);
}

TEST_CASE(
    "proposer: a voter whose state is older than what the proposer remembers does not count") {
  StampedRound round;
  CHECK(round.prepared("c", {{"c", {16, 8, 12}}}).empty());
  CHECK(round.prepared("a").empty());
  CHECK(is_accept(round.prepared("b")));
}

TEST_CASE(
    "proposer: a voter whose state is older than what another voter remembers does not count") {
  StampedRound round{StateStamps{}};
  CHECK(round.prepared("c", {{"c", {16, 8, 12}}}).empty());
  // b makes a quorum only together with a.
  CHECK(round.prepared("b", {{"c", {20, 6, 15}}}).empty());
  CHECK(is_accept(round.prepared("a")));
}

TEST_CASE("proposer: without another quorum such a voter is asked again and hears why") {
  StampedRound round;
  CHECK(round.prepared("a").empty());
  CHECK(round.prepared("c", {{"c", {16, 8, 12}}}).empty());
  const auto ended = round.step(proposer_event::Lost{"b", round.ballot, "down"});
  REQUIRE(ended.size() == 1);
  CHECK(std::holds_alternative<proposer_effect::BackOff>(ended[0]));
  const auto again = round.step(proposer_event::Retry{});
  REQUIRE(again.size() == 3);
  const auto& request = std::get<proposer_effect::SendPrepare>(again[2]).request;
  CHECK(request.stamps.at("c") == StateStamp{20, 6, 15});
  round.ballot = request.ballot;
  // It was only that it had started anew meanwhile.
  round.prepared("a");
  CHECK(is_accept(round.prepared("c", {{"c", {22, 9, 21}}})));
}

TEST_CASE(
    "proposer: a voter that says what is not its own state counts, of an earlier version too") {
  StampedRound round;
  CHECK(round.prepared("c", {{"b", {3, 3, 3}}}).empty());
  CHECK(is_accept(round.prepared("a", {{"a", {4, 1, 2}}})));
}

TEST_CASE("proposer: what an old state holds is not taken for what a quorum has accepted") {
  StampedRound round;
  round.state.chosen = false;
  Proposer proposer("a", 7, change_claim({"a", 9, 0, true}));
  std::vector<ProposerEffect> effects;
  proposer.step(proposer_event::Start{round.state, {{"c", {20, 6, 15}}}}, effects);
  const Ballot ballot = std::get<proposer_effect::SendPrepare>(effects[0]).request.ballot;
  effects.clear();
  const auto answer = [&](const std::string& host, const VoterState& state, StateStamps stamps) {
    proposer.step(proposer_event::PrepareAnswered{host, ballot, {true, state, {}, stamps}},
                  effects);
  };
  VoterState none = round.state;
  none.accepted = {};
  answer("c", round.state, {{"c", {16, 8, 12}}});
  answer("a", round.state, {});
  answer("b", none, {});
  REQUIRE(effects.size() == 3);
  // Completed as it is first.
  CHECK(std::get<proposer_effect::SendAccept>(effects[0]).request.record == *round.state.record);
}

}  // namespace
}  // namespace replicad
