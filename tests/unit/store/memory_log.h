#pragma once
// A log directory in memory, with segments to be found in it.

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/store/log_recovery.h"

namespace replicad {

constexpr std::size_t memory_segment_bytes = 8192;

/// A directory in memory; removing fails after `removes_left` files.
class MemoryLog final : public LogDirectory {
 public:
  std::map<std::string, std::vector<std::byte>> files;
  /// What the disk has of a file, where the kernel takes other bytes for written.
  std::map<std::string, std::vector<std::byte>> medium;
  bool has_medium = true;
  bool medium_fails = false;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> writes;  ///< begin and end
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
  Status read_medium(const std::string& name,
                     std::span<std::byte> to,
                     std::uint64_t offset) override {
    if (!has_medium) return fail(Errc::not_supported, "{} cannot be read so", name);
    if (medium_fails) return fail_errno(EIO, "read {}", name);
    const auto& bytes = medium.contains(name) ? medium.at(name) : files.at(name);
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
    return {};
  }
  Status write(const std::string& name,
               std::span<const std::byte> from,
               std::uint64_t offset) override {
    std::ranges::copy(from, files.at(name).begin() + static_cast<std::ptrdiff_t>(offset));
    writes.emplace_back(offset, offset + from.size());
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

inline const std::string memory_uuid = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";

/// Appends a segment with `frames` zero frames; everything before it is known to be durable.
inline void add_segment(MemoryLog& log, HistoryPoint& point, int frames) {
  std::vector<std::byte> bytes(memory_segment_bytes);
  encode_segment_header(
      {.volume_uuid = memory_uuid,
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

}  // namespace replicad
