#include "core/store/log_segment.h"

#include <algorithm>
#include <charconv>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

namespace {

// Byte offsets; the table in docs/disk-format.md is the master.
constexpr std::uint32_t segment_magic = 0x474c5052;  // "RPLG"
constexpr std::uint32_t segment_version = 1;
constexpr std::size_t uuid_bytes = 36;
constexpr std::size_t at_magic = 0;
constexpr std::size_t at_version = 4;
constexpr std::size_t at_uuid = 8;
constexpr std::size_t at_first = 48;
constexpr std::size_t at_epoch = 56;
constexpr std::size_t at_epoch_tag = 64;
constexpr std::size_t at_digest = 72;
constexpr std::size_t at_segment_bytes = 88;
constexpr std::size_t at_durable = 96;
constexpr std::size_t at_checksum = segment_header_bytes - 4;
static_assert(at_uuid + uuid_bytes <= at_first);

constexpr std::size_t name_digits = 20;
constexpr std::string_view name_suffix = ".seg";

bool is_uuid_character(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || c == '-';
}

}  // namespace

void encode_segment_header(const SegmentHeader& header,
                           std::span<std::byte, segment_header_bytes> to) {
  RD_CHECK(header.volume_uuid.size() == uuid_bytes);
  RD_CHECK(header.segment_bytes >= segment_bytes_min);
  RD_CHECK(header.durable <= header.before.sequence);
  std::byte* out = to.data();
  std::ranges::fill(to, std::byte{0});
  store_le(out + at_magic, segment_magic);
  store_le(out + at_version, segment_version);
  std::memcpy(out + at_uuid, header.volume_uuid.data(), uuid_bytes);
  store_le(out + at_first, header.first());
  store_le(out + at_epoch, header.before.epoch.number);
  store_le(out + at_epoch_tag, header.before.epoch.tag);
  store_le(out + at_digest, header.before.digest.low);
  store_le(out + at_digest + 8, header.before.digest.high);
  store_le(out + at_segment_bytes, header.segment_bytes);
  store_le(out + at_durable, header.durable);
  store_le(out + at_checksum, crc32c(to.first<at_checksum>()));
}

Result<SegmentHeader> decode_segment_header(std::span<const std::byte, segment_header_bytes> from) {
  const std::byte* in = from.data();
  if (load_le<std::uint32_t>(in + at_magic) != segment_magic) {
    return fail(Errc::corrupt, "not a log segment: the magic number is wrong");
  }
  if (load_le<std::uint32_t>(in + at_checksum) != crc32c(from.first<at_checksum>())) {
    return fail(Errc::corrupt, "the checksum of the segment header is wrong");
  }
  const auto version = load_le<std::uint32_t>(in + at_version);
  if (version != segment_version) {
    return fail(Errc::version_mismatch,
                "log segment of format version {}, this program knows {}",
                version,
                segment_version);
  }
  SegmentHeader header;
  header.volume_uuid.assign(reinterpret_cast<const char*>(in + at_uuid), uuid_bytes);
  const auto first = load_le<std::uint64_t>(in + at_first);
  header.before.sequence = first - 1;
  header.before.epoch.number = load_le<std::uint64_t>(in + at_epoch);
  header.before.epoch.tag = load_le<std::uint32_t>(in + at_epoch_tag);
  header.before.digest.low = load_le<std::uint64_t>(in + at_digest);
  header.before.digest.high = load_le<std::uint64_t>(in + at_digest + 8);
  header.segment_bytes = load_le<std::uint64_t>(in + at_segment_bytes);
  header.durable = load_le<std::uint64_t>(in + at_durable);
  const bool valid = std::ranges::all_of(header.volume_uuid, is_uuid_character) && first != 0 &&
                     first <= counter_max && header.durable <= header.before.sequence &&
                     header.segment_bytes >= segment_bytes_min &&
                     header.segment_bytes <= segment_bytes_max;
  if (!valid) return fail(Errc::corrupt, "a field of the segment header is out of bounds");
  return header;
}

std::string segment_file_name(Sequence first) {
  return fmt::format("{:0{}}{}", first, name_digits, name_suffix);
}

std::optional<Sequence> segment_first_from_name(std::string_view name) {
  if (name.size() != name_digits + name_suffix.size() || !name.ends_with(name_suffix)) {
    return std::nullopt;
  }
  Sequence first = 0;
  const char* end = name.data() + name_digits;
  const auto [after, error] = std::from_chars(name.data(), end, first);
  if (error != std::errc{} || after != end || first == 0 || first > counter_max) {
    return std::nullopt;
  }
  return first;
}

Status check_follows(const HistoryPoint& before, const FrameHeader& header) {
  if (!is_numbered(header.type)) {
    return fail(Errc::protocol,
                "frame type {} has no place in the history",
                static_cast<unsigned>(header.type));
  }
  if (header.sequence != before.sequence + 1 || header.sequence > counter_max) {
    return fail(
        Errc::protocol, "sequence {} where {} must follow", header.sequence, before.sequence + 1);
  }
  const bool falls = header.epoch.number < before.epoch.number;
  const bool other_tag =
      header.epoch.number == before.epoch.number && header.epoch.tag != before.epoch.tag;
  if (falls || other_tag) {
    return fail(Errc::protocol,
                "sequence {} has epoch {} tag {} behind epoch {} tag {}",
                header.sequence,
                header.epoch.number,
                header.epoch.tag,
                before.epoch.number,
                before.epoch.tag);
  }
  return {};
}

HistoryPoint advance(const HistoryPoint& before, const FrameHeader& header) {
  return HistoryPoint{
      header.epoch, header.sequence, extend_digest(before.digest, digest_item(header))};
}

ScanResult scan_frames(std::span<const std::byte> bytes, const HistoryPoint& before) {
  ScanResult result;
  HistoryPoint point = before;
  const auto invalid = [&](std::string reason) {
    result.end = ScanEnd::invalid;
    result.reason = std::move(reason);
  };
  while (result.valid_bytes < bytes.size()) {
    const auto rest = bytes.subspan(result.valid_bytes);
    if (rest.size() < frame_header_bytes) {
      result.end = ScanEnd::incomplete;
      return result;
    }
    const auto header = decode_header(rest.first<frame_header_bytes>());
    if (!header) {
      invalid(header.error().message);
      return result;
    }
    if (const Status follows = check_follows(point, *header); !follows) {
      invalid(follows.error().message);
      return result;
    }
    if (rest.size() - frame_header_bytes < header->payload_bytes) {
      result.end = ScanEnd::incomplete;
      return result;
    }
    const auto payload = rest.subspan(frame_header_bytes, header->payload_bytes);
    if (const Status checked = check_payload(*header, payload); !checked) {
      invalid(checked.error().message);
      return result;
    }
    point = advance(point, *header);
    result.frames.push_back({*header, result.valid_bytes, point});
    result.valid_bytes += frame_header_bytes + header->payload_bytes;
  }
  return result;
}

}  // namespace replicad
