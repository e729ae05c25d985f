// Which regions may differ from some member's after a crash
// (nbd-plugin/activity_log.h).

#include "nbd-plugin/activity_log.h"

#include <random>
#include <thread>

#include <doctest/doctest.h>
#include <fcntl.h>

#include "io/file.h"
#include "tests/plugin/activity_term.h"

namespace replicad {
namespace {

const HistoryPoint begin{{1, 1}, 100, {5, 6}};
TEST_CASE("activity: what was hot at a crash is suspect at every member") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    CHECK(term.known.lacks.empty());
    term.attach("b");
    term.attach("c");
    term.write(0);
    term.write(100 * mib);
    CHECK(term.activity->hot_regions() == 2);
  }
  PrimaryTerm term(temp, 3, behind_crash(3), true);
  for (const char* host : {"b", "c"}) {
    const KnownLack& lack = term.lack(host);
    CHECK(lack.base == 100);
    CHECK(lack.suspect.blocks() == 2 * blocks_per_region);
    CHECK(lack.suspect.overlaps_any({0, 0, 1}));
    CHECK(lack.suspect.overlaps_any({0, 100 * mib, 1}));
  }
  REQUIRE(term.known.terms.size() == 2);
  CHECK(term.known.terms[0] == Term{{1, 1}, 100, false});
  CHECK(term.known.terms[1] == Term{{2, 1}, 3'000'000, true});
  CHECK(term.activity->hot_regions() == 0);
}

TEST_CASE("activity: after an unclean end it tells where the images were not synced") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    CHECK(term.known.unsynced.empty());
    term.attach("b");
    term.attach("c");
    term.write(200 * mib);
    term.settle("b");
    term.settle("c");
    term.cool(30);
    CHECK(term.activity->hot_regions() == 0);
    term.write(100 * mib);
  }
  const std::vector<Range> hot{{0, 100 * mib, region_bytes}};
  // Also when the term that was to write them again came to nothing.
  for (const std::uint64_t number : {std::uint64_t{3}, std::uint64_t{4}}) {
    const PrimaryTerm term(temp, number, behind_crash(number), true);
    CHECK(term.known.unsynced == hot);
  }
  std::filesystem::remove(temp.file());
  const PrimaryTerm unknown(temp, 5, behind_crash(5), true);
  CHECK(unknown.known.unsynced.size() == PrimaryTerm::disk / region_bytes);
}

TEST_CASE("activity: a region goes cold when every member has it durable") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    term.attach("b");
    term.attach("c");
    term.write(0);
    term.settle("b");
    term.cool(13);
    CHECK(term.activity->hot_regions() == 1);  // c has not said so
    term.settle("c");
    term.cool(30);
    CHECK(term.activity->hot_regions() == 0);
  }
  PrimaryTerm term(temp, 3, behind_crash(3), true);
  CHECK(term.lack("b").suspect.empty());
  CHECK(term.lack("b").base == 101);
  CHECK(term.lack("c").suspect.empty());
}

TEST_CASE(
    "activity: a region goes cold over an absent member whose lack is on "
    "record") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    term.attach("b");
    term.write(0);
    term.settle("b");
    term.cool(30);
    CHECK(term.activity->hot_regions() == 0);
  }
  HistoryPoint stop;
  {
    PrimaryTerm term(temp, 3, behind_crash(3), true);
    CHECK(term.lack("b").suspect.empty());
    CHECK(term.lack("c").suspect.blocks() == blocks_per_region);
    CHECK(term.lack("c").base == 100);
    // It survives a clean stop and another crash, too.
    term.write(8 * mib);
    term.attach("b");
    REQUIRE(term.finish().has_value());
    stop = term.primary->history();
  }
  {
    PrimaryTerm term(temp, 4, stop, false);
    CHECK(term.lack("c").suspect.blocks() == 2 * blocks_per_region);
    CHECK(term.lack("c").base == 100);
    CHECK(term.known.terms.size() == 3);
  }
  PrimaryTerm term(temp, 5, behind_crash(5), true);
  CHECK(term.lack("c").suspect.blocks() == 2 * blocks_per_region);
}

/// `c` stands at `point`.
void begin_copy(PrimaryTerm& term, const HistoryPoint& point) {
  const PeerIndex c = term.primary->find_peer("c").value();
  AttachedMessage message;
  message.logged = point;
  message.durable = point.sequence;
  term.step(primary_event::PeerAttached{c, message});
  REQUIRE(term.primary->view(c, boot_time_now()).phase == PeerPhase::copying);
}

void end_copy(PrimaryTerm& term) {
  const PeerIndex c = term.primary->find_peer("c").value();
  term.step(primary_event::CopyEnding{c});
  term.step(primary_event::CopyDone{c, term.primary->history()});
  term.settle("c");
  REQUIRE(term.primary->has_everything(c));
}

