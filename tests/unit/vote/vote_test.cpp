// The rules one by one: quorums, voters, changes, the proposer's answers, JSON.

#include <doctest/doctest.h>

#include "core/vote/proposer.h"
#include "core/vote/record_json.h"

namespace replicad {
namespace {

using nlohmann::json;

std::vector<MemberState> members_of(const std::vector<std::string>& hosts) {
  std::vector<MemberState> members;
  for (const std::string& host : hosts)
    members.push_back({host, host + ":1", host + ":2", false});
  return members;
}

Record record_of(const std::vector<std::string>& hosts) {
  return first_record(hosts.front(), hosts, members_of(hosts));
}

Ballot ballot_of(std::uint64_t round, const std::string& host) {
  return {round, host, 7};
}

TEST_CASE("vote: more than half of the votes is a quorum, and the tie-break counts twice") {
  const VoterSet three{{"a", "b", "c"}, ""};
  CHECK(has_quorum(three, {"a", "b"}));
  CHECK_FALSE(has_quorum(three, {"a"}));
  CHECK_FALSE(has_quorum(three, {"a", "x", "y"}));
  const VoterSet two{{"a", "b"}, "a"};
  CHECK(has_quorum(two, {"a"}));
  CHECK_FALSE(has_quorum(two, {"b"}));
  const VoterSet four{{"a", "b", "c", "d"}, "a"};
  CHECK(has_quorum(four, {"a", "b"}));
  CHECK_FALSE(has_quorum(four, {"b", "c"}));
  CHECK(has_quorum(four, {"b", "c", "d"}));
  CHECK_FALSE(has_quorum(VoterSet{{"a", "b"}, ""}, {"a"}));
  CHECK(has_quorum(VoterSet{{"a"}, ""}, {"a"}));
}

TEST_CASE("vote: a record that moves the tie-break or changes the voters names those before") {
  const Record two = record_of({"a", "b"});
  CHECK(two.tie_break == "a");
  CHECK_FALSE(two.before);
  const auto moved = change_promote({"b", {}, {1, 1}})(two, {});
  REQUIRE(moved);
  CHECK(moved->tie_break == "b");
  REQUIRE(moved->before);
  CHECK(*moved->before == VoterSet{{"a", "b"}, "a"});
  CHECK_FALSE(has_quorum(*moved, {"a"}, false));
  CHECK_FALSE(has_quorum(*moved, {"b"}, false));
  CHECK(has_quorum(*moved, {"b"}, true));
  CHECK(has_quorum(*moved, {"a", "b"}, false));

  const auto grown = change_add_member("a", {"c", "s", "c", true})(two, {});
  REQUIRE(grown);
  CHECK(grown->tie_break == "");
  CHECK(grown->version == 2);
  CHECK_FALSE(has_quorum(*grown, {"b", "c"}, false));
  CHECK(has_quorum(*grown, {"a", "c"}, false));

  const auto claimed = change_claim({"a", 5, 0, true})(*moved, {});
  CHECK_FALSE(claimed);
  const auto again = change_claim({"b", 5, 0, true})(*moved, {9, 0});
  REQUIRE(again);
  CHECK_FALSE(again->before);
  CHECK(again->epoch == Epoch{10, 5});
}

TEST_CASE("vote: a voter keeps its promise, and takes the same request twice") {
  VoterState state = founding_state(record_of({"a", "b", "c"}));
  auto promise = answer_prepare(state, {0, ballot_of(5, "b")}, {3, 1});
  REQUIRE(promise);
  CHECK(promise->granted);
  CHECK(promise->fence == Epoch{3, 1});
  promise = answer_prepare(state, {0, ballot_of(4, "c")}, {});
  REQUIRE(promise);
  CHECK_FALSE(promise->granted);
  CHECK(promise->state.promised == ballot_of(5, "b"));

  const auto next = change_failover({"b", {}, 8, false})(*state.record, {});
  REQUIRE(next);
  auto accepted = answer_accept(state, {ballot_of(4, "c"), *next});
  REQUIRE(accepted);
  CHECK_FALSE(accepted->granted);
  for (int i = 0; i < 2; ++i) {
    accepted = answer_accept(state, {ballot_of(5, "b"), *next});
    REQUIRE(accepted);
    CHECK(accepted->granted);
    CHECK(state.record == *next);
    CHECK_FALSE(state.chosen);
  }
  CHECK(raised_fence({0, 0}, state) == Epoch{1, 8});
  CHECK(raised_fence({2, 0}, state) == Epoch{2, 0});
  REQUIRE(learn_chosen(state, {ballot_of(5, "b"), *next}));
  CHECK(state.chosen);
  CHECK(state.promised == ballot_of(5, "b"));
}

TEST_CASE("vote: a voter of another fork refuses everything, and changes nothing") {
  VoterState state = founding_state(record_of({"a", "b", "c"}));
  const VoterState before = state;
  const auto forced = forced_record(*state.record, "b", {"b", "c"}, {7, 99});
  REQUIRE(forced);
  CHECK(forced->fork == 99);
  CHECK(forced->tie_break == "b");
  const auto prepare = answer_prepare(state, {99, ballot_of(9, "b")}, {});
  REQUIRE_FALSE(prepare);
  CHECK(prepare.error().code == Errc::diverged);
  CHECK_FALSE(answer_accept(state, {ballot_of(9, "b"), *forced}));
  CHECK_FALSE(learn_chosen(state, {ballot_of(9, "b"), *forced}));
  CHECK(state == before);
}

TEST_CASE("vote: a change whose condition does not hold says what stands") {
  const Record base = record_of({"a", "b", "c"});
  CHECK(change_in_sync("b", base.epoch, {"b"})(base, {}).error().code == Errc::stale_epoch);
  CHECK(change_in_sync("a", {4, 4}, {"a"})(base, {}).error().code == Errc::stale_epoch);
  const auto shrunk = change_in_sync("a", base.epoch, {"a", "b", "z"})(base, {});
  REQUIRE(shrunk);
  CHECK(shrunk->in_sync == std::vector<std::string>{"a", "b"});
  CHECK(change_failover({"c", {}, 1, false})(*shrunk, {}).error().code == Errc::refused);
  CHECK(change_failover({"c", {}, 1, true})(*shrunk, {}).has_value());
  const auto stranger = change_failover({"z", {}, 1, true})(base, {});
  REQUIRE_FALSE(stranger);
  CHECK(stranger.error().message == "z has no images of the volume");
  CHECK(change_remove_member("a", "a")(base, {}).error().code == Errc::refused);
  const auto unchanged = change_in_sync("a", base.epoch, {"a", "b", "c"})(base, {});
  REQUIRE(unchanged);
  CHECK(*unchanged == base);
}

/// Feeds a proposer with what the voters of `states` say; those missing are lost.
struct Table {
  std::map<std::string, VoterState> states;
  std::optional<Record> done;
  std::optional<Error> failed;
  unsigned back_offs = 0;
  std::string cannot_accept;             ///< promises, and then its disk is full
  std::vector<std::string> accept_sent;  ///< to whom, in order

