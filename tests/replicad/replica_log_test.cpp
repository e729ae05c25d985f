// Recovery of a log on disk, cut and damaged at every byte.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "replicad/replica_log_files.h"
#include "tests/replicad/replica_fixture.h"

namespace replicad {
namespace {

constexpr const char* log_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
constexpr std::uint64_t file_bytes = segment_bytes_min;

/// A log directory written by hand: frames of a FakePrimary, cut into segments where the test says so.
class WrittenLog {
 public:
  explicit WrittenLog(std::string directory) : directory_(std::move(directory)) {}

  FakePrimary primary{{64 * kib}};
  std::vector<std::uint64_t> offsets;  ///< of each frame in its file
  std::vector<Sequence> firsts;        ///< of the segments

  void begin_segment(Sequence durable) {
    SegmentHeader header{log_uuid, primary.point, file_bytes, durable};
    std::array<std::byte, segment_header_bytes> bytes{};
    encode_segment_header(header, bytes);
    firsts.push_back(header.first());
    auto file = create_log_file(directory_, segment_file_name(header.first()), file_bytes);
    REQUIRE(file.has_value());
    REQUIRE(write_all_at((*file)->fd.get(), bytes, 0).has_value());
    offset_ = segment_header_bytes;
  }
  void append() {
    const auto& frame = primary.history.back();
    put(firsts.back(), offset_, frame);
    offsets.push_back(offset_);
    offset_ += frame.size();
  }
  void put(Sequence first, std::uint64_t offset, std::span<const std::byte> bytes) const {
    const Fd fd(::open(path(first).c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(fd.valid());
    REQUIRE(write_all_at(fd.get(), bytes, offset).has_value());
  }
  [[nodiscard]] std::vector<std::byte> get(Sequence first,
                                           std::uint64_t offset,
                                           std::size_t length) const {
    std::vector<std::byte> bytes(length);
    const Fd fd(::open(path(first).c_str(), O_RDONLY | O_CLOEXEC));
    REQUIRE(fd.valid());
    REQUIRE(read_all_at(fd.get(), bytes, offset).has_value());
    return bytes;
  }
  [[nodiscard]] std::string path(Sequence first) const {
    return directory_ + "/" + segment_file_name(first);
  }
  [[nodiscard]] std::uint64_t end() const { return offset_; }
  [[nodiscard]] Result<RecoveredLog> recover(const HistoryPoint& checkpoint) const {
    return recover_log(
        {.directory = directory_, .volume_uuid = log_uuid, .checkpoint = checkpoint});
  }

 private:
  std::string directory_;
  std::uint64_t offset_ = 0;
};

/// Frames whose last byte is before `offset`.
Sequence whole_frames(const WrittenLog& log, std::uint64_t offset) {
  Sequence count = 0;
  while (count < log.offsets.size() &&
         log.offsets[count] + log.primary.history[count].size() <= offset) {
    ++count;
  }
  return count;
}

void small_frames(WrittenLog& log) {
  log.begin_segment(0);
  log.primary.write_pattern(0, 0, 100, 1);
  log.append();
  log.primary.trim(0, 512, 4096);
  log.append();
  log.primary.write_pattern(0, 300, 40, 2);
  log.append();
  log.primary.flush();
  log.append();
  log.primary.write_pattern(0, 0, 70, 3);
  log.append();
}

}  // namespace

TEST_CASE("replica log: cut or damaged at any byte it recovers a strict prefix") {
  const TempDirectory directory("/dev/shm");
  WrittenLog log(directory.path());
  small_frames(log);
  const auto whole = log.get(1, segment_header_bytes, log.end() - segment_header_bytes + 64);
  const auto check = [&](std::uint64_t at, std::size_t frames_max) {
    const auto recovered = log.recover({});
    REQUIRE(recovered.has_value());
    const Sequence expected = whole_frames(log, at);
    CHECK(recovered->logged.sequence >= expected);
    CHECK(recovered->logged.sequence <= frames_max);
    CHECK(recovered->logged == log.primary.points[recovered->logged.sequence]);
    // Nothing is left behind the cut that could ever come back.
    if (!recovered->segments.empty()) {
      const std::uint64_t end = recovered->segments.back()->end_bytes;
      for (const std::byte byte : log.get(1, end, 1000))
        REQUIRE(byte == std::byte{0});
      CHECK(recovered->backlog_bytes == end - segment_header_bytes);
      const auto again = log.recover({});
      REQUIRE(again.has_value());
      CHECK(again->logged == recovered->logged);
      CHECK(again->cut.empty());
    }
  };
  for (std::uint64_t at = segment_header_bytes; at < log.end(); ++at) {
    CAPTURE(at);
    const auto from = std::size_t{at - segment_header_bytes};
    const auto restore = [&] {
      if (!std::filesystem::exists(log.path(1))) {
        WrittenLog fresh(directory.path());
        fresh.begin_segment(0);
      }
      log.put(1, segment_header_bytes, whole);
    };
    // The append stopped here.
    log.put(1, at, std::vector<std::byte>(whole.size() - from));
    const Sequence frames = whole_frames(log, at);
    check(at, frames + 1);  // one more if the lost bytes were zeroes
    restore();
    // This byte is wrong.
    auto flipped = whole;
    flipped[from] ^= std::byte{0x20};
    log.put(1, segment_header_bytes, flipped);
    check(at, frames);
    restore();
  }
}

TEST_CASE("replica log: it tells which watched ranges are changed behind the checkpoint") {
  const TempDirectory directory("/dev/shm");
  WrittenLog log(directory.path());
  small_frames(log);
  const std::vector<Range> watched{
      {0, 0, 64}, {0, 320, 1}, {0, 1024, 4096}, {0, 8192, 4096}, {1, 0, 4096}};
  const auto look = [&](const HistoryPoint& checkpoint) {
    const auto found = recover_log({.directory = directory.path(),
                                    .volume_uuid = log_uuid,
                                    .checkpoint = checkpoint,
                                    .watched = watched});
    REQUIRE(found.has_value());
    return found->touched;
  };
  CHECK(look({}) == std::vector<bool>{true, true, true, false, false});
  // Behind the third frame only the last write is left.
  std::vector<ScannedFrame> frames;
  const auto bytes = log.get(1, segment_header_bytes, log.offsets[4] - segment_header_bytes);
  frames = scan_frames(bytes, {}).frames;
  REQUIRE(frames.size() == 4);
  CHECK(look(frames[2].after) == std::vector<bool>{true, false, false, false, false});
}

TEST_CASE("replica log: a later segment continues only an unbroken history") {
  const TempDirectory directory("/dev/shm");
  WrittenLog log(directory.path());
  small_frames(log);
  log.begin_segment(2);
  log.primary.write_pattern(0, 100, 100, 4);
  log.append();
  log.primary.write_pattern(0, 200, 100, 5);
  log.append();

  SUBCASE("whole") {
    const auto recovered = log.recover({});
    REQUIRE(recovered.has_value());
    CHECK(recovered->logged == log.primary.point);
    CHECK(recovered->segments.size() == 2);
    CHECK(recovered->cut.empty());
  }
  SUBCASE("from a checkpoint in the middle") {
    const auto recovered = log.recover(log.primary.points[4]);
    REQUIRE(recovered.has_value());
    CHECK(recovered->logged == log.primary.point);
    CHECK(recovered->apply_segment == 0);
    CHECK(recovered->apply_offset == log.offsets[4]);
    CHECK(recovered->backlog_bytes == 64 + 70 + 2 * 164);
  }
  SUBCASE("from a checkpoint between the segments the first one is needless") {
    const auto recovered = log.recover(log.primary.points[5]);
    REQUIRE(recovered.has_value());
    CHECK(recovered->logged == log.primary.point);
    CHECK(recovered->segments.size() == 1);
    CHECK(recovered->spares.empty());
    CHECK(recovered->apply_offset == segment_header_bytes);
  }
  SUBCASE("a hole behind what was durable cuts the rest off") {
    log.put(1, log.offsets[3], std::vector<std::byte>(64));
    const auto recovered = log.recover({});
    REQUIRE(recovered.has_value());
    CHECK(recovered->logged == log.primary.points[3]);
    CHECK(recovered->cut.find(segment_file_name(6)) != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(log.path(6)));
  }
  SUBCASE("a hole before what the later segment knows to be durable is damage") {
    log.put(1, log.offsets[1], std::vector<std::byte>(64, std::byte{1}));
    const auto recovered = log.recover({});
    REQUIRE_FALSE(recovered.has_value());
    CHECK(recovered.error().code == Errc::corrupt);
    CHECK(recovered.error().message.find(log.path(1)) != std::string::npos);
    CHECK(std::filesystem::exists(log.path(6)));
  }
  SUBCASE("a hole before the checkpoint is damage") {
    log.put(1, log.offsets[2], std::vector<std::byte>(64, std::byte{1}));
    const auto recovered = log.recover(log.primary.points[4]);
    REQUIRE_FALSE(recovered.has_value());
    CHECK(recovered.error().code == Errc::corrupt);
    // But not if another process of history put it there: then the histories differ.
    HistoryPoint other = log.primary.points[2];
    other.digest.low ^= 1;
    const auto differs = log.recover(other);
    REQUIRE_FALSE(differs.has_value());
    CHECK(differs.error().message.find("same history") != std::string::npos);
  }
  SUBCASE("a segment whose header was never written ends the log") {
    log.put(6, 0, std::vector<std::byte>(segment_header_bytes));
    const auto recovered = log.recover({});
    REQUIRE(recovered.has_value());
    CHECK(recovered->logged == log.primary.points[5]);
    CHECK_FALSE(std::filesystem::exists(log.path(6)));
  }
  SUBCASE("a recycled file that still has its old header ends the log") {
    log.put(6, 0, log.get(1, 0, segment_header_bytes));
    const auto recovered = log.recover({});
    REQUIRE(recovered.has_value());
    CHECK(recovered->logged == log.primary.points[5]);
  }
  SUBCASE("a segment of another volume is refused") {
    SegmentHeader header{"00000000-0000-4000-8000-000000000000", {}, file_bytes, 0};
    std::array<std::byte, segment_header_bytes> bytes{};
    encode_segment_header(header, bytes);
    log.put(1, 0, bytes);
    const auto recovered = log.recover({});
    REQUIRE_FALSE(recovered.has_value());
    CHECK(recovered.error().message.find("belongs to volume") != std::string::npos);
  }
  SUBCASE("a later format is told apart") {
    auto bytes = log.get(1, 0, segment_header_bytes);
    bytes[4] = std::byte{2};
    const std::uint32_t sum = crc32c(std::span(bytes).first(segment_header_bytes - 4));
    for (std::size_t i = 0; i < 4; ++i) {
      bytes[segment_header_bytes - 4 + i] = static_cast<std::byte>(sum >> (8 * i));
    }
    log.put(1, 0, bytes);
    const auto recovered = log.recover(log.primary.points[2]);
    REQUIRE_FALSE(recovered.has_value());
    CHECK(recovered.error().code == Errc::version_mismatch);
  }
  SUBCASE("the piece right after the checkpoint is missing") {
    std::filesystem::remove(log.path(1));
    const auto recovered = log.recover(log.primary.points[4]);
    REQUIRE_FALSE(recovered.has_value());
    CHECK(recovered.error().code == Errc::corrupt);
    CHECK(recovered.error().message.find("missing") != std::string::npos);
    // From a later checkpoint nothing is missing.
    CHECK(log.recover(log.primary.points[5]).has_value());
  }
}

TEST_CASE("replica log: an empty directory, foreign files and odd sizes are no trouble") {
  const TempDirectory directory("/dev/shm");
  WrittenLog log(directory.path());
  const HistoryPoint checkpoint{{3, 4}, 77, {5, 6}};
  auto recovered = log.recover(checkpoint);
  REQUIRE(recovered.has_value());
  CHECK(recovered->logged == checkpoint);
  REQUIRE(write_file_durably(directory.path() + "/notes.txt", "hello").has_value());
  REQUIRE(create_log_file(directory.path(), spare_file_name(7), 8192).has_value());
  recovered = log.recover(checkpoint);
  REQUIRE(recovered.has_value());
  CHECK(recovered->spares.size() == 1);
  CHECK(recovered->next_spare == 8);
  // Shorter than a header, where the log would go on.
  REQUIRE(create_log_file(directory.path(), segment_file_name(78), 100).has_value());
  recovered = log.recover(checkpoint);
  REQUIRE(recovered.has_value());
  CHECK(recovered->logged == checkpoint);
  CHECK_FALSE(std::filesystem::exists(log.path(78)));
  const std::uint64_t spare_bytes =
      std::filesystem::file_size(directory.path() + "/" + spare_file_name(7));
  std::vector<Fd> kept;
  REQUIRE(remove_log(directory.path(), &kept).has_value());
  // Their space is not free before these are closed.
  REQUIRE(kept.size() == 1);
  struct stat status {};
  REQUIRE(::fstat(kept.front().get(), &status) == 0);
  CHECK(static_cast<std::uint64_t>(status.st_size) == spare_bytes);
  CHECK(status.st_nlink == 0);
  CHECK(std::filesystem::exists(directory.path() + "/notes.txt"));
  CHECK_FALSE(std::filesystem::exists(directory.path() + "/" + spare_file_name(7)));
  CHECK(remove_log(directory.path() + "/nothing").has_value());
}

}  // namespace replicad
