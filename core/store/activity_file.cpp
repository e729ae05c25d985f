#include "core/store/activity_file.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/region_file.h"

namespace replicad {

namespace {

using nlohmann::json;

// The tables in docs/disk-format.md are the master.
constexpr RegionFileFormat activity_format{.header_magic = 0x484c5052,  // "RPLH"
                                           .page_magic = 0x414c5052,    // "RPLA"
                                           .version = 1,
                                           .header_bytes = activity_header_bytes,
                                           .name = "an activity file"};
static_assert(region_page_at_entries + 2 * activity_entries_per_page == activity_page_bytes);

ActivityHeader activity_header_from(const json& body) {
  ActivityHeader header;
  header.volume_uuid = body.at("uuid").get<std::string>();
  header.disk_bytes = region_disk_bytes(body);
  for (const json& member : body.at("members"))
    header.members.push_back(
        {member.at("host").get<std::string>(), region_counter(member, "base")});
  for (const json& term : body.at("terms"))
    header.terms.push_back({region_epoch(term.at("epoch")), region_counter(term, "end")});
  if (header.members.size() > activity_slots || header.terms.size() > activity_terms_max)
    throw RegionFileError{"a list is too long"};
  if (const json& clean = body.at("clean"); !clean.is_null()) header.clean = region_point(clean);
  if (body.contains("trail")) header.trail = region_point(body.at("trail"));
  return header;
}

}  // namespace

std::vector<std::byte> encode_activity_header(const ActivityHeader& header) {
  json members = json::array();
  for (const ActivityMember& member : header.members)
    members.push_back({{"host", member.host}, {"base", member.base}});
  json terms = json::array();
  for (const ActivityHeader::Term& term : header.terms)
    terms.push_back({{"epoch", region_json(term.epoch)}, {"end", term.end}});
  json body = {{"uuid", header.volume_uuid},
               {"disk_bytes", header.disk_bytes},
               {"members", members},
               {"terms", terms},
               {"clean", header.clean ? region_json(*header.clean) : json(nullptr)}};
  if (header.trail) body["trail"] = region_json(*header.trail);
  return encode_region_header(activity_format, header.generation, body);
}

Result<ActivityHeader> decode_activity_header(std::span<const std::byte> from) {
  ActivityHeader header;
  const auto generation = decode_region_header(
      activity_format, from, [&](const json& body) { header = activity_header_from(body); });
  if (!generation) return tl::unexpected(generation.error());
  header.generation = *generation;
  return header;
}

void encode_activity_page(DiskIndex disk,
                          std::uint32_t page,
                          std::span<const ActivityEntry> entries,
                          std::span<std::byte, activity_page_bytes> to) {
  RD_CHECK(entries.size() == activity_entries_per_page);
  for (std::size_t i = 0; i < entries.size(); ++i)
    store_le(to.data() + region_page_at_entries + 2 * i, entries[i]);
  seal_region_page(activity_format, disk, page, to);
}

Result<std::vector<ActivityEntry>> decode_activity_page(
    DiskIndex disk, std::uint32_t page, std::span<const std::byte, activity_page_bytes> from) {
  std::vector<ActivityEntry> entries(activity_entries_per_page);
  const auto is_written = is_region_page(activity_format, disk, page, from);
  if (!is_written) return tl::unexpected(is_written.error());
  for (std::size_t i = 0; *is_written && i < entries.size(); ++i)
    entries[i] = load_le<std::uint16_t>(from.data() + region_page_at_entries + 2 * i);
  return entries;
}

namespace {

std::uint64_t activity_regions(std::uint64_t disk_bytes) {
  return (disk_bytes + activity_region_bytes - 1) / activity_region_bytes;
}
std::uint64_t activity_pages(std::uint64_t disk_bytes) {
  return (activity_regions(disk_bytes) + activity_entries_per_page - 1) / activity_entries_per_page;
}

}  // namespace

std::uint64_t activity_file_bytes(const std::vector<std::uint64_t>& disk_bytes) {
  std::uint64_t bytes = 2 * activity_header_bytes;
  for (const std::uint64_t each : disk_bytes)
    bytes += activity_pages(each) * activity_page_bytes;
  return bytes;
}

std::optional<ActivityContent> read_activity(std::span<const std::byte> file,
                                             const std::vector<std::uint64_t>& disk_bytes) {
  std::optional<ActivityHeader> found;
  for (const std::size_t at : {std::size_t{0}, activity_header_bytes}) {
    if (file.size() < at + activity_header_bytes) continue;
    auto header = decode_activity_header(file.subspan(at, activity_header_bytes));
    if (header && (!found || header->generation > found->generation)) found = std::move(*header);
  }
  if (!found || found->disk_bytes != disk_bytes) return std::nullopt;
  ActivityContent content{std::move(*found), {}};
  std::size_t at = 2 * activity_header_bytes;
  for (DiskIndex disk = 0; disk < disk_bytes.size(); ++disk) {
    std::vector<ActivityEntry>& entries = content.entries.emplace_back();
    for (std::uint32_t page = 0; page < activity_pages(disk_bytes[disk]); ++page) {
      std::vector<ActivityEntry> read(activity_entries_per_page);
      if (at < file.size()) {
        read.assign(activity_entries_per_page, activity_all);
        const bool is_whole = file.size() - at >= activity_page_bytes;
        const auto decoded =
            is_whole
                ? decode_activity_page(disk, page, file.subspan(at).first<activity_page_bytes>())
                : Result<std::vector<ActivityEntry>>(fail(Errc::corrupt, "cut"));
        if (decoded) read = *decoded;
      }
      at += activity_page_bytes;
      entries.insert(entries.end(), read.begin(), read.end());
    }
    entries.resize(activity_regions(disk_bytes[disk]));
  }
  return content;
}

}  // namespace replicad
