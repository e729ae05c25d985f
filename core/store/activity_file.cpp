#include "core/store/activity_file.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

namespace {

using nlohmann::json;

// Byte offsets; the tables in docs/disk-format.md are the master.
constexpr std::uint32_t header_magic = 0x484c5052;  // "RPLH"
constexpr std::uint32_t page_magic = 0x414c5052;    // "RPLA"
constexpr std::uint32_t activity_version = 1;
constexpr std::size_t at_body = 24;
constexpr std::size_t at_entries = 16;
static_assert(at_entries + 2 * activity_entries_per_page == activity_page_bytes);

struct ActivityError {
  std::string what;
};

json activity_epoch(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

std::uint64_t counter(const json& object, const char* name) {
  const json& value = object.at(name);
  if (!value.is_number_unsigned()) throw ActivityError{fmt::format("{} is not a number", name)};
  const auto number = value.get<std::uint64_t>();
  if (number > counter_max) throw ActivityError{fmt::format("{} is too large", name)};
  return number;
}

Epoch epoch_of(const json& object) {
  const std::uint64_t tag = counter(object, "tag");
  if (tag > 0xffffffffU) throw ActivityError{"tag is too large"};
  return {counter(object, "number"), static_cast<std::uint32_t>(tag)};
}

HistoryPoint activity_point(const json& object) {
  const auto digest = digest_from_hex(object.at("digest").get<std::string>());
  if (!digest) throw ActivityError{"digest is not 32 hexadecimal digits"};
  return {epoch_of(object.at("epoch")), counter(object, "sequence"), *digest};
}

json activity_point(const HistoryPoint& point) {
  return {{"epoch", activity_epoch(point.epoch)},
          {"sequence", point.sequence},
          {"digest", to_hex(point.digest)}};
}

ActivityHeader header_from(const json& body) {
  ActivityHeader header;
  header.volume_uuid = body.at("uuid").get<std::string>();
  for (const json& bytes : body.at("disk_bytes")) {
    if (!bytes.is_number_unsigned()) throw ActivityError{"disk_bytes is not a number"};
    header.disk_bytes.push_back(bytes.get<std::uint64_t>());
  }
  for (const json& member : body.at("members"))
    header.members.push_back({member.at("host").get<std::string>(), counter(member, "base")});
  for (const json& term : body.at("terms"))
    header.terms.push_back({epoch_of(term.at("epoch")), counter(term, "end")});
  if (header.members.size() > activity_slots || header.terms.size() > activity_terms_max ||
      header.disk_bytes.size() > disks_max) {
    throw ActivityError{"a list is too long"};
  }
  if (const json& clean = body.at("clean"); !clean.is_null()) header.clean = activity_point(clean);
  if (body.contains("trail")) header.trail = activity_point(body.at("trail"));
  return header;
}

json body_json(const ActivityHeader& header) {
  json members = json::array();
  for (const ActivityMember& member : header.members)
    members.push_back({{"host", member.host}, {"base", member.base}});
  json terms = json::array();
  for (const ActivityHeader::Term& term : header.terms)
    terms.push_back({{"epoch", activity_epoch(term.epoch)}, {"end", term.end}});
  json body = {{"uuid", header.volume_uuid},
               {"disk_bytes", header.disk_bytes},
               {"members", members},
               {"terms", terms},
               {"clean", header.clean ? activity_point(*header.clean) : json(nullptr)}};
  if (header.trail) body["trail"] = activity_point(*header.trail);
  return body;
}

}  // namespace

std::vector<std::byte> encode_activity_header(const ActivityHeader& header) {
  const std::string body = body_json(header).dump(-1, ' ', false, json::error_handler_t::replace);
  RD_CHECK(at_body + body.size() <= activity_header_bytes);
  std::vector<std::byte> bytes(activity_header_bytes);
  store_le(bytes.data(), header_magic);
  store_le(bytes.data() + 4, activity_version);
  store_le(bytes.data() + 12, static_cast<std::uint32_t>(body.size()));
  store_le(bytes.data() + 16, header.generation);
  std::ranges::copy(std::as_bytes(std::span(body)), bytes.begin() + at_body);
  store_le(bytes.data() + 8, crc32c(std::span(bytes).subspan(12)));
  return bytes;
}

Result<ActivityHeader> decode_activity_header(std::span<const std::byte> from) {
  if (from.size() != activity_header_bytes || load_le<std::uint32_t>(from.data()) != header_magic) {
    return fail(Errc::corrupt, "not the header of an activity file");
  }
  const auto version = load_le<std::uint32_t>(from.data() + 4);
  if (version != activity_version) {
    return fail(Errc::version_mismatch,
                "activity file format {}, this version knows {}",
                version,
                activity_version);
  }
  const auto body_bytes = load_le<std::uint32_t>(from.data() + 12);
  if (load_le<std::uint32_t>(from.data() + 8) != crc32c(from.subspan(12)) ||
      body_bytes > activity_header_bytes - at_body) {
    return fail(Errc::corrupt, "the activity file's header checksum is wrong");
  }
  const auto* text = reinterpret_cast<const char*>(from.data() + at_body);
  const auto shallow = [](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    if (depth > 8) throw ActivityError{"nested too deeply"};
    return true;
  };
  try {
    ActivityHeader header = header_from(json::parse(text, text + body_bytes, shallow));
    header.generation = load_le<std::uint64_t>(from.data() + 16);
    return header;
  } catch (const json::exception& error) {
    return fail(Errc::corrupt, "bad header of an activity file: {}", error.what());
  } catch (const ActivityError& error) {
    return fail(Errc::corrupt, "bad header of an activity file: {}", error.what);
  }
}

void encode_activity_page(DiskIndex disk,
                          std::uint32_t page,
                          std::span<const ActivityEntry> entries,
                          std::span<std::byte, activity_page_bytes> to) {
  RD_CHECK(entries.size() == activity_entries_per_page);
  store_le(to.data() + 4, page_magic);
  store_le(to.data() + 8, std::uint32_t{disk});
  store_le(to.data() + 12, page);
  for (std::size_t i = 0; i < entries.size(); ++i)
    store_le(to.data() + at_entries + 2 * i, entries[i]);
  store_le(to.data(), crc32c(to.subspan(4)));
}

Result<std::vector<ActivityEntry>> decode_activity_page(
    DiskIndex disk, std::uint32_t page, std::span<const std::byte, activity_page_bytes> from) {
  std::vector<ActivityEntry> entries(activity_entries_per_page);
  if (std::ranges::all_of(from, [](std::byte byte) { return byte == std::byte{0}; })) {
    return entries;
  }
  if (load_le<std::uint32_t>(from.data() + 4) != page_magic ||
      load_le<std::uint32_t>(from.data() + 8) != disk ||
      load_le<std::uint32_t>(from.data() + 12) != page ||
      load_le<std::uint32_t>(from.data()) != crc32c(from.subspan(4))) {
    return fail(Errc::corrupt, "page {} of disk {} of an activity file is damaged", page, disk);
  }
  for (std::size_t i = 0; i < entries.size(); ++i)
    entries[i] = load_le<std::uint16_t>(from.data() + at_entries + 2 * i);
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
