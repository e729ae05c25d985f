// A file of lost writes. Mode 0: any bytes as a header. Mode 1: the input is the header's document, signed. Mode 2:
// records behind a good header, signed.
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/lost_writes_file.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

constexpr std::size_t at_checksum = 8;
constexpr std::size_t at_body_bytes = 12;
constexpr std::size_t at_body = 16;

void check_header(std::span<const std::byte> bytes) {
  const auto header = decode_lost_header(bytes);
  if (!header) {
    RD_CHECK(header.error().code == Errc::corrupt || header.error().code == Errc::version_mismatch);
    RD_CHECK(!header.error().message.empty());
    return;
  }
  RD_CHECK(!header->disks.empty() && header->disks.size() <= disks_max);
  // What needs escapes may grow: only the product's own names are written again.
  const auto plain = [](const std::string& text) {
    return std::ranges::all_of(
        text, [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; });
  };
  const bool again = plain(header->volume) && plain(header->volume_uuid) && plain(header->host) &&
                     plain(header->primary) &&
                     std::ranges::all_of(header->disks, plain, &LostHeader::Disk::name);
  if (!again) return;
  const auto second = decode_lost_header(encode_lost_header(*header));
  RD_CHECK(second.has_value());
  RD_CHECK(*second == *header);
}

void check_document(std::span<const std::byte> body) {
  std::vector<std::byte> bytes(lost_header_bytes);
  body = body.first(std::min(body.size(), bytes.size() - at_body));
  store_le(bytes.data(), std::uint32_t{0x574c5052});
  store_le(bytes.data() + 4, std::uint32_t{1});
  store_le(bytes.data() + at_body_bytes, static_cast<std::uint32_t>(body.size()));
  std::ranges::copy(body, bytes.begin() + at_body);
  store_le(bytes.data() + at_checksum, crc32c(std::span(bytes).subspan(at_body_bytes)));
  check_header(bytes);
}

void check_records(std::span<const std::byte> bytes) {
  LostHeader file;
  file.disks = {{"vda", 1 * mib}, {"vdb", 4608}};
  while (bytes.size() >= frame_header_bytes) {
    std::array<std::byte, frame_header_bytes> header{};
    std::ranges::copy(bytes.first<frame_header_bytes>(), header.begin());
    store_le(header.data(), std::uint32_t{0x444c5052});
    header[4] = std::byte{1};
    store_le(header.data() + 60, crc32c(std::span(header).first(60)));
    bytes = bytes.subspan(frame_header_bytes);
    const auto record = decode_lost_record(file, header);
    if (!record) {
      RD_CHECK(!record.error().message.empty());
      continue;
    }
    RD_CHECK(record->type == FrameType::copy_data || record->type == FrameType::copy_zero);
    RD_CHECK(record->range.disk < file.disks.size());
    RD_CHECK(record->range.end_bytes() <= file.disks[record->range.disk].bytes);
  }
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto mode = std::to_integer<unsigned>(input[0]) % 3;
  const auto rest = input.subspan(1);
  if (mode == 1) return check_document(rest);
  if (mode == 2) return check_records(rest);
  std::vector<std::byte> bytes(rest.begin(), rest.end());
  check_header(bytes);
  bytes.resize(lost_header_bytes);
  check_header(bytes);
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
