#include "core/store/log_recovery.h"

#include <algorithm>
#include <map>

#include <doctest/doctest.h>

namespace replicad {
namespace {

constexpr std::size_t segment_size = 8192;

/// A directory in memory; removing fails after `removes_left` files.
class MemoryLog final : public LogDirectory {
 public:
  std::map<std::string, std::vector<std::byte>> files;
  int removes_left = 1000;

  Result<std::vector<std::string>> list() override {
    std::vector<std::string> names;
    for (const auto& [name, bytes] : files)
      names.push_back(name);
    return names;
  }
  Result<std::uint64_t> open(const std::string& name) override { return files.at(name).size(); }
  Status read(const std::string& name, std::span<std::byte> to, std::uint64_t offset) override {
    const auto& bytes = files.at(name);
    if (offset + to.size() > bytes.size()) return fail(Errc::corrupt, "{} is too short", name);
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
    return {};
  }
  Status write(const std::string& name,
               std::span<const std::byte> from,
               std::uint64_t offset) override {
    std::ranges::copy(from, files.at(name).begin() + static_cast<std::ptrdiff_t>(offset));
    return {};
  }
  Status zero_tail(const std::string& name, std::uint64_t offset) override {
    auto& bytes = files.at(name);
    std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(offset), bytes.end(), std::byte{0});
    return {};
  }
  Status remove(const std::string& name) override {
    if (removes_left-- <= 0) return fail_errno(EIO, "remove {}", name);
    files.erase(name);
    return {};
  }
  Status sync_file(const std::string& /*name*/) override { return {}; }
  Status sync_names() override { return {}; }
};

const std::string uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";

/// Appends a segment with `frames` zero frames; everything before it is known to be durable.
void add_segment(MemoryLog& log, HistoryPoint& point, int frames) {
  std::vector<std::byte> bytes(segment_size);
  encode_segment_header(
      {.volume_uuid = uuid,
       .before = point,
       .segment_bytes = segment_bytes_min,
       .durable = point.sequence},
      std::span<std::byte, segment_header_bytes>(bytes.data(), segment_header_bytes));
  const std::string name = segment_file_name(point.sequence + 1);
  for (int i = 0; i < frames; ++i) {
    FrameHeader header;
    header.type = FrameType::zero;
    header.epoch = {1, 7};
    header.sequence = point.sequence + 1;
    header.range = {0, 0, 4096};
    const auto at = segment_header_bytes + static_cast<std::size_t>(i) * frame_header_bytes;
    encode_header(header,
                  std::span<std::byte, frame_header_bytes>(bytes.data() + at, frame_header_bytes));
    point = advance(point, header);
  }
  log.files[name] = std::move(bytes);
}

}  // namespace

TEST_CASE("log recovery: what an interrupted removal leaves is no damage") {
  for (int removed = 0; removed <= 3; ++removed) {
    CAPTURE(removed);
    MemoryLog log;
    HistoryPoint point;
    for (int segment = 0; segment < 3; ++segment)
      add_segment(log, point, 4);
    log.removes_left = removed;
    CHECK(remove_log_files(log).has_value() == (removed == 3));
    // The images hold everything, as whenever a log is dropped.
    const auto found =
        find_log(log, {.directory = "log", .volume_uuid = uuid, .checkpoint = point});
    REQUIRE_MESSAGE(found, found.error().message);
    CHECK(found->logged == point);
    CHECK(found->backlog_bytes == 0);
    CHECK(found->segments.size() == static_cast<std::size_t>(removed == 3 ? 0 : 1));
  }
}

TEST_CASE("log recovery: a segment that is missing at the end is damage") {
  MemoryLog log;
  HistoryPoint point;
  for (int segment = 0; segment < 3; ++segment)
    add_segment(log, point, 4);
  log.files.erase(std::prev(log.files.end()));
  const auto found = find_log(log, {.directory = "log", .volume_uuid = uuid, .checkpoint = point});
  REQUIRE(!found);
  CHECK(found.error().code == Errc::corrupt);
  CHECK(found.error().message.find("damaged") != std::string::npos);
}

}  // namespace replicad
