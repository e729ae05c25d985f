#include "core/store/log_recovery.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>

#include "core/base/check.h"
#include "core/base/sectors.h"

namespace replicad {

namespace {

constexpr std::string_view spare_prefix = "spare.";
constexpr std::uint64_t window_bytes = 4 * mib;
static_assert(window_bytes >= frame_header_bytes + data_payload_bytes_max);

std::optional<std::uint64_t> spare_number_from_name(std::string_view name) {
  if (!name.starts_with(spare_prefix)) return std::nullopt;
  name.remove_prefix(spare_prefix.size());
  std::uint64_t number = 0;
  const auto [after, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc{} || after != name.data() + name.size() || number > counter_max) {
    return std::nullopt;
  }
  return number;
}

struct Listing {
  std::map<Sequence, std::string> segments;
  std::map<std::uint64_t, std::string> spares;
};

Result<Listing> list_log(LogDirectory& files) {
  const auto names = files.list();
  if (!names) return tl::unexpected(names.error());
  Listing listing;
  for (const std::string& name : *names) {
    if (const auto first = segment_first_from_name(name)) listing.segments.emplace(*first, name);
    if (const auto number = spare_number_from_name(name)) listing.spares.emplace(*number, name);
  }
  return listing;
}

/// Whether what lies behind the last frame is what a file holds that was never written there, or an earlier use.
bool is_clean_end(std::span<const std::byte> rest, Sequence last) {
  const auto head = rest.first(std::min(rest.size(), frame_header_bytes));
  if (std::ranges::all_of(head, [](std::byte b) { return b == std::byte{0}; })) return true;
  if (rest.size() < frame_header_bytes) return false;
  const auto header = decode_header(rest.first<frame_header_bytes>());
  return header && is_numbered(header->type) && header->sequence <= last;
}

/// One file that might be a segment.
struct Candidate {
  Sequence first = 0;
  std::string name;
  std::uint64_t bytes = 0;
  Result<SegmentHeader> header = fail(Errc::corrupt, "not read");
};

/// Follows the history through the segments. One use.
class LogScan {
 public:
  LogScan(LogDirectory& files, const LogRecoveryOptions& options)
      : files_(files), options_(options) {}

  Result<FoundLog> run();

 private:
  [[nodiscard]] std::string path(const std::string& name) const {
    return options_.directory + "/" + name;
  }
  Status open_candidates(const Listing& listing);
  Status keep_spares(const Listing& listing);
  Status check_first();
  Status follow();
  [[nodiscard]] bool continues(const Candidate& candidate);
  Status scan(const Candidate& candidate);
  Status secure_header(const Candidate& candidate);
  Status secure_frames(const Candidate& candidate,
                       std::span<const std::byte> frames,
                       std::uint64_t offset);
  Status secure(const Candidate& candidate, std::span<const std::byte> bytes, std::uint64_t offset);
  Status take_frames(const ScanResult& found, std::uint64_t window_offset);
  void note_touched(const Range& range);
  Status check_checkpoint(const HistoryPoint& point) const;
  Status check_proven() const;
  Status remove_obsolete();
  Status cut_tail();
  Status sync();

