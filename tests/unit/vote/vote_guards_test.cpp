// Guards of records and proposers against what comes only in rare moments: each of these tests fails when one
// condition of core/vote is left out (`make -f Makefile.ci sim-mutants`).

#include <doctest/doctest.h>

#include "core/base/limits.h"
#include "core/vote/changes.h"
#include "core/vote/fork.h"
#include "core/vote/proposer.h"

namespace replicad {
namespace {

std::vector<MemberState> three_members() {
  return {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}, {"w", {}, "w:2", true}};
}
Record base_record() {
  return first_record("a", {"a", "b"}, three_members());
}

TEST_CASE("changes: a claim that was chosen already is its caller's own, an older term is not") {
  Record base = base_record();
  base.epoch = {5, 7};
  CHECK(change_claim({"a", 7, 4, true})(base, {}) == base);
  const auto next = change_claim({"a", 7, 5, true})(base, {});
  REQUIRE(next.has_value());
  CHECK(next->epoch == Epoch{6, 7});
  CHECK(next->in_sync == base.in_sync);
  const auto alone = change_claim({"a", 8, 5, false})(base, {});
  REQUIRE(alone.has_value());
  CHECK(alone->in_sync == std::vector<std::string>{"a"});
}

TEST_CASE("changes: an in-sync set is made of data members, the primary among them") {
  const Record base = base_record();
  const auto alone = change_in_sync("a", base.epoch, {"a", "w", "x"})(base, {});
  REQUIRE(alone.has_value());
  CHECK(alone->in_sync == std::vector<std::string>{"a"});
  CHECK(change_in_sync("a", base.epoch, {"b"})(base, {}).error().code == Errc::invalid_argument);
}

TEST_CASE("changes: a failover is done once, and only of the term that it was meant for") {
  Record base = base_record();
  base.epoch = {5, 7};
  const auto fail_over = [](const Record& record, const std::string& target, Epoch from) {
    return change_failover({target, from, 3, false})(record, {});
  };
  CHECK(fail_over(base, "b", {4, 7}).error().code == Errc::stale_epoch);
  CHECK(fail_over(base, "w", {5, 7}).error().code == Errc::refused);
  const auto next = fail_over(base, "b", {5, 7});
  REQUIRE(next.has_value());
  CHECK(next->epoch == Epoch{6, 3});
  CHECK(next->primary == "b");
  CHECK(next->in_sync == std::vector<std::string>{"b"});
  CHECK(fail_over(*next, "b", {5, 7}) == *next);
  // Another one from there is another one.
  const auto after = fail_over(*next, "b", {6, 3});
  REQUIRE(after.has_value());
  CHECK(after->epoch == Epoch{7, 3});
  Record of_other = *next;
  of_other.epoch.tag = 4;
  CHECK(fail_over(of_other, "b", {5, 7}).error().code == Errc::stale_epoch);
  of_other = *next;
  of_other.primary = "a";
  CHECK(fail_over(of_other, "b", {5, 7}).error().code == Errc::stale_epoch);
}

TEST_CASE("changes: a promotion is of the term that it was meant for, to a later one") {
  Record base = base_record();
  base.epoch = {5, 7};
  const auto promote = [&](Epoch from, Epoch epoch) {
    return change_promote({"b", from, epoch})(base, {});
  };
  CHECK(promote({5, 7}, {6, 9}).has_value());
  CHECK(promote({5, 7}, {5, 9}).error().code == Errc::stale_epoch);
  CHECK(promote({4, 1}, {9, 9}).error().code == Errc::stale_epoch);
  CHECK(promote({4, 1}, {5, 7}).error().code == Errc::stale_epoch);  // which is another host's
}

TEST_CASE("changes: the primary alone adds members, each once, and no more than there may be") {
  const Record base = base_record();
  const MemberState added{"c", "c:1", "c:2", false};
  CHECK(change_add_member("b", added)(base, {}).error().code == Errc::stale_epoch);
  const auto next = change_add_member("a", added)(base, {});
  REQUIRE(next.has_value());
  CHECK(next->version == base.version + 1);
  REQUIRE(next->members.size() == 4);
  CHECK(next->members.back() == added);
  CHECK(change_add_member("a", added)(*next, {}) == *next);
  CHECK(change_add_member("a", {"c", "c:9", "c:2", false})(*next, {}).error().code == Errc::exists);
  Record full = base;
  for (std::size_t i = full.members.size(); i < members_max; ++i)
    full.members.push_back({fmt::format("h{}", i), {}, "h:1", true});
  CHECK(change_add_member("a", added)(full, {}).error().code == Errc::refused);
  full.members.pop_back();
  CHECK(change_add_member("a", added)(full, {}).has_value());
}

TEST_CASE("changes: the primary alone removes members, others than itself") {
  const Record base = base_record();
  CHECK(change_remove_member("b", "w")(base, {}).error().code == Errc::stale_epoch);
  CHECK(change_remove_member("a", "a")(base, {}).error().code == Errc::refused);
  CHECK(change_remove_member("a", "x")(base, {}) == base);
  const auto next = change_remove_member("a", "b")(base, {});
  REQUIRE(next.has_value());
  CHECK(next->version == base.version + 1);
  REQUIRE(next->members.size() == 2);
  CHECK(next->members[0].host == "a");
  CHECK(next->members[1].host == "w");
  CHECK(next->in_sync == std::vector<std::string>{"a"});
}

TEST_CASE(
    "changes: a forced history is led by a data member that it keeps, and keeps those asked") {
  const Record base = base_record();
  CHECK(forced_record(base, "w", {"w", "b"}, {9, 9}).error().code == Errc::refused);
  CHECK(forced_record(base, "b", {"w"}, {9, 9}).error().code == Errc::refused);
  const auto forced = forced_record(base, "b", {"b", "w"}, {9, 9});
  REQUIRE(forced.has_value());
  REQUIRE(forced->members.size() == 2);
  CHECK(forced->members[0].host == "b");
  CHECK(forced->members[1].host == "w");
}

TEST_CASE("proposer: who is asked is named with its addresses") {
  Proposer proposer("a", 7, change_nothing(), 3);
  std::vector<ProposerEffect> effects;
  proposer.step(proposer_event::Start{founding_state(base_record())}, effects);
  REQUIRE(effects.size() == 3);
  for (std::size_t i = 0; i < effects.size(); ++i)
    CHECK(std::get<proposer_effect::SendPrepare>(effects[i]).to == three_members()[i]);
}

TEST_CASE("fork: an early record of a third history is no part of this one") {
  Record base = base_record();
  base.version = 5;
  const auto own = forced_record(base, "b", {"b"}, {9, 77});
  REQUIRE(own.has_value());
  Record third = base_record();
  third.fork = 88;
  CHECK(meet(*own, base, third) == Meeting::split);
}

/// A proposer on host a, whose voters are a, b and c.
struct Round {
  using Effects = std::vector<ProposerEffect>;

