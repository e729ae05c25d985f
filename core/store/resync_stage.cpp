#include "core/store/resync_stage.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

namespace {

// Byte offsets; the table in docs/disk-format.md is the master.
constexpr std::uint32_t stage_magic = 0x53504c52;  // "RLPS"
constexpr std::uint32_t stage_version = 1;
constexpr std::size_t stage_uuid_bytes = 36;
constexpr std::size_t stage_at_uuid = 8;
constexpr std::size_t stage_at_sequence = 48;
constexpr std::size_t stage_at_base_epoch = 56;
constexpr std::size_t stage_at_base_tag = 64;
constexpr std::size_t stage_at_tag = 68;
constexpr std::size_t stage_at_digest = 72;
constexpr std::size_t stage_at_epoch = 88;
constexpr std::size_t stage_at_boot = 96;
constexpr std::size_t stage_boot_bytes = 36;
constexpr std::size_t stage_at_checksum = stage_header_bytes - 4;

}  // namespace

void encode_stage_header(const StageHeader& header, std::span<std::byte, stage_header_bytes> to) {
  RD_CHECK(header.volume_uuid.size() == stage_uuid_bytes);
  RD_CHECK(header.boot_id.size() <= stage_boot_bytes);
  std::byte* out = to.data();
  std::ranges::fill(to, std::byte{0});
  store_le(out, stage_magic);
  store_le(out + 4, stage_version);
  std::memcpy(out + stage_at_uuid, header.volume_uuid.data(), stage_uuid_bytes);
  store_le(out + stage_at_sequence, header.base.sequence);
  store_le(out + stage_at_base_epoch, header.base.epoch.number);
  store_le(out + stage_at_base_tag, header.base.epoch.tag);
  store_le(out + stage_at_tag, header.epoch.tag);
  store_le(out + stage_at_digest, header.base.digest.low);
  store_le(out + stage_at_digest + 8, header.base.digest.high);
  store_le(out + stage_at_epoch, header.epoch.number);
  std::memcpy(out + stage_at_boot, header.boot_id.data(), header.boot_id.size());
  store_le(out + stage_at_checksum, crc32c(to.first<stage_at_checksum>()));
}

Result<StageHeader> decode_stage_header(std::span<const std::byte, stage_header_bytes> from) {
  const std::byte* in = from.data();
  if (load_le<std::uint32_t>(in) != stage_magic) {
    return fail(Errc::corrupt, "not a stage: the magic number is wrong");
  }
  if (load_le<std::uint32_t>(in + stage_at_checksum) != crc32c(from.first<stage_at_checksum>())) {
    return fail(Errc::corrupt, "the checksum of the stage's header is wrong");
  }
  const auto version = load_le<std::uint32_t>(in + 4);
  if (version != stage_version) {
    return fail(Errc::version_mismatch,
                "stage of format version {}, this program knows {}",
                version,
                stage_version);
  }
  StageHeader header;
  header.volume_uuid.assign(reinterpret_cast<const char*>(in + stage_at_uuid), stage_uuid_bytes);
  header.base.sequence = load_le<std::uint64_t>(in + stage_at_sequence);
  header.base.epoch.number = load_le<std::uint64_t>(in + stage_at_base_epoch);
  header.base.epoch.tag = load_le<std::uint32_t>(in + stage_at_base_tag);
  header.base.digest.low = load_le<std::uint64_t>(in + stage_at_digest);
  header.base.digest.high = load_le<std::uint64_t>(in + stage_at_digest + 8);
  header.epoch.number = load_le<std::uint64_t>(in + stage_at_epoch);
  header.epoch.tag = load_le<std::uint32_t>(in + stage_at_tag);
  header.boot_id.assign(reinterpret_cast<const char*>(in + stage_at_boot), stage_boot_bytes);
  header.boot_id.resize(header.boot_id.find_last_not_of('\0') + 1);
  return header;
}

