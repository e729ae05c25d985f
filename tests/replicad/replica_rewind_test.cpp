// A replica that is rewound keeps what its blocks held (replicad/rewind_saver.h).
#include <map>

#include "core/store/failed_sync.h"
#include "replicad/lost_writes.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

const std::vector<std::uint64_t> disk_sizes{8 * mib, 1 * mib + 512};
constexpr std::byte old_byte{0xee};

std::span<const std::byte> part(const std::vector<std::byte>& image,
                                std::uint64_t offset,
                                std::uint64_t length) {
  return std::span(image).subspan(offset, length);
}

/// A replica with content of its own that is attached to the primary of another history.
struct Rewind {
  ReactorThread reactor;
  TempDirectory directory;
  ReplicaHost host{reactor, directory.path(), disk_sizes};
  FakePrimary primary{disk_sizes};
  std::vector<std::vector<std::byte>> before;

  Rewind() {
    fill(0, 1 * mib, 5 * mib);
    fill(1, 1 * mib, 512);
    host.change_state([](VolumeState& state) { state.checkpoint = {{1, 5}, 9, {3, 3}}; });
    REQUIRE(host.open().has_value());
    for (std::size_t disk = 0; disk < disk_sizes.size(); ++disk)
      before.push_back(host.image(disk));
    for (std::uint64_t i = 0; i < 3; ++i)
      primary.write_pattern(0, 4 * mib + i * 64 * kib, 8 * kib, i);
  }
  void fill(std::size_t disk, std::uint64_t offset, std::size_t length) const {
    const Fd fd(::open(host.image_path(disk).c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(write_all_at(fd.get(), std::vector<std::byte>(length, old_byte), offset).has_value());
  }
  void start(bool save) {
    primary.attach(host);
    primary.send(encode_start({.copy = true, .after = primary.point.sequence, .save = save}));
  }
  void copy(DiskIndex disk, std::uint64_t offset, std::uint64_t length) {
    const auto data = part(primary.images[disk], offset, length);
    const bool hole = std::ranges::all_of(data, [](std::byte b) { return b == std::byte{0}; });
    if (!hole && length > mib) {
      for (std::uint64_t at = 0; at < length; at += mib)
        copy(disk, offset + at, std::min(mib, length - at));
      return;
    }
    primary.send(primary.frame(hole ? FrameType::copy_zero : FrameType::copy_data,
                               {disk, offset, length},
                               hole ? std::span<const std::byte>() : data));
  }
  void copy_all() {
    copy(0, 0, 4 * mib);
    copy(0, 4 * mib, 1 * mib);
    copy(0, 5 * mib, 3 * mib);
    copy(1, 0, 1 * mib + 512);
  }
  void finish() {
    primary.finish_copy();
    CHECK(host.state().consistent);
    CHECK_FALSE(host.state().rewind.has_value());
    primary.check_images(host);
  }
  [[nodiscard]] std::string lost() const { return lost_directory(directory.path()); }
  /// Blocks that are kept, in all files, with their content; fails if one is there twice.
  [[nodiscard]] std::map<std::pair<DiskIndex, std::uint64_t>, std::vector<std::byte>> kept() const {
    std::map<std::pair<DiskIndex, std::uint64_t>, std::vector<std::byte>> blocks;
    const auto numbers = list_lost_files(lost());
    REQUIRE(numbers.has_value());
    for (const std::uint64_t number : *numbers) {
      auto reader = LostFileReader::open(lost(), number);
      INFO("open: ", reader ? "" : reader.error().message);
      REQUIRE(reader.has_value());
      CHECK(reader->header().left == HistoryPoint{{1, 5}, 9, {3, 3}});
      for (;;) {
        const auto record = reader->next(true);
        REQUIRE(record.has_value());
        if (!*record) break;
        REQUIRE_FALSE((*record)->is_damaged);
        auto content = (*record)->content;
        const Range range = (*record)->range;
        if ((*record)->is_zero) content.resize(range.length_bytes);
        for (std::uint64_t at = 0; at < range.length_bytes; at += block_bytes) {
          const auto piece = part(content, at, std::min(block_bytes, range.length_bytes - at));
          CHECK(blocks
                    .emplace(std::pair(range.disk, range.offset_bytes + at),
                             std::vector<std::byte>(piece.begin(), piece.end()))
                    .second);
        }
      }
    }
    return blocks;
  }
  /// Every block that is another one now is kept as it was. Returns how many are kept.
  std::size_t check_kept() const {
    const auto blocks = kept();
    for (DiskIndex disk = 0; disk < disk_sizes.size(); ++disk) {
      const auto now = host.image(disk);
      for (std::uint64_t at = 0; at < now.size(); at += block_bytes) {
        const std::uint64_t length = std::min<std::uint64_t>(block_bytes, now.size() - at);
        const bool same = std::ranges::equal(part(now, at, length), part(before[disk], at, length));
        const auto found = blocks.find({disk, at});
        CAPTURE(at);
        if (!same) REQUIRE(found != blocks.end());
        if (found != blocks.end())
          CHECK(std::ranges::equal(found->second, part(before[disk], at, length)));
      }
    }
    return blocks.size();
  }
};

}  // namespace

TEST_CASE("replica rewind: keeps every block that is replaced, with what it held, once") {
  Rewind rewind;
  rewind.start(true);
  // A live write into a part of two blocks, and a long zero, before the copy comes there.
  rewind.primary.send(rewind.primary.write_pattern(0, 2 * mib + 1000, 5000, 77));
  rewind.primary.send(rewind.primary.zero(0, 3 * mib, 1 * mib, true));
  rewind.copy_all();
  rewind.primary.send(rewind.primary.write_pattern(0, 2 * mib, 8192, 78));
  rewind.finish();
  CHECK(rewind.check_kept() == (5 * mib) / block_bytes + 1);
  CHECK(list_lost_files(rewind.lost()).value() == std::vector<std::uint64_t>{1});
}

TEST_CASE("replica rewind: goes on after interruptions and crashes, and keeps nothing twice") {
  Rewind rewind;
  rewind.start(true);
  rewind.copy(0, 0, 2 * mib);
  REQUIRE(wait_until([&] { return rewind.host.image(0)[1 * mib] == std::byte{0}; }));
  CHECK(rewind.host.state().rewind == 1);
  rewind.primary.disconnect();
  REQUIRE(wait_until([&] { return rewind.host.status().state == "inconsistent"; }));
  SUBCASE("the session alone") {}
  SUBCASE("the process") {
    rewind.host.kill();
    rewind.host.reopen();
  }
  // The history has gone on where the member was made equal already: that is not its own.
  rewind.primary.write_pattern(0, 1 * mib, 64 * kib, 5);
  rewind.start(false);
  rewind.copy_all();
  rewind.finish();
  CHECK(rewind.check_kept() == (5 * mib) / block_bytes + 1);
  CHECK(list_lost_files(rewind.lost()).value() == std::vector<std::uint64_t>{1, 2});
}

TEST_CASE("replica rewind: an image that is equal leaves no file") {
  Rewind rewind;
  for (std::size_t disk = 0; disk < disk_sizes.size(); ++disk)
    rewind.primary.images[disk] = rewind.before[disk];
  rewind.start(true);
  rewind.copy_all();
  rewind.finish();
  CHECK(list_lost_files(rewind.lost()).value().empty());
}

TEST_CASE("replica: the mark of a failed sync goes when the images were synced and read anew") {
  Rewind rewind;
  rewind.host.shutdown(false);
  const std::string mark = rewind.directory.path() + "/" + failed_sync_name;
  REQUIRE(write_file_durably(mark, "vda\n").has_value());
  rewind.host.reopen();
  CHECK_FALSE(std::filesystem::exists(mark));
  CHECK(rewind.host.image(0) == rewind.before[0]);
}

TEST_CASE("replica rewind: a torn or damaged file keeps what is whole") {
  Rewind rewind;
  rewind.start(true);
  rewind.copy_all();
  rewind.finish();
  const std::string path = rewind.lost() + "/" + lost_file_name(1);
  const auto size = std::filesystem::file_size(path);
  SUBCASE("torn") {
    std::filesystem::resize_file(path, size - 100);
    auto reader = LostFileReader::open(rewind.lost(), 1);
    REQUIRE(reader.has_value());
    std::size_t records = 0;
    for (;;) {
      const auto record = reader->next(true);
      if (!record) CHECK(record.error().code == Errc::corrupt);
      if (!record) break;
      REQUIRE(record->has_value());
      ++records;
    }
    CHECK(records >= 4);
  }
  SUBCASE("damaged content: named, and what follows is read") {
    {
      const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      const std::vector<std::byte> wrong(8, std::byte{1});
      REQUIRE(write_all_at(fd.get(), wrong, lost_header_bytes + frame_header_bytes + 50));
    }
    auto reader = LostFileReader::open(rewind.lost(), 1);
    REQUIRE(reader.has_value());
    const auto first = reader->next(true);
    REQUIRE((first.has_value() && first->has_value()));
    CHECK((*first)->is_damaged);
    const auto second = reader->next(true);
    REQUIRE((second.has_value() && second->has_value()));
    CHECK_FALSE((*second)->is_damaged);
    BlockMap saved(disk_sizes);
    REQUIRE(mark_saved(rewind.lost(), 1, saved).has_value());
    CHECK_FALSE(saved.overlaps_any((*first)->range));
    CHECK(saved.overlaps_any((*second)->range));
  }
  SUBCASE("no header") {
    std::filesystem::resize_file(path, 100);
    CHECK_FALSE(LostFileReader::open(rewind.lost(), 1).has_value());
  }
}

}  // namespace replicad