  LogDirectory& files_;
  const LogRecoveryOptions& options_;
  std::vector<std::string> obsolete_;  ///< wholly before the checkpoint
  std::vector<Candidate> candidates_;  ///< from the one that holds the checkpoint on
  FoundLog log_;
  HistoryPoint point_;        ///< what has been followed so far
  std::string end_;           ///< file and offset where the last scan ended
  bool apply_found_ = false;  ///< apply_segment and apply_offset are set
  std::vector<std::byte> window_;
  std::vector<std::byte> medium_;
};

Result<FoundLog> LogScan::run() {
  const auto listing = list_log(files_);
  if (!listing) return tl::unexpected(listing.error());
  log_.logged = options_.checkpoint;
  log_.touched.resize(options_.watched.size());
  RD_TRY(open_candidates(*listing));
  RD_TRY(keep_spares(*listing));
  if (!candidates_.empty()) {
    RD_TRY(check_first());
    RD_TRY(follow());
    RD_TRY(check_proven());
    log_.logged = point_;
    if (!options_.look_only) {
      RD_TRY(remove_obsolete());
      RD_TRY(cut_tail());
    }
  }
  if (!options_.look_only) RD_TRY(sync());
  return std::move(log_);
}

/// Segments wholly before the checkpoint are not needed: the image holds what is in them.
Status LogScan::open_candidates(const Listing& listing) {
  const Sequence next = options_.checkpoint.sequence + 1;
  auto start = listing.segments.upper_bound(next);
  if (start == listing.segments.begin()) {
    if (start == listing.segments.end()) return {};
    return fail(
        Errc::corrupt,
        "log {}: the first segment begins at sequence {}, the image holds everything up to {}: "
        "the piece right after the checkpoint is missing",
        options_.directory,
        start->first,
        options_.checkpoint.sequence);
  }
  --start;
  for (auto at = listing.segments.begin(); at != listing.segments.end(); ++at) {
    if (at->first < start->first) {
      obsolete_.push_back(at->second);
      continue;
    }
    const auto bytes = files_.open(at->second);
    if (!bytes) return tl::unexpected(bytes.error());
    Candidate candidate{at->first, at->second, *bytes, fail(Errc::corrupt, "it is too short")};
    if (*bytes >= segment_header_bytes) {
      std::array<std::byte, segment_header_bytes> header{};
      RD_TRY(files_.read(at->second, header, 0));
      candidate.header = decode_segment_header(header);
    }
    candidates_.push_back(std::move(candidate));
  }
  return {};
}

Status LogScan::keep_spares(const Listing& listing) {
  for (const auto& [number, name] : listing.spares) {
    const auto bytes = files_.open(name);
    if (!bytes) return tl::unexpected(bytes.error());
    log_.spares.push_back(name);
    log_.next_spare = number + 1;
  }
  return {};
}

/// The segment that holds the checkpoint was on stable storage: nothing may be wrong with its head.
Status LogScan::check_first() {
  const Candidate& first = candidates_.front();
  const std::string where = path(first.name);
  if (!first.header) {
    if (first.first == options_.checkpoint.sequence + 1 &&
        first.header.error().code == Errc::corrupt) {
      return {};  // begun right behind the checkpoint, and torn
    }
    return fail(first.header.error().code, "{}: {}", where, first.header.error().message);
  }
  if (first.header->volume_uuid != options_.volume_uuid) {
    return fail(Errc::corrupt,
                "{} belongs to volume {}, not to {}",
                where,
                first.header->volume_uuid,
                options_.volume_uuid);
  }
  if (first.header->first() != first.first) {
    if (first.first == options_.checkpoint.sequence + 1) return {};
    return fail(
        Errc::corrupt, "{} says that it begins at sequence {}", where, first.header->first());
  }
  return {};
}

bool LogScan::continues(const Candidate& candidate) {
  std::string reason;
  if (!candidate.header) {
    reason = candidate.header.error().message;
  } else if (candidate.header->volume_uuid != options_.volume_uuid) {
    reason = "it belongs to another volume";
  } else if (candidate.header->first() != candidate.first) {
    reason = "its header is of an earlier use of the file";
  } else if (candidate.header->before != point_) {
    reason = fmt::format("the history before it ends at sequence {}", point_.sequence);
  } else {
    return true;
  }
  if (log_.cut.empty()) log_.cut = fmt::format("{}: {}", path(candidate.name), reason);
  return false;
}

Status LogScan::follow() {
  const Candidate& first = candidates_.front();
  if (!first.header || first.header->first() != first.first) {
    point_ = options_.checkpoint;
    log_.cut = fmt::format("{}: its header was not written", path(first.name));
    return {};
  }
  point_ = first.header->before;
  if (point_.sequence == options_.checkpoint.sequence) {
    RD_TRY(check_checkpoint(point_));
    apply_found_ = true;
  }
  std::uint64_t largest = 0;
  for (const Candidate& candidate : candidates_)
    largest = std::max(largest, candidate.bytes);
  window_.resize(std::max<std::uint64_t>(std::min(largest, window_bytes), segment_header_bytes));
  for (const Candidate& candidate : candidates_) {
    if (!continues(candidate)) return {};
    log_.cut.clear();
    RD_TRY(scan(candidate));
  }
  return {};
}

/// Reads one segment in windows until no frame follows.
Status LogScan::scan(const Candidate& candidate) {
  log_.segments.push_back({candidate.name, point_});
  FoundSegment& segment = log_.segments.back();
  std::uint64_t offset = segment_header_bytes;
  const bool secures = !options_.is_synced && !options_.look_only;
  if (secures) {
    RD_TRY(files_.sync_file(candidate.name));
    RD_TRY(secure_header(candidate));
  }
  for (;;) {
    const std::uint64_t left = candidate.bytes - offset;
    const std::span<std::byte> window(window_.data(), std::min<std::uint64_t>(left, window_bytes));
    if (window.empty()) return {};
    RD_TRY(files_.read(candidate.name, window, offset));
    const ScanResult found = scan_frames(window, point_);
    RD_TRY(take_frames(found, offset));
    if (secures) RD_TRY(secure_frames(candidate, window.first(found.valid_bytes), offset));
    offset += found.valid_bytes;
    segment.end_bytes = offset;
    end_ = fmt::format("{} at offset {}", path(candidate.name), offset);
    const bool more = found.end == ScanEnd::all_taken ||
                      (found.end == ScanEnd::incomplete && window.size() < left);
    if (more && found.valid_bytes > 0) continue;
    if (!is_clean_end(window.subspan(found.valid_bytes), point_.sequence)) {
      const std::string reason = found.reason.empty() ? "the file ends" : found.reason;
      log_.cut = fmt::format("{}: {}", end_, reason);
    }
    return {};
  }
}

/// The head of the segment that holds the checkpoint was synced with it.
Status LogScan::secure_header(const Candidate& candidate) {
  if (point_.sequence < options_.checkpoint.sequence) return {};
  const auto header = std::span(window_).first(segment_header_bytes);
  RD_TRY(files_.read(candidate.name, header, 0));
  return secure(candidate, header, 0);
}

/// `frames`: whole ones, at `offset` of the last segment found.
Status LogScan::secure_frames(const Candidate& candidate,
                              std::span<const std::byte> frames,
                              std::uint64_t offset) {
  if (!apply_found_) return {};
  std::uint64_t begin = offset;
  if (log_.apply_segment == log_.segments.size() - 1) begin = std::max(begin, log_.apply_offset);
  if (begin >= offset + frames.size()) return {};
  return secure(candidate, frames.subspan(begin - offset), begin);
}

/// Only what the medium lacks is written: of what was durable before, a loss of power in the middle of a second write
/// could make garbage.
Status LogScan::secure(const Candidate& candidate,
                       std::span<const std::byte> bytes,
                       std::uint64_t offset) {
  medium_.resize(bytes.size());
  const Status read = files_.read_medium(candidate.name, medium_, offset);
  if (!read) {
    // A disk that fails now is not written to on a guess: it would be all of it, most of which is durable.
    if (read.error().code != Errc::not_supported) return read;
    return files_.write(candidate.name, bytes, offset);
  }
  for (const SectorRun& run : differing_sectors(bytes, medium_, offset)) {
    // The head of the first sector may be the durable end of an earlier frame.
    const auto lacking = bytes.subspan(run.begin, run.length);
    const auto same = std::ranges::mismatch(lacking, std::span(medium_).subspan(run.begin)).in1;
    const auto kept = static_cast<std::size_t>(same - lacking.begin());
    RD_TRY(files_.write(candidate.name, lacking.subspan(kept), offset + run.begin + kept));
  }
  return {};
}

Status LogScan::take_frames(const ScanResult& found, std::uint64_t window_offset) {
  for (const ScannedFrame& frame : found.frames) {
    if (apply_found_) {
      log_.backlog_bytes += frame.frame_bytes();
      note_touched(frame.header.range);
    }
    point_ = frame.after;
    if (point_.sequence != options_.checkpoint.sequence) continue;
    RD_TRY(check_checkpoint(point_));
    apply_found_ = true;
    log_.apply_segment = log_.segments.size() - 1;
    log_.apply_offset = window_offset + frame.offset_bytes + frame.frame_bytes();
  }
  return {};
}

void LogScan::note_touched(const Range& range) {
  for (std::size_t i = 0; i < options_.watched.size(); ++i) {
    if (overlaps(options_.watched[i], range)) log_.touched[i] = true;
  }
}

Status LogScan::check_checkpoint(const HistoryPoint& point) const {
  if (point == options_.checkpoint) return {};
  return fail(Errc::corrupt,
              "{}: the log at sequence {} has epoch {} digest {}, the image's checkpoint epoch {} "
              "digest {}: "
              "they are not of the same history",
              path(log_.segments.empty() ? candidates_.front().name : log_.segments.back().name),
              point.sequence,
              point.epoch.number,
              to_hex(point.digest),
              options_.checkpoint.epoch.number,
              to_hex(options_.checkpoint.digest));
}

/// What is known to have been on stable storage must still be there.
Status LogScan::check_proven() const {
  Sequence proven = 0;
  if (candidates_.front().first <= options_.checkpoint.sequence) {
    proven = options_.checkpoint.sequence;
  }
  for (const Candidate& candidate : candidates_) {
    if (candidate.header && candidate.header->first() == candidate.first &&
        candidate.header->volume_uuid == options_.volume_uuid) {
      proven = std::max(proven, candidate.header->durable);
    }
  }
  if (point_.sequence >= proven) return {};
  return fail(Errc::corrupt,
              "the log is damaged: it was on stable storage up to sequence {}, but ends behind "
              "sequence {}, in {} "
              "({})",
              proven,
              point_.sequence,
              end_,
              log_.cut.empty() ? "no frame follows" : log_.cut);
}

/// Lowest first, and before the tail is cut: those that are left, if it ends here, are a log that goes on from the
/// checkpoint. One that ends before it would pass for damage.
Status LogScan::remove_obsolete() {
  for (const std::string& name : obsolete_)
    RD_TRY(files_.remove(name));
  return {};
}

/// Removes what lies behind the last frame, so that nothing of it can ever be taken for a part of the log.
Status LogScan::cut_tail() {
  // What holds nothing is not needed; the next frame begins a new segment.
  while (!log_.segments.empty() && log_.segments.back().end_bytes == segment_header_bytes) {
    log_.segments.pop_back();
  }
  for (std::size_t i = candidates_.size(); i > log_.segments.size(); --i) {
    RD_TRY(files_.remove(candidates_[i - 1].name));
  }
  if (log_.segments.empty()) return {};
  const FoundSegment& tail = log_.segments.back();
  const Candidate& file = candidates_[log_.segments.size() - 1];
  if (file.bytes == tail.end_bytes) return {};
  return files_.zero_tail(tail.name, tail.end_bytes);
}

Status LogScan::sync() {
  for (const FoundSegment& segment : log_.segments) {
    RD_TRY(files_.sync_file(segment.name));
  }
  return files_.sync_names();
}

}  // namespace

Result<FoundLog> find_log(LogDirectory& files, const LogRecoveryOptions& options) {
  return LogScan(files, options).run();
}

Status remove_log_files(LogDirectory& files) {
  const auto listing = list_log(files);
  if (!listing) return tl::unexpected(listing.error());
  // Lowest first: whose log is removed has everything in its image, and a suffix of the log then still continues
  // the checkpoint. A prefix that ends before the checkpoint would pass for damage.
  for (const auto& [first, name] : listing->segments)
    RD_TRY(files.remove(name));
  for (const auto& [number, name] : listing->spares)
    RD_TRY(files.remove(name));
  return files.sync_names();
}

std::string spare_file_name(std::uint64_t number) {
  return fmt::format("{}{}", spare_prefix, number);
}

}  // namespace replicad