TEST_CASE("activity: a member that has everything again is forgotten about") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    term.attach("b");
    term.write(0);
    term.settle("b");
    term.cool(30);
  }
  {
    PrimaryTerm term(temp, 3, behind_crash(3), true);
    begin_copy(term, begin);
    term.cool(30);
    end_copy(term);
    term.cool(5);
  }
  PrimaryTerm term(temp, 4, behind_crash(4), true);
  CHECK(term.lack("c").suspect.empty());
}

TEST_CASE("activity: what was hot at a crash stays on record until the images were synced since") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    term.write(0);
  }
  {
    // c has what the kernel's memory has here, and nothing goes cold.
    PrimaryTerm term(temp, 3, behind_crash(3), true);
    begin_copy(term, begin);
    end_copy(term);
    term.can_sync = false;
    term.cool(30);
  }
  {
    PrimaryTerm term(temp, 4, behind_crash(4), true);
    CHECK(term.lack("c").suspect.blocks() == blocks_per_region);
    CHECK(term.known.unsynced.size() == 1);
    begin_copy(term, behind_crash(3));
    end_copy(term);
    term.cool(5);
  }
  PrimaryTerm term(temp, 5, behind_crash(5), true);
  CHECK(term.lack("c").suspect.empty());
}

TEST_CASE("activity: a region that is written to again stays hot") {
  const TempPath temp;
  PrimaryTerm term(temp, 2, begin, false);
  term.attach("b");
  term.attach("c");
  for (int round = 0; round < 20; ++round) {
    term.write(0);
    term.settle("b");
    term.settle("c");
    term.cool(1);
    CHECK(term.activity->hot_regions() == 1);
  }
}

TEST_CASE("activity: a region with a write in flight does not go cold") {
  const TempPath temp;
  PrimaryTerm term(temp, 2, begin, false);
  const Range range{0, 0, 4096};
  term.attach("b");
  term.attach("c");
  term.step(primary_event::WriteArrived{1, {.kind = FrameType::write, .flags = 0, .range = range}});
  CHECK(term.activity->mark(range) == 0);
  term.cool(50);
  CHECK(term.activity->hot_regions() == 1);
  term.step(primary_event::LocalWritten{1, true});
  term.step(primary_event::FrameReady{101, 5});
  term.settle("b");
  term.settle("c");
  term.cool(20);
  CHECK(term.activity->hot_regions() == 0);
}

TEST_CASE("activity: sequential writes mark regions ahead") {
  const TempPath temp;
  PrimaryTerm term(temp, 2, begin, false);
  term.write(0);
  CHECK(term.activity->hot_regions() == 1);
  term.write(4 * mib);
  CHECK(term.activity->hot_regions() > 5);
}

TEST_CASE(
    "activity: another volume's file, or one of an older history, is not "
    "believed") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    term.write(0);
    REQUIRE(term.finish().has_value());
  }
  HistoryPoint other = begin;
  other.sequence += 7;
  PrimaryTerm term(temp, 9, other, false);
  CHECK(term.known.lacks.empty());
  CHECK(term.known.terms.empty());
}

TEST_CASE(
    "activity: a damaged page makes everything in it suspect, a damaged "
    "header everything") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    term.write(0);
  }
  const Fd file(::open(temp.file().c_str(), O_RDWR | O_CLOEXEC));
  const std::vector<std::byte> garbage(512, std::byte{0x5a});
  SUBCASE("a page") {
    REQUIRE(write_all_at(file.get(), garbage, 2 * activity_header_bytes + 1024).has_value());
    PrimaryTerm term(temp, 3, behind_crash(3), true);
    CHECK(term.lack("b").suspect.blocks() == PrimaryTerm::disk / block_bytes);
  }
  SUBCASE("both headers") {
    REQUIRE(write_all_at(file.get(), garbage, 100).has_value());
    REQUIRE(write_all_at(file.get(), garbage, activity_header_bytes + 100).has_value());
    PrimaryTerm term(temp, 3, behind_crash(3), true);
    CHECK(term.known.lacks.empty());
    CHECK(term.known.terms.empty());
  }
}

TEST_CASE("activity: many threads mark at once") {
  const TempPath temp;
  {
    PrimaryTerm term(temp, 2, begin, false);
    std::vector<std::thread> threads;
    std::atomic<int> errors{0};
    for (unsigned t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t);
        for (int i = 0; i < 300; ++i) {
          if (term.activity->mark({0, random() % (PrimaryTerm::disk - 4096), 4096}) != 0) ++errors;
        }
      });
    }
    for (std::thread& thread : threads)
      thread.join();
    CHECK(errors == 0);
    CHECK(term.activity->hot_regions() == PrimaryTerm::disk / region_bytes);
  }
  PrimaryTerm term(temp, 3, behind_crash(3), true);
  CHECK(term.lack("b").suspect.blocks() == PrimaryTerm::disk / block_bytes);
}

}  // namespace
}  // namespace replicad