  static Record record() {
    return first_record(
        "a",
        {"a", "b", "c"},
        {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}, {"c", "c:1", "c:2", false}});
  }
  Proposer proposer{"a", 7, change_claim({"a", 9, 0, true}), 1};
  VoterState state = founding_state(record());
  Ballot ballot;

  Round() {
    for (const ProposerEffect& effect : step(proposer_event::Start{state}))
      ballot = std::get<proposer_effect::SendPrepare>(effect).request.ballot;
  }
  Effects step(const ProposerEvent& event) {
    Effects effects;
    proposer.step(event, effects);
    return effects;
  }
  Effects prepared(const std::string& host, bool granted = true) {
    return step(proposer_event::PrepareAnswered{host, ballot, {granted, state, {}}});
  }
  Effects accepted(const std::string& host, bool granted = true) {
    return step(proposer_event::AcceptAnswered{host, ballot, {granted, ballot}});
  }
  Effects lost(const std::string& host, const Ballot& at) {
    return step(proposer_event::Lost{host, at, "down"});
  }
  [[nodiscard]] Ballot earlier() const {
    Ballot before = ballot;
    before.nonce += 1;
    return before;
  }
};

TEST_CASE("proposer: begins once, and not without a record") {
  Round round;
  CHECK(round.step(proposer_event::Start{round.state}).empty());
  CHECK(round.step(proposer_event::Retry{}).empty());
  Proposer blank("a", 7, change_nothing());
  std::vector<ProposerEffect> effects;
  blank.step(proposer_event::Start{}, effects);
  REQUIRE(effects.size() == 1);
  CHECK(std::get<proposer_effect::Failed>(effects[0]).error.code == Errc::refused);
}

TEST_CASE("proposer: promises of another ballot, and of strangers, count for nothing") {
  Round round;
  round.prepared("a");
  CHECK(round.step(proposer_event::PrepareAnswered{"b", round.earlier(), {true, round.state, {}}})
            .empty());
  VoterState strange = round.state;
  strange.accepted.round = 900;
  strange.record->members.push_back({"x", "x:1", "x:2", false});
  CHECK(
      round.step(proposer_event::PrepareAnswered{"x", round.ballot, {true, strange, {}}}).empty());
  CHECK(round.prepared("b").size() == 3);  // accept, to each
}

TEST_CASE("proposer: a voter that has said yes to a ballot has said it") {
  Round round;
  round.prepared("b");
  CHECK(round.prepared("b", false).empty());
  CHECK(round.lost("b", round.ballot).empty());
  CHECK(round.lost("c", round.ballot).empty());
  CHECK(round.prepared("a").size() == 3);

  CHECK(round.accepted("b").empty());
  CHECK(round.accepted("b", false).empty());
  CHECK(round.lost("b", round.ballot).empty());
  CHECK(round.lost("c", round.ballot).empty());
  CHECK(round.accepted("a").size() == 4);  // chosen, to each; done
}

