#include "core/wire/frame.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

namespace {

// Byte offsets; the table in docs/protocol.md is the master.
constexpr std::uint32_t frame_magic = 0x444c5052;  // "RPLD"
constexpr std::uint8_t frame_version = 1;
constexpr std::size_t at_magic = 0;
constexpr std::size_t at_version = 4;
constexpr std::size_t at_type = 5;
constexpr std::size_t at_flags = 6;
constexpr std::size_t at_payload_bytes = 8;
constexpr std::size_t at_payload_crc = 12;
constexpr std::size_t at_epoch = 16;
constexpr std::size_t at_sequence = 24;
constexpr std::size_t at_offset = 32;
constexpr std::size_t at_length = 40;
constexpr std::size_t at_epoch_tag = 48;
constexpr std::size_t at_disk = 52;
constexpr std::size_t at_reserved = 54;
constexpr std::size_t at_header_crc = 60;
static_assert(at_header_crc + 4 == frame_header_bytes);

bool known_type(std::uint8_t type) {
  constexpr std::array<std::uint8_t, 21> known{1,  2,  3,  4,  16, 17, 18, 19, 32, 33, 34,
                                               35, 36, 37, 48, 49, 50, 51, 64, 65, 66};
  return std::ranges::binary_search(known, type);
}

std::uint32_t payload_limit(FrameType type) {
  switch (type) {
    case FrameType::attach:
    case FrameType::attached:
    case FrameType::refuse:
    case FrameType::start:
    case FrameType::copy_end:
    case FrameType::copy_done:
    case FrameType::agent_request:
    case FrameType::agent_reply:
    case FrameType::agent_event:
      return control_payload_bytes_max;
    case FrameType::write:
    case FrameType::copy_data:
      return data_payload_bytes_max;
    case FrameType::block_sums:
      return compare_blocks_max * block_sum_bytes;
    case FrameType::block_diffs:
      return compare_blocks_max / 8;
    case FrameType::watermarks:
      return 64;
    case FrameType::digest:
      return 16;
    case FrameType::zero:
    case FrameType::trim:
    case FrameType::flush:
    case FrameType::copy_zero:
    case FrameType::heartbeat:
    case FrameType::sync_request:
      return 0;
  }
  return 0;
}

bool is_compare(FrameType type) {
  return type == FrameType::block_sums || type == FrameType::block_diffs;
}

/// The range begins at a block; the payload has one checksum, or one bit, for each block in it.
Status check_compare(const FrameHeader& header) {
  const std::uint64_t blocks =
      (header.range.length_bytes + compare_block_bytes - 1) / compare_block_bytes;
  const bool in_bounds = blocks > 0 &&
                         header.range.length_bytes <= compare_blocks_max * compare_block_bytes &&
                         header.range.offset_bytes % compare_block_bytes == 0;
  const std::uint64_t payload_bytes =
      header.type == FrameType::block_sums ? blocks * block_sum_bytes : (blocks + 7) / 8;
  if (in_bounds && header.payload_bytes == payload_bytes) return {};
  return fail(Errc::protocol,
              "frame type {}: range of {} bytes at {}, payload of {}",
              static_cast<unsigned>(header.type),
              header.range.length_bytes,
              header.range.offset_bytes,
              header.payload_bytes);
}

/// Rules between the fields; one message per rule.
Status check_fields(const FrameHeader& header) {
  const auto type = static_cast<unsigned>(header.type);
  if ((header.flags & ~frame_flags_known) != 0) {
    return fail(Errc::protocol, "frame type {}: unknown flags {:#x}", type, header.flags);
  }
  if (header.payload_bytes > payload_limit(header.type)) {
    return fail(Errc::protocol,
                "frame type {}: payload of {} bytes, at most {} allowed",
                type,
                header.payload_bytes,
                payload_limit(header.type));
  }
  const bool carries_range_payload =
      header.type == FrameType::write || header.type == FrameType::copy_data;
  if (carries_range_payload &&
      (header.payload_bytes == 0 || header.range.length_bytes != header.payload_bytes)) {
    return fail(Errc::protocol,
                "frame type {}: range of {} bytes, payload of {}",
                type,
                header.range.length_bytes,
                header.payload_bytes);
  }
  const bool range_only = header.type == FrameType::zero || header.type == FrameType::trim ||
                          header.type == FrameType::copy_zero;
  if (range_only &&
      (header.range.length_bytes == 0 || header.range.length_bytes > range_bytes_max)) {
    return fail(
        Errc::protocol, "frame type {}: range of {} bytes", type, header.range.length_bytes);
  }
  if (is_compare(header.type)) {
    RD_TRY(check_compare(header));
  } else if (!carries_range_payload && !range_only && header.range != Range{}) {
    return fail(Errc::protocol, "frame type {}: carries a range", type);
  }
  if (header.range.disk >= disks_max || header.range.offset_bytes > disk_bytes_max) {
    return fail(Errc::protocol,
                "frame type {}: disk {} offset {} out of bounds",
                type,
                header.range.disk,
                header.range.offset_bytes);
  }
  if (is_numbered(header.type) && (header.sequence == 0 || header.epoch.number == 0)) {
    return fail(Errc::protocol, "frame type {}: numbered frame without epoch or sequence", type);
  }
  return {};
}

}  // namespace

