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
constexpr std::size_t stage_at_checksum = stage_header_bytes - 4;

}  // namespace

void encode_stage_header(std::string_view volume_uuid,
                         std::span<std::byte, stage_header_bytes> to) {
  RD_CHECK(volume_uuid.size() == stage_uuid_bytes);
  std::byte* out = to.data();
  std::ranges::fill(to, std::byte{0});
  store_le(out, stage_magic);
  store_le(out + 4, stage_version);
  std::memcpy(out + stage_at_uuid, volume_uuid.data(), stage_uuid_bytes);
  store_le(out + stage_at_checksum, crc32c(to.first<stage_at_checksum>()));
}

Result<std::string> decode_stage_header(std::span<const std::byte, stage_header_bytes> from) {
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
  return std::string(reinterpret_cast<const char*>(in + stage_at_uuid), stage_uuid_bytes);
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

}  // namespace replicad