TEST_CASE("proposer: acceptances of another ballot, and of strangers, count for nothing") {
  Round round;
  round.prepared("a");
  round.prepared("b");
  round.accepted("a");
  CHECK(round.step(proposer_event::AcceptAnswered{"b", round.earlier(), {true, {}}}).empty());
  CHECK(round.step(proposer_event::AcceptAnswered{"x", round.ballot, {false, {}}}).empty());
  CHECK(round.prepared("c", false).empty());
  CHECK(round.lost("b", round.ballot).empty());
  const auto failed = round.lost("c", round.ballot);
  REQUIRE(failed.size() == 1);
  const auto& result = std::get<proposer_effect::Failed>(failed[0]);
  CHECK(result.error.code == Errc::unreachable);
  CHECK(result.maybe_chosen);
  CHECK(round.step(proposer_event::Retry{}).empty());
}

TEST_CASE("proposer: losses of another ballot, and of strangers, end no round and are not named") {
  Round round;
  round.prepared("a");
  CHECK(round.lost("b", round.earlier()).empty());
  CHECK(round.lost("c", round.earlier()).empty());
  CHECK(round.lost("x", round.ballot).empty());
  CHECK(round.lost("b", round.ballot).empty());
  const auto failed = round.lost("c", round.ballot);
  REQUIRE(failed.size() == 1);
  const auto& result = std::get<proposer_effect::Failed>(failed[0]);
  CHECK(result.error.code == Errc::unreachable);
  CHECK_FALSE(result.maybe_chosen);
  CHECK(result.error.message.find("b (down), c (down)") != std::string::npos);
  CHECK(result.error.message.find("x (") == std::string::npos);
}

TEST_CASE("proposer: a refusal is tried again so often, and then said") {
  Round round;
  round.prepared("b", false);
  const auto back_off = round.prepared("c", false);
  REQUIRE(back_off.size() == 1);
  CHECK(std::get<proposer_effect::BackOff>(back_off[0]).attempt == 1);
  CHECK(round.lost("a", round.ballot).empty());
  const auto again = round.step(proposer_event::Retry{});
  REQUIRE(again.size() == 3);
  round.ballot = std::get<proposer_effect::SendPrepare>(again[0]).request.ballot;
  round.prepared("b", false);
  const auto failed = round.prepared("c", false);
  REQUIRE(failed.size() == 1);
  CHECK(std::get<proposer_effect::Failed>(failed[0]).error.code == Errc::busy);
}

TEST_CASE("proposer: what comes of a round that was given up is not looked at") {
  Round round;
  round.prepared("a");
  round.prepared("b");
  round.accepted("b", false);
  REQUIRE(round.accepted("c", false).size() == 1);  // back off
  CHECK(round.accepted("a").empty());
}

TEST_CASE("proposer: a record as it should be is told, not proposed again") {
  Proposer proposer("a", 7, change_nothing());
  const VoterState state = founding_state(Round::record());
  std::vector<ProposerEffect> effects;
  proposer.step(proposer_event::Start{state}, effects);
  const Ballot ballot = std::get<proposer_effect::SendPrepare>(effects[0]).request.ballot;
  effects.clear();
  for (const char* host : {"a", "b"})
    proposer.step(proposer_event::PrepareAnswered{host, ballot, {true, state, {}}}, effects);
  REQUIRE(effects.size() == 4);
  CHECK(std::holds_alternative<proposer_effect::SendChosen>(effects[0]));
  CHECK(std::get<proposer_effect::Done>(effects[3]).record == *state.record);
}

/// Host b, to which the role and with it the tie-break of two members has moved, prepares a claim; it alone answers.
std::vector<ProposerEffect> claim_alone(bool chosen) {
  const Record two =
      first_record("a", {"a", "b"}, {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}});
  VoterState state = founding_state(two);
  state.record = change_promote({"b", {}, {1, 1}})(two, {}).value();
  state.chosen = chosen;
  Proposer proposer("b", 7, change_claim({"b", 9, 0, true}));
  std::vector<ProposerEffect> effects;
  proposer.step(proposer_event::Start{state}, effects);
  const Ballot ballot = std::get<proposer_effect::SendPrepare>(effects[0]).request.ballot;
  effects.clear();
  proposer.step(proposer_event::PrepareAnswered{"b", ballot, {true, state, {}}}, effects);
  return effects;
}

TEST_CASE("proposer: the voters before are asked until the record is known to be chosen") {
  CHECK(claim_alone(false).empty());
  const auto effects = claim_alone(true);
  REQUIRE(effects.size() == 2);
  CHECK(std::holds_alternative<proposer_effect::SendAccept>(effects[0]));
}

TEST_CASE("proposer: what a quorum holds at one ballot is chosen, and is built on at once") {
  VoterState state = founding_state(Round::record());
  state.chosen = false;
  Proposer proposer("a", 7, change_claim({"a", 9, 0, true}));
  std::vector<ProposerEffect> effects;
  proposer.step(proposer_event::Start{state}, effects);
  const Ballot ballot = std::get<proposer_effect::SendPrepare>(effects[0]).request.ballot;
  effects.clear();
  for (const char* host : {"a", "b"})
    proposer.step(proposer_event::PrepareAnswered{host, ballot, {true, state, {}}}, effects);
  REQUIRE(effects.size() == 3);
  CHECK(std::get<proposer_effect::SendAccept>(effects[0]).request.record.version == 2);
}

}  // namespace
}  // namespace replicad