bool is_json(FrameType type) {
  switch (type) {
    case FrameType::attach:
    case FrameType::attached:
    case FrameType::refuse:
    case FrameType::start:
    case FrameType::copy_end:
    case FrameType::copy_done:
    case FrameType::agent_request:
    case FrameType::agent_reply:
    case FrameType::agent_event:
      return true;
    case FrameType::write:
    case FrameType::zero:
    case FrameType::trim:
    case FrameType::flush:
    case FrameType::copy_data:
    case FrameType::copy_zero:
    case FrameType::block_sums:
    case FrameType::block_diffs:
    case FrameType::watermarks:
    case FrameType::heartbeat:
    case FrameType::digest:
    case FrameType::sync_request:
      return false;
  }
  return false;
}

void encode_header(const FrameHeader& header, std::span<std::byte, frame_header_bytes> to) {
  std::byte* out = to.data();
  store_le(out + at_magic, frame_magic);
  out[at_version] = std::byte{frame_version};
  out[at_type] = static_cast<std::byte>(header.type);
  store_le(out + at_flags, header.flags);
  store_le(out + at_payload_bytes, header.payload_bytes);
  store_le(out + at_payload_crc, header.payload_crc32c);
  store_le(out + at_epoch, header.epoch.number);
  store_le(out + at_sequence, header.sequence);
  store_le(out + at_offset, header.range.offset_bytes);
  store_le(out + at_length, header.range.length_bytes);
  store_le(out + at_epoch_tag, header.epoch.tag);
  store_le(out + at_disk, header.range.disk);
  store_le(out + at_reserved, std::uint16_t{0});
  store_le(out + at_reserved + 2, std::uint32_t{0});
  store_le(out + at_header_crc, crc32c(to.first<at_header_crc>()));
}

Result<FrameHeader> decode_header(std::span<const std::byte, frame_header_bytes> from) {
  const std::byte* in = from.data();
  if (load_le<std::uint32_t>(in + at_magic) != frame_magic) {
    return fail(Errc::protocol,
                "not a replicad frame: magic {:#010x}",
                load_le<std::uint32_t>(in + at_magic));
  }
  if (std::to_integer<std::uint8_t>(in[at_version]) != frame_version) {
    return fail(Errc::version_mismatch,
                "frame format version {}, this side knows {}",
                std::to_integer<unsigned>(in[at_version]),
                frame_version);
  }
  if (load_le<std::uint32_t>(in + at_header_crc) != crc32c(from.first<at_header_crc>())) {
    return fail(Errc::protocol, "frame header checksum is wrong");
  }
  const auto type = std::to_integer<std::uint8_t>(in[at_type]);
  if (!known_type(type)) return fail(Errc::protocol, "unknown frame type {}", type);
  if (load_le<std::uint16_t>(in + at_reserved) != 0 ||
      load_le<std::uint32_t>(in + at_reserved + 2) != 0) {
    return fail(Errc::protocol, "frame type {}: reserved bytes are not zero", type);
  }
  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.flags = load_le<std::uint16_t>(in + at_flags);
  header.payload_bytes = load_le<std::uint32_t>(in + at_payload_bytes);
  header.payload_crc32c = load_le<std::uint32_t>(in + at_payload_crc);
  header.epoch.number = load_le<std::uint64_t>(in + at_epoch);
  header.epoch.tag = load_le<std::uint32_t>(in + at_epoch_tag);
  header.sequence = load_le<std::uint64_t>(in + at_sequence);
  header.range.disk = load_le<std::uint16_t>(in + at_disk);
  header.range.offset_bytes = load_le<std::uint64_t>(in + at_offset);
  header.range.length_bytes = load_le<std::uint64_t>(in + at_length);
  RD_TRY(check_fields(header));
  return header;
}

Status check_payload(const FrameHeader& header, std::span<const std::byte> payload) {
  RD_CHECK(payload.size() == header.payload_bytes);
  if (crc32c(payload) != header.payload_crc32c) {
    return fail(Errc::protocol,
                "payload checksum of frame type {} at sequence {} is wrong",
                static_cast<unsigned>(header.type),
                header.sequence);
  }
  return {};
}

DigestItem digest_item(const FrameHeader& header) {
  return DigestItem{.epoch = header.epoch,
                    .sequence = header.sequence,
                    .offset_bytes = header.range.offset_bytes,
                    .range_bytes = header.range.length_bytes,
                    .disk = header.range.disk,
                    .kind = static_cast<std::uint8_t>(header.type),
                    .payload_crc32c = header.payload_crc32c};
}

}  // namespace replicad
