// A handover on record: who may put it there, what moves the role by it, and all that ends it.

#include <string>

#include <doctest/doctest.h>

#include "core/vote/changes.h"
#include "core/vote/record_json.h"

namespace replicad {
namespace {

constexpr Epoch no_later_epoch{0, 0};
constexpr Epoch source_term{4, 11};

Record unprepared() {
  Record record = first_record(
      "a",
      {"a", "b", "c"},
      {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}, {"c", "c:1", "c:2", false}});
  record.epoch = source_term;
  return record;
}
Record prepared_record() {
  return change_prepare_handover(source_term, {7, "a", "b", 0})(unprepared(), no_later_epoch)
      .value();
}
Record moved_record() {
  return change_promote({"b", source_term, {5, 12}, 7})(prepared_record(), no_later_epoch).value();
}
/// The export that the move starts claims a term of its own.
Record served_record() {
  return change_claim({"b", 13, 5, true})(moved_record(), no_later_epoch).value();
}

TEST_CASE("handover: only the primary puts it on record, in its own term, to a host in sync") {
  const Record record = prepared_record();
  CHECK(record.version == unprepared().version + 1);
  CHECK(record.handover == HandoverState{7, "a", "b", 0});
  CHECK(check_record(record).has_value());
  const auto refused = [](Epoch epoch, const HandoverState& handover, const Record& base) {
    const auto next = change_prepare_handover(epoch, handover)(base, no_later_epoch);
    REQUIRE_FALSE(next.has_value());
    return next.error().code;
  };
  CHECK(refused(source_term, {7, "b", "c", 0}, unprepared()) == Errc::stale_epoch);
  CHECK(refused({4, 12}, {7, "a", "b", 0}, unprepared()) == Errc::stale_epoch);
  Record alone = unprepared();
  alone.in_sync = {"a", "c"};
  CHECK(refused(source_term, {7, "a", "b", 0}, alone) == Errc::refused);
}

TEST_CASE("handover: the second is refused, the same again changes nothing") {
  const auto again =
      change_prepare_handover(source_term, {7, "a", "b", 0})(prepared_record(), no_later_epoch);
  CHECK(again == prepared_record());
  const auto other =
      change_prepare_handover(source_term, {8, "a", "c", 0})(prepared_record(), no_later_epoch);
  REQUIRE_FALSE(other.has_value());
  CHECK(other.error().code == Errc::busy);
}

TEST_CASE("handover: it is ended by the primary in its own term, and only the one that is meant") {
  const auto ended = change_end_handover("a", source_term, 7)(prepared_record(), no_later_epoch);
  REQUIRE(ended.has_value());
  CHECK_FALSE(ended->handover);
  CHECK(change_end_handover("a", source_term, 7)(*ended, no_later_epoch) == *ended);
  CHECK(change_end_handover("a", source_term, 8)(prepared_record(), no_later_epoch) ==
        prepared_record());
  CHECK_FALSE(
      change_end_handover("b", source_term, 7)(prepared_record(), no_later_epoch).has_value());
  CHECK_FALSE(change_end_handover("a", {3, 11}, 7)(prepared_record(), no_later_epoch).has_value());
}

TEST_CASE("handover: it moves the role once, and once back") {
  const Record there = moved_record();
  CHECK(there.primary == "b");
  CHECK(there.handover == HandoverState{7, "a", "b", 5});
  CHECK(check_record(there).has_value());
  // Late or repeated.
  CHECK(change_promote({"b", source_term, {5, 12}, 7})(there, no_later_epoch) == there);
  CHECK_FALSE(change_promote({"b", source_term, {6, 9}, 7})(there, no_later_epoch).has_value());
  CHECK_FALSE(change_promote({"b", {5, 12}, {6, 9}, 7})(there, no_later_epoch).has_value());
  const Record serving = served_record();
  const auto back = change_promote({"a", serving.epoch, {7, 14}, 7})(serving, no_later_epoch);
  REQUIRE(back.has_value());
  CHECK(back->primary == "a");
  CHECK_FALSE(back->handover);
  CHECK_FALSE(change_promote({"b", back->epoch, {8, 15}, 7})(*back, no_later_epoch).has_value());
}

TEST_CASE("handover: without it on record, or to a third host, its request moves nothing") {
  const auto move = [](const Record& base, const std::string& target, std::uint32_t id) {
    return change_promote({target, base.epoch, {9, 12}, id})(base, no_later_epoch);
  };
  for (const auto& next : {move(unprepared(), "b", 7),
                           move(prepared_record(), "b", 8),
                           move(prepared_record(), "c", 7),
                           move(served_record(), "c", 7)}) {
    REQUIRE_FALSE(next.has_value());
    CHECK(next.error().code == Errc::refused);
  }
}

TEST_CASE("handover: any other move of the role ends it") {
  CHECK_FALSE(
      change_promote({"b", source_term, {5, 12}})(prepared_record(), no_later_epoch)->handover);
  CHECK_FALSE(
      change_failover({"b", source_term, 3, false})(prepared_record(), no_later_epoch)->handover);
  CHECK_FALSE(
      change_failover({"a", served_record().epoch, 3, false})(served_record(), no_later_epoch)
          ->handover);
  CHECK_FALSE(forced_record(prepared_record(), "b", {"b"}, {9, 9})->handover);
}

TEST_CASE("handover: it ends when one of its hosts leaves the in-sync set or the volume") {
  const auto in_sync = [](std::vector<std::string> hosts) {
    return change_in_sync("a", source_term, std::move(hosts))(prepared_record(), no_later_epoch)
        .value();
  };
  CHECK(in_sync({"a", "b"}).handover);
  CHECK_FALSE(in_sync({"a", "c"}).handover);
  CHECK(change_remove_member("a", "c")(prepared_record(), no_later_epoch)->handover);
  CHECK_FALSE(change_remove_member("a", "b")(prepared_record(), no_later_epoch)->handover);
  CHECK_FALSE(
      change_in_sync("b", served_record().epoch, {"b", "c"})(served_record(), no_later_epoch)
          ->handover);
}

TEST_CASE("handover: a new term of the source keeps it, of the target only the move's own") {
  CHECK(change_claim({"a", 21, 4, true})(prepared_record(), no_later_epoch)->handover);
  CHECK_FALSE(change_claim({"a", 21, 4, false})(prepared_record(), no_later_epoch)->handover);
  const Record serving = served_record();
  CHECK(serving.handover == HandoverState{7, "a", "b", 5});
  CHECK(serving.epoch.number == 6);
  CHECK(check_record(serving).has_value());
  CHECK_FALSE(change_claim({"b", 22, 6, true})(serving, no_later_epoch)->handover);
  CHECK_FALSE(change_claim({"b", 13, 5, false})(moved_record(), no_later_epoch)->handover);
}

TEST_CASE("handover: a record with one that does not fit is refused") {
  const auto wrong = [](const HandoverState& handover) {
    Record record = unprepared();
    record.in_sync = {"a", "b"};
    record.handover = handover;
    return !check_record(record).has_value();
  };
  CHECK_FALSE(wrong({7, "a", "b", 0}));
  CHECK(wrong({0, "a", "b", 0}));
  CHECK(wrong({7, "a", "a", 0}));
  CHECK(wrong({7, "a", "c", 0}));
  CHECK(wrong({7, "c", "a", 0}));
  CHECK(wrong({7, "c", "a", 3}));
  CHECK(wrong({7, "b", "a", 0}));
  CHECK(wrong({7, "a", "b", 3}));
  CHECK(wrong({7, "b", "a", 5}));
  CHECK_FALSE(wrong({7, "b", "a", 3}));
}

TEST_CASE("handover: JSON has it only where there is one") {
  CHECK_FALSE(record_json(unprepared()).contains("handover"));
  CHECK(record_from_json(record_json(prepared_record())) == prepared_record());
  CHECK(record_from_json(record_json(served_record())) == served_record());
  nlohmann::json value = record_json(prepared_record());
  value["handover"]["term"] = "x";
  CHECK(record_from_json(value).error().message == "vote: \"term\" is missing or wrong");
  value["handover"] = nullptr;
  CHECK_FALSE(record_from_json(value).has_value());
}

}  // namespace
}  // namespace replicad
