// The oracle for `async`, without processes: what it finds, and that it can find something.
#include "tests/e2e/loss_book.h"

#include <cstring>
#include <string>

#include <doctest/doctest.h>

#include "tests/e2e/process.h"

namespace replicad::e2e {
namespace {

constexpr std::size_t sector = 512;
constexpr std::size_t stripe = 8 * sector;

/// A writer as Load has one, with a clock of its own making.
struct Writer {
  std::vector<std::byte> mirror{stripe};
  LossJournal journal{1 << 20};

  void write(std::size_t at, char fill, std::int64_t sent, std::uint64_t epoch = 1) {
    const std::vector<std::byte> data(2 * sector, static_cast<std::byte>(fill));
    const auto begin = mirror.begin() + static_cast<std::ptrdiff_t>(at * sector);
    journal.add({.epoch = epoch,
                 .offset = at * sector,
                 .before = {begin, begin + 2 * sector},
                 .sent = sent,
                 .answered = sent + 1},
                data);
    std::ranges::copy(data, begin);
  }
  void find(const std::vector<std::byte>& found,
            LossBook& book,
            std::uint64_t epoch = 2,
            std::size_t pending_at = 0,
            std::vector<std::byte> pending = {}) {
    journal.reconcile(epoch, mirror, found, pending_at * sector, pending, book);
  }
};

TEST_CASE("losses: the last writes of a writer may be missing, and are taken back") {
  LossBook book(1 << 20);
  Writer writer;
  writer.write(0, 'a', 10);
  const auto kept = writer.mirror;
  writer.write(1, 'b', 20);
  writer.write(0, 'c', 30);
  writer.find(kept, book);
  CHECK(writer.mirror == kept);
  CHECK(book.lost_writes() == 2);
  CHECK(book.lost_bytes() == 4 * sector);
  // The new term goes on from there.
  writer.write(4, 'd', 40, 2);
  const auto later = writer.mirror;
  writer.find(later, book, 3);
  CHECK(book.lost_writes() == 2);
}

TEST_CASE("losses: a missing write before one that is there is none that may be lost") {
  LossBook book(1 << 20);
  Writer writer;
  writer.write(0, 'a', 10);
  writer.write(4, 'b', 20);
  std::vector<std::byte> found(stripe);
  std::memset(found.data() + 4 * sector, 'b', 2 * sector);
  CHECK_THROWS_AS(writer.find(found, book), HarnessError);
}

TEST_CASE("losses: what nobody wrote is no state of the disk") {
  LossBook book(1 << 20);
  Writer writer;
  writer.write(0, 'a', 10);
  auto found = writer.mirror;
  found[7 * sector] = std::byte{1};
  CHECK_THROWS_AS(writer.find(found, book), HarnessError);
}

TEST_CASE("losses: a request without an answer may be there in part") {
  LossBook book(1 << 20);
  Writer writer;
  writer.write(0, 'a', 10);
  const std::vector<std::byte> pending(2 * sector, std::byte{'p'});
  auto found = writer.mirror;
  std::memset(found.data() + 2 * sector, 'p', sector);
  writer.find(found, book, 2, 1, pending);
  CHECK(book.lost_writes() == 0);
  found[sector] = std::byte{'x'};
  CHECK_THROWS_AS(writer.find(found, book, 2, 1, pending), HarnessError);
}

TEST_CASE("losses: two writers' losses must fit one order of their writes") {
  LossBook book(1 << 20);
  Writer one;
  Writer two;
  const auto empty = one.mirror;
  one.write(0, 'a', 10);  // answered at 11
  two.write(0, 'b', 20);  // sent after that
  SUBCASE("the later one is missing too") {
    one.find(empty, book);
    two.find(empty, book);
    CHECK(book.lost_writes() == 2);
  }
  SUBCASE("the later one is there") {
    two.find(two.mirror, book);
    CHECK_THROWS_AS(one.find(empty, book), HarnessError);
  }
  SUBCASE("the later one is there, and is looked at last") {
    one.find(empty, book);
    CHECK_THROWS_AS(two.find(two.mirror, book), HarnessError);
  }
  SUBCASE("under way at the same time, any of them may be missing") {
    Writer three;
    three.write(0, 'c', 10);
    three.find(three.mirror, book);
    one.find(empty, book);
    CHECK(book.lost_writes() == 1);
  }
}

TEST_CASE("losses: more than the ring holds is too much") {
  LossBook book(3 * sector);
  Writer one;
  Writer two;
  const auto empty = one.mirror;
  one.write(0, 'a', 10);
  two.write(0, 'b', 10);
  one.find(empty, book);
  CHECK_THROWS_AS(two.find(empty, book), HarnessError);
}

}  // namespace
}  // namespace replicad::e2e