bool may_go_on(const StageHeader& header,
               std::string_view volume_uuid,
               const HistoryPoint& standing,
               std::string_view boot_id) {
  return header.epoch.number > 0 && header.volume_uuid == volume_uuid && header.base == standing &&
         header.boot_id == boot_id;
}

StageScan scan_stage(std::span<const std::byte> bytes) {
  StageScan scan;
  const auto invalid = [&](std::string reason) {
    scan.end = ScanEnd::invalid;
    scan.reason = std::move(reason);
    return scan;
  };
  while (scan.valid_bytes < bytes.size()) {
    const auto rest = bytes.subspan(scan.valid_bytes);
    scan.end = ScanEnd::incomplete;
    if (rest.size() < frame_header_bytes) return scan;
    const auto header = decode_header(rest.first<frame_header_bytes>());
    if (!header) return invalid(header.error().message);
    const bool has_place = is_numbered(header->type) || header->type == FrameType::copy_data ||
                           header->type == FrameType::copy_zero;
    if (!has_place) {
      return invalid(fmt::format("frame type {} has no place in a stage",
                                 static_cast<unsigned>(header->type)));
    }
    if (rest.size() - frame_header_bytes < header->payload_bytes) return scan;
    const auto payload = rest.subspan(frame_header_bytes, header->payload_bytes);
    if (const Status checked = check_payload(*header, payload); !checked)
      return invalid(checked.error().message);
    scan.frames.push_back({*header, scan.valid_bytes});
    scan.valid_bytes += frame_header_bytes + header->payload_bytes;
    scan.end = ScanEnd::all_taken;
  }
  return scan;
}

// --- StageIndex

StageIndex::StageIndex(std::vector<std::uint64_t> disk_bytes, std::size_t extents_max)
    : disk_bytes_(std::move(disk_bytes)), extents_max_(extents_max), disks_(disk_bytes_.size()) {}

/// Takes [begin, end) out of what is known.
void StageIndex::cut(Disk& disk, std::uint64_t begin, std::uint64_t end) {
  auto at = disk.lower_bound(begin);
  if (at != disk.begin() && std::prev(at)->second.end > begin) --at;
  while (at != disk.end() && at->first < end) {
    const std::uint64_t first = at->first;
    const Extent extent = at->second;
    at = disk.erase(at);
    --extents_;
    if (first < begin) {
      disk.emplace(first, Extent{begin, extent.file_offset});
      ++extents_;
    }
    if (extent.end > end) {
      auto rest = extent.file_offset;
      if (rest) *rest += end - first;
      disk.emplace(end, Extent{extent.end, rest});
      ++extents_;
    }
  }
}

bool StageIndex::add(const FrameHeader& header, std::uint64_t payload_offset) {
  const Range& range = header.range;
  if (header.type == FrameType::flush || range.length_bytes == 0) return true;
  if (range.disk >= disks_.size() || !fits(range, disk_bytes_[range.disk])) return false;
  if (extents_ + 2 > extents_max_) return false;  // one more, and one that is split
  Disk& disk = disks_[range.disk];
  cut(disk, range.offset_bytes, range.end_bytes());
  Extent extent{range.end_bytes(), {}};
  if (header.payload_bytes > 0) extent.file_offset = payload_offset;
  disk.emplace(range.offset_bytes, extent);
  ++extents_;
  return true;
}

std::vector<StageIndex::Piece> StageIndex::pieces(const Range& range) const {
  std::vector<Piece> found;
  if (range.disk >= disks_.size()) return found;
  const Disk& disk = disks_[range.disk];
  auto at = disk.lower_bound(range.offset_bytes);
  if (at != disk.begin() && std::prev(at)->second.end > range.offset_bytes) --at;
  for (; at != disk.end() && at->first < range.end_bytes(); ++at) {
    const std::uint64_t first = std::max(at->first, range.offset_bytes);
    const std::uint64_t end = std::min(at->second.end, range.end_bytes());
    auto file_offset = at->second.file_offset;
    if (file_offset) *file_offset += first - at->first;
    found.push_back({{range.disk, first, end - first}, file_offset});
  }
  return found;
}

}  // namespace replicad
