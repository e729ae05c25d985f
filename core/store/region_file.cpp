#include "core/store/region_file.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

using nlohmann::json;

namespace {

// Byte offsets; the tables in docs/disk-format.md are the master.
constexpr std::size_t region_at_body = 24;
constexpr int region_depth_max = 8;

}  // namespace

std::vector<std::byte> encode_region_header(const RegionFileFormat& format,
                                            std::uint64_t generation,
                                            const json& body) {
  const std::string text = body.dump(-1, ' ', false, json::error_handler_t::replace);
  RD_CHECK(region_at_body + text.size() <= format.header_bytes);
  std::vector<std::byte> bytes(format.header_bytes);
  store_le(bytes.data(), format.header_magic);
  store_le(bytes.data() + 4, format.version);
  store_le(bytes.data() + 12, static_cast<std::uint32_t>(text.size()));
  store_le(bytes.data() + 16, generation);
  std::ranges::copy(std::as_bytes(std::span(text)), bytes.begin() + region_at_body);
  store_le(bytes.data() + 8, crc32c(std::span(bytes).subspan(12)));
  return bytes;
}

Result<std::uint64_t> decode_region_header(const RegionFileFormat& format,
                                           std::span<const std::byte> from,
                                           const std::function<void(const json& body)>& take) {
  if (from.size() != format.header_bytes ||
      load_le<std::uint32_t>(from.data()) != format.header_magic) {
    return fail(Errc::corrupt, "not the header of {}", format.name);
  }
  const auto version = load_le<std::uint32_t>(from.data() + 4);
  if (version != format.version) {
    return fail(Errc::version_mismatch,
                "the header of {} has format {}, this version knows {}",
                format.name,
                version,
                format.version);
  }
  const auto body_bytes = load_le<std::uint32_t>(from.data() + 12);
  if (load_le<std::uint32_t>(from.data() + 8) != crc32c(from.subspan(12)) ||
      body_bytes > format.header_bytes - region_at_body) {
    return fail(Errc::corrupt, "the checksum of the header of {} is wrong", format.name);
  }
  const auto* text = reinterpret_cast<const char*>(from.data() + region_at_body);
  const auto shallow = [](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    if (depth > region_depth_max) throw RegionFileError{"nested too deeply"};
    return true;
  };
  try {
    take(json::parse(text, text + body_bytes, shallow));
    return load_le<std::uint64_t>(from.data() + 16);
  } catch (const json::exception& error) {
    return fail(Errc::corrupt, "bad header of {}: {}", format.name, error.what());
  } catch (const RegionFileError& error) {
    return fail(Errc::corrupt, "bad header of {}: {}", format.name, error.what);
  }
}

void seal_region_page(const RegionFileFormat& format,
                      DiskIndex disk,
                      std::uint32_t page,
                      std::span<std::byte, region_page_bytes> to) {
  store_le(to.data() + 4, format.page_magic);
  store_le(to.data() + 8, std::uint32_t{disk});
  store_le(to.data() + 12, page);
  store_le(to.data(), crc32c(to.subspan(4)));
}

Result<bool> is_region_page(const RegionFileFormat& format,
                            DiskIndex disk,
                            std::uint32_t page,
                            std::span<const std::byte, region_page_bytes> from) {
  if (std::ranges::all_of(from, [](std::byte byte) { return byte == std::byte{0}; })) return false;
  if (load_le<std::uint32_t>(from.data() + 4) != format.page_magic ||
      load_le<std::uint32_t>(from.data() + 8) != disk ||
      load_le<std::uint32_t>(from.data() + 12) != page ||
      load_le<std::uint32_t>(from.data()) != crc32c(from.subspan(4))) {
    return fail(Errc::corrupt, "page {} of disk {} of {} is damaged", page, disk, format.name);
  }
  return true;
}

std::uint64_t region_counter(const json& object, const char* name) {
  const json& value = object.at(name);
  if (!value.is_number_unsigned()) throw RegionFileError{fmt::format("{} is not a number", name)};
  const auto number = value.get<std::uint64_t>();
  if (number > counter_max) throw RegionFileError{fmt::format("{} is too large", name)};
  return number;
}

Epoch region_epoch(const json& object) {
  const std::uint64_t tag = region_counter(object, "tag");
  if (tag > 0xffffffffU) throw RegionFileError{"tag is too large"};
  return {region_counter(object, "number"), static_cast<std::uint32_t>(tag)};
}

HistoryPoint region_point(const json& object) {
  const auto digest = digest_from_hex(object.at("digest").get<std::string>());
  if (!digest) throw RegionFileError{"digest is not 32 hexadecimal digits"};
  return {region_epoch(object.at("epoch")), region_counter(object, "sequence"), *digest};
}

std::vector<std::uint64_t> region_disk_bytes(const json& body) {
  std::vector<std::uint64_t> disk_bytes;
  for (const json& bytes : body.at("disk_bytes")) {
    if (!bytes.is_number_unsigned()) throw RegionFileError{"disk_bytes is not a number"};
    disk_bytes.push_back(bytes.get<std::uint64_t>());
  }
  if (disk_bytes.size() > disks_max) throw RegionFileError{"a list is too long"};
  return disk_bytes;
}

json region_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

json region_json(const HistoryPoint& point) {
  return {{"epoch", region_json(point.epoch)},
          {"sequence", point.sequence},
          {"digest", to_hex(point.digest)}};
}

}  // namespace replicad
