#include "core/store/log_count.h"

#include <algorithm>
#include <array>
#include <map>

namespace replicad {

namespace {

constexpr std::uint64_t count_window_bytes = 4 * mib;
static_assert(count_window_bytes >= frame_header_bytes + data_payload_bytes_max);

/// One use.
class LogCount {
 public:
  LogCount(LogDirectory& files, const std::string& volume_uuid, Sequence after, Sequence until)
      : files_(files), volume_uuid_(volume_uuid), after_(after), until_(until) {}

  Result<std::vector<LoggedChanges>> run();

 private:
  Status count_segment(const std::string& name);
  void take(const ScanResult& found);

  LogDirectory& files_;
  const std::string& volume_uuid_;
  Sequence after_;
  Sequence until_;
  HistoryPoint point_;
  std::map<DiskIndex, LoggedChanges> changes_;
  std::vector<std::byte> window_;
};

Result<std::vector<LoggedChanges>> LogCount::run() {
  const auto names = files_.list();
  if (!names) return tl::unexpected(names.error());
  std::map<Sequence, std::string> segments;
  for (const std::string& name : *names) {
    if (const auto first = segment_first_from_name(name)) segments.emplace(*first, name);
  }
  auto at = segments.upper_bound(after_ + 1);
  if (at == segments.begin()) {
    return fail(Errc::too_far_behind, "the log does not go back to sequence {}", after_ + 1);
  }
  for (--at; at != segments.end() && point_.sequence < until_; ++at) {
    RD_TRY(count_segment(at->second));
  }
  if (point_.sequence < until_)
    return fail(Errc::too_far_behind, "the log ends at sequence {}", point_.sequence);
  std::vector<LoggedChanges> list;
  for (const auto& [disk, changes] : changes_)
    list.push_back(changes);
  return list;
}

Status LogCount::count_segment(const std::string& name) {
  const auto bytes = files_.open(name);
  if (!bytes) return tl::unexpected(bytes.error());
  if (*bytes < segment_header_bytes) return {};
  std::array<std::byte, segment_header_bytes> head{};
  RD_TRY(files_.read(name, head, 0));
  const auto header = decode_segment_header(head);
  const bool is_next = header && header->volume_uuid == volume_uuid_ &&
                       segment_file_name(header->first()) == name &&
                       (point_.sequence == 0 || header->before == point_);
  if (!is_next) return {};
  point_ = header->before;
  std::uint64_t offset = segment_header_bytes;
  while (offset < *bytes && point_.sequence < until_) {
    window_.resize(std::min(*bytes - offset, count_window_bytes));
    RD_TRY(files_.read(name, window_, offset));
    const ScanResult found = scan_frames(window_, point_);
    if (found.frames.empty()) return {};
    take(found);
    offset += found.valid_bytes;
  }
  return {};
}

void LogCount::take(const ScanResult& found) {
  for (const ScannedFrame& frame : found.frames) {
    point_ = frame.after;
    const Range& range = frame.header.range;
    if (point_.sequence > until_ || point_.sequence <= after_ || range.length_bytes == 0) continue;
    LoggedChanges& changes = changes_[range.disk];
    changes.disk = range.disk;
    ++changes.writes;
    changes.bytes += range.length_bytes;
  }
}

}  // namespace

Result<std::vector<LoggedChanges>> count_log(LogDirectory& files,
                                             const std::string& volume_uuid,
                                             Sequence after,
                                             Sequence until) {
  return LogCount(files, volume_uuid, after, until).run();
}

}  // namespace replicad
