// The trail of a replica. Mode 0: any bytes. Else: the checksums of headers and pages are set right first, so that the
// input gets past them.
#include <algorithm>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/trail.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

const std::vector<std::uint64_t> disk_bytes{3 * trail_region_bytes, 512};

void sign(std::span<std::byte> file) {
  for (std::size_t at = 0; at + trail_header_bytes <= file.size() && at <= trail_header_bytes;
       at += trail_header_bytes) {
    const auto header = file.subspan(at, trail_header_bytes);
    store_le(header.data(), std::uint32_t{0x54485052});
    store_le(header.data() + 4, std::uint32_t{1});
    store_le(header.data() + 8, crc32c(header.subspan(12)));
  }
  for (std::size_t at = 2 * trail_header_bytes; at + trail_page_bytes <= file.size();
       at += trail_page_bytes) {
    const auto page = file.subspan(at, trail_page_bytes);
    store_le(page.data() + 4, std::uint32_t{0x54415052});
    store_le(page.data(), crc32c(page.subspan(4)));
  }
}

void check_header(std::span<const std::byte> bytes) {
  const auto header = decode_trail_header(bytes);
  if (!header) {
    RD_CHECK(!header.error().message.empty());
    return;
  }
  RD_CHECK(header->terms.size() <= trail_terms_max);
  RD_CHECK(header->base <= header->covers.sequence);
  RD_CHECK(decode_trail_header(encode_trail_header(*header)) == *header);
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  std::vector<std::byte> bytes(input.begin() + 1, input.end());
  if (input[0] != std::byte{0}) sign(bytes);
  if (bytes.size() >= trail_header_bytes) {
    const auto header = decode_trail_header(std::span(bytes).first(trail_header_bytes));
    if (header && header->disk_bytes == disk_bytes) {
      const auto found = read_trail(bytes, header->volume_uuid, disk_bytes, header->covers);
      RD_CHECK(found.has_value());
      for (const Range& range : found->trail.changed_since(found->trail.base()))
        RD_CHECK(fits(range, disk_bytes.at(range.disk)));
    }
  }
  if (bytes.size() >= trail_page_bytes) {
    const auto entries =
        decode_trail_page(0, 0, std::span(bytes).last(trail_page_bytes).first<trail_page_bytes>());
    RD_CHECK(!entries || entries->size() == trail_entries_per_page);
  }
  check_header(std::span(bytes).first(std::min(bytes.size(), trail_header_bytes)));
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