  void play(Proposer& proposer, const ProposerEvent& event) {
    std::vector<ProposerEffect> effects;
    proposer.step(event, effects);
    for (const ProposerEffect& effect : effects)
      perform(proposer, effect);
  }
  void perform(Proposer& proposer, const ProposerEffect& effect) {
    if (const auto* prepare = std::get_if<proposer_effect::SendPrepare>(&effect)) {
      const auto found = states.find(prepare->to.host);
      const Ballot& ballot = prepare->request.ballot;
      if (found == states.end())
        return play(proposer, proposer_event::Lost{prepare->to.host, ballot, "no route"});
      const auto reply = answer_prepare(found->second, prepare->request, {});
      play(proposer, proposer_event::PrepareAnswered{found->first, ballot, *reply});
    } else if (const auto* accept = std::get_if<proposer_effect::SendAccept>(&effect)) {
      const auto found = states.find(accept->to.host);
      const Ballot& ballot = accept->request.ballot;
      accept_sent.push_back(accept->to.host);
      if (accept->to.host == cannot_accept)
        return play(proposer, proposer_event::Lost{accept->to.host, ballot, "no space"});
      if (found == states.end())
        return play(proposer, proposer_event::Lost{accept->to.host, ballot, "no route"});
      const auto reply = answer_accept(found->second, accept->request);
      play(proposer, proposer_event::AcceptAnswered{found->first, ballot, *reply});
    } else if (const auto* chosen = std::get_if<proposer_effect::SendChosen>(&effect)) {
      const auto found = states.find(chosen->to.host);
      if (found != states.end()) REQUIRE(learn_chosen(found->second, chosen->notice));
    } else if (std::holds_alternative<proposer_effect::BackOff>(effect)) {
      ++back_offs;
    } else if (const auto* item = std::get_if<proposer_effect::Done>(&effect)) {
      done = item->record;
    } else if (const auto* error = std::get_if<proposer_effect::Failed>(&effect)) {
      failed = error->error;
    }
  }
};

TEST_CASE("vote: without a quorum the proposer names who is awaited and why") {
  Table table;
  const VoterState founding = founding_state(record_of({"a", "b", "c"}));
  table.states["a"] = founding;
  Proposer proposer("a", 1, change_claim({"a", 2, 0, true}));
  table.play(proposer, proposer_event::Start{founding});
  REQUIRE(table.failed);
  CHECK(table.failed->code == Errc::unreachable);
  CHECK(table.failed->message == "no quorum of the 3 voters: awaited b (no route), c (no route)");
  CHECK(proposer.is_over());
}

TEST_CASE("vote: who takes the role has accepted that before anybody else is asked") {
  const VoterState founding = founding_state(record_of({"a", "b", "c"}));
  for (const bool fails : {false, true}) {
    CAPTURE(fails);
    Table table;
    for (const char* host : {"a", "b", "c"})
      table.states[host] = founding;
    if (fails) table.cannot_accept = "b";
    Proposer proposer("b", 1, change_failover({"b", {}, 8, false}));
    table.play(proposer, proposer_event::Start{founding});
    if (!fails) {
      REQUIRE(table.done);
      CHECK(table.done->primary == "b");
      CHECK(table.accept_sent == std::vector<std::string>{"b", "a", "c"});
      continue;
    }
    REQUIRE(table.failed);
    CHECK(table.failed->message == "no quorum of the 3 voters: awaited b (no space)");
    CHECK(table.accept_sent == std::vector<std::string>{"b"});
    // Nobody can complete it.
    for (const char* host : {"a", "b", "c"})
      CHECK(table.states[host].record == founding.record);
  }
}

TEST_CASE("vote: who keeps the role, or does not get it, is one voter among others") {
  const VoterState founding = founding_state(record_of({"a", "b", "c"}));
  for (const bool claims : {false, true}) {
    CAPTURE(claims);
    Table table;
    for (const char* host : {"a", "b", "c"})
      table.states[host] = founding;
    table.cannot_accept = claims ? "a" : "b";
    // b gives the role to nobody: it proposes what a primary would.
    Proposer proposer(claims ? "a" : "b",
                      1,
                      claims ? change_claim({"a", 2, 0, true})
                             : change_in_sync("a", founding.record->epoch, {"a", "b"}));
    table.play(proposer, proposer_event::Start{founding});
    REQUIRE(table.done);
    CHECK(table.done->primary == "a");
    CHECK(table.accept_sent.size() == 3);
  }
}

TEST_CASE("vote: the primary of two goes on alone, the other does not") {
  for (const std::string host : {"a", "b"}) {
    Table table;
    const VoterState founding = founding_state(record_of({"a", "b"}));
    table.states[host] = founding;
    Proposer proposer(host, 1, change_nothing());
    table.play(proposer, proposer_event::Start{founding});
    CHECK(table.done.has_value() == (host == "a"));
  }
}

TEST_CASE("vote: a record that only one voter has is completed before anything is built on it") {
  Table table;
  const VoterState founding = founding_state(record_of({"a", "b", "c"}));
  for (const char* host : {"a", "b", "c"})
    table.states[host] = founding;
  const auto moved = change_failover({"b", {}, 8, false})(*founding.record, {});
  REQUIRE(answer_accept(table.states["b"], {ballot_of(5, "b"), *moved}));
  Proposer proposer("a", 1, change_claim({"a", 2, 0, true}));
  table.play(proposer, proposer_event::Start{founding});
  // Overtaken by b's promise, then it finds that b is the primary.
  CHECK(table.back_offs == 1);
  table.play(proposer, proposer_event::Retry{});
  REQUIRE(table.failed);
  CHECK(table.failed->code == Errc::stale_epoch);
  CHECK(table.failed->message == "b is the primary since epoch 1");
  for (const char* host : {"a", "b", "c"}) {
    CHECK(table.states[host].record == *moved);
    CHECK(table.states[host].chosen);
  }
}

TEST_CASE("vote: what is written as JSON is read back, and anything else is refused") {
  VoterState state = founding_state(record_of({"a", "b"}));
  state.promised = ballot_of(9, "b");
  state.record = *change_promote({"b", {}, {4, 5}})(*state.record, {});
  state.record->members[0].witness = false;
  const json document = voter_json(state);
  const auto read = voter_from_json(document);
  REQUIRE(read);
  CHECK(*read == state);
  CHECK(*voter_from_json(voter_json({})) == VoterState{});
  // Every single field is needed, and no field may have another type.
  for (const char* pointer : {"/promised",
                              "/accepted/round",
                              "/accepted/nonce",
                              "/chosen",
                              "/record/version",
                              "/record/epoch/tag",
                              "/record/members/0/role",
                              "/record/members/1/host",
                              "/record/in_sync/0",
                              "/record/before/hosts",
                              "/record/tie_break"}) {
    CAPTURE(pointer);
    json wrong = document;
    wrong[json::json_pointer(pointer)] = json::array({1, 2});
    const auto refused = voter_from_json(wrong);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::protocol);
  }
  for (const json& wrong : {json(), json(7), json::array(), json::object(), json("x")})
    CHECK_FALSE(voter_from_json(wrong));
  json twice = document;
  twice["record"]["members"][1]["host"] = "a";
  CHECK_FALSE(voter_from_json(twice));
}

}  // namespace
}  // namespace replicad
