#include "core/vote/fork.h"

#include <doctest/doctest.h>

#include "core/vote/changes.h"

namespace replicad {
namespace {

Record volume_record() {
  return first_record("a", {"a", "b"}, {{"a", "a:1", "a:2", false}, {"b", "b:1", "b:2", false}});
}

Record next_term(const Record& base, std::uint32_t tag) {
  const auto next = change_claim({base.primary, tag, 0, true})(base, {});
  REQUIRE(next.has_value());
  return *next;
}

TEST_CASE("fork: whoever has the record it was built on, or an earlier one, is a part of it") {
  const Record early = volume_record();
  const Record base = next_term(early, 5);
  const auto forced = forced_record(base, "b", {"b"}, {9, 77});
  REQUIRE(forced.has_value());
  CHECK(meet(*forced, base, base) == Meeting::part_of);
  CHECK(meet(*forced, base, early) == Meeting::part_of);
  CHECK(meet(*forced, base, *forced) == Meeting::same);
  CHECK(meet(next_term(*forced, 6), base, *forced) == Meeting::same);
}

TEST_CASE("fork: whoever went on, or was forced elsewhere, is no part of it") {
  const Record base = volume_record();
  const auto forced = forced_record(base, "b", {"b"}, {9, 77});
  REQUIRE(forced.has_value());
  CHECK(meet(*forced, base, next_term(base, 8)) == Meeting::split);
  const auto elsewhere = forced_record(base, "a", {"a"}, {9, 78});
  REQUIRE(elsewhere.has_value());
  CHECK(meet(*forced, base, *elsewhere) == Meeting::split);
  CHECK(meet(*elsewhere, base, *forced) == Meeting::split);
  CHECK(describe_history(*forced) == "history 0000004d, version 2, epoch 9, primary b");
}

}  // namespace
}  // namespace replicad
