// The activity file of a primary. Mode 0: any bytes as a header. Mode 1: the input is the header's document, signed.
// Mode 2: a page, signed; mode 3: one that is not.
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/activity_file.h"
#include "tests/fuzz/fuzz.h"

namespace replicad {
namespace {

constexpr std::size_t at_checksum = 8;
constexpr std::size_t at_body_bytes = 12;
constexpr std::size_t at_body = 24;

void check_header(std::span<const std::byte> bytes) {
  const auto header = decode_activity_header(bytes);
  if (!header) {
    RD_CHECK(header.error().code == Errc::corrupt || header.error().code == Errc::version_mismatch);
    RD_CHECK(!header.error().message.empty());
    return;
  }
  RD_CHECK(header->members.size() <= activity_slots);
  RD_CHECK(header->terms.size() <= activity_terms_max);
  RD_CHECK(header->disk_bytes.size() <= disks_max);
  const auto plain = [](const std::string& text) {
    return text.size() <= host_name_bytes_max && std::ranges::all_of(text, [](char c) {
             return c >= ' ' && c <= '~' && c != '"' && c != '\\';
           });
  };
  const bool again = plain(header->volume_uuid) &&
                     std::ranges::all_of(header->members, plain, &ActivityMember::host);
  if (!again) return;
  const auto second = decode_activity_header(encode_activity_header(*header));
  RD_CHECK(second.has_value());
  RD_CHECK(*second == *header);
}

void check_document(std::span<const std::byte> body) {
  std::vector<std::byte> bytes(activity_header_bytes);
  body = body.first(std::min(body.size(), bytes.size() - at_body));
  store_le(bytes.data(), std::uint32_t{0x484c5052});
  store_le(bytes.data() + 4, std::uint32_t{1});
  store_le(bytes.data() + at_body_bytes, static_cast<std::uint32_t>(body.size()));
  store_le(bytes.data() + 16, std::uint64_t{5});
  std::ranges::copy(body, bytes.begin() + at_body);
  store_le(bytes.data() + at_checksum, crc32c(std::span(bytes).subspan(at_body_bytes)));
  check_header(bytes);
}

void check_page(std::span<const std::byte> bytes, bool sign) {
  std::array<std::byte, activity_page_bytes> page{};
  std::ranges::copy(bytes.first(std::min(bytes.size(), page.size())), page.begin());
  if (sign) {
    store_le(page.data() + 4, std::uint32_t{0x414c5052});
    store_le(page.data() + 8, std::uint32_t{1});
    store_le(page.data() + 12, std::uint32_t{3});
    store_le(page.data(), crc32c(std::span(page).subspan(4)));
  }
  const auto entries = decode_activity_page(1, 3, page);
  RD_CHECK(entries.has_value() || !sign);
  if (!entries) return;
  RD_CHECK(entries->size() == activity_entries_per_page);
  std::array<std::byte, activity_page_bytes> again{};
  encode_activity_page(1, 3, *entries, again);
  RD_CHECK(decode_activity_page(1, 3, again) == *entries);
}

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto mode = std::to_integer<unsigned>(input[0]) % 4;
  const auto rest = input.subspan(1);
  if (mode == 1) return check_document(rest);
  if (mode >= 2) return check_page(rest, mode == 2);
  std::vector<std::byte> bytes(rest.begin(), rest.end());
  check_header(bytes);
  bytes.resize(activity_header_bytes);
  check_header(bytes);
}

}  // namespace
}  // namespace replicad

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  replicad::run(std::as_bytes(std::span(data, size)));
  return 0;
}
