#include "core/store/lost_writes_file.h"

#include <algorithm>
#include <charconv>

#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/endian.h"

namespace replicad {

namespace {

using nlohmann::json;

// Byte offsets; the table in docs/disk-format.md is the master.
constexpr std::uint32_t lost_magic = 0x574c5052;  // "RPLW"
constexpr std::uint32_t lost_version = 1;
constexpr std::size_t at_lost_body = 16;
constexpr std::size_t lost_name_digits = 8;
constexpr std::string_view lost_suffix = ".lost";
constexpr int lost_depth_max = 8;

struct LostFileError {
  std::string what;
};

json lost_epoch_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

std::uint64_t lost_number(const json& object, const char* name, std::uint64_t value_max) {
  const json& value = object.at(name);
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > value_max) {
    throw LostFileError{fmt::format("{} is no number up to {}", name, value_max)};
  }
  return value.get<std::uint64_t>();
}

std::string lost_text(const json& object, const char* name, std::size_t bytes_max) {
  auto text = object.at(name).get<std::string>();
  if (text.size() > bytes_max) throw LostFileError{fmt::format("{} is too long", name)};
  return text;
}

Epoch lost_epoch(const json& object, const char* name) {
  const json& value = object.at(name);
  return {lost_number(value, "number", counter_max),
          static_cast<std::uint32_t>(lost_number(value, "tag", 0xffffffffU))};
}

LostHeader lost_header_from(const json& body) {
  LostHeader header;
  header.volume = lost_text(body, "volume", volume_name_bytes_max);
  header.volume_uuid = lost_text(body, "uuid", 36);
  header.host = lost_text(body, "host", host_name_bytes_max);
  for (const json& disk : body.at("disks")) {
    header.disks.push_back(
        {lost_text(disk, "name", disk_name_bytes_max), lost_number(disk, "bytes", disk_bytes_max)});
  }
  if (header.disks.empty() || header.disks.size() > disks_max) throw LostFileError{"disk count"};
  const json& left = body.at("left");
  const auto digest = digest_from_hex(left.at("digest").get<std::string>());
  if (!digest) throw LostFileError{"digest is not 32 hexadecimal digits"};
  header.left = {lost_epoch(left, "epoch"), lost_number(left, "sequence", counter_max), *digest};
  header.term = lost_epoch(body, "term");
  header.primary = lost_text(body, "primary", host_name_bytes_max);
  header.epoch = lost_epoch(body, "epoch");
  header.begun_seconds = lost_number(body, "begun", counter_max);
  return header;
}

bool is_all_zero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

std::vector<std::byte> encode_lost_header(const LostHeader& header) {
  json disks = json::array();
  for (const LostHeader::Disk& disk : header.disks)
    disks.push_back({{"name", disk.name}, {"bytes", disk.bytes}});
  const json body = {{"volume", header.volume},
                     {"uuid", header.volume_uuid},
                     {"host", header.host},
                     {"disks", disks},
                     {"left",
                      {{"epoch", lost_epoch_json(header.left.epoch)},
                       {"sequence", header.left.sequence},
                       {"digest", to_hex(header.left.digest)}}},
                     {"term", lost_epoch_json(header.term)},
                     {"primary", header.primary},
                     {"epoch", lost_epoch_json(header.epoch)},
                     {"begun", header.begun_seconds}};
  const std::string text = body.dump(-1, ' ', false, json::error_handler_t::replace);
  RD_CHECK(at_lost_body + text.size() <= lost_header_bytes);
  std::vector<std::byte> bytes(lost_header_bytes);
  store_le(bytes.data(), lost_magic);
  store_le(bytes.data() + 4, lost_version);
  store_le(bytes.data() + 12, static_cast<std::uint32_t>(text.size()));
  std::ranges::copy(std::as_bytes(std::span(text)), bytes.begin() + at_lost_body);
  store_le(bytes.data() + 8, crc32c(std::span(bytes).subspan(12)));
  return bytes;
}

Result<LostHeader> decode_lost_header(std::span<const std::byte> from) {
  if (from.size() != lost_header_bytes || load_le<std::uint32_t>(from.data()) != lost_magic) {
    return fail(Errc::corrupt, "not the header of a file of lost writes");
  }
  const auto version = load_le<std::uint32_t>(from.data() + 4);
  if (version != lost_version) {
    return fail(Errc::version_mismatch,
                "a file of lost writes of format {}, this version knows {}",
                version,
                lost_version);
  }
  const auto body_bytes = load_le<std::uint32_t>(from.data() + 12);
  if (load_le<std::uint32_t>(from.data() + 8) != crc32c(from.subspan(12)) ||
      body_bytes > lost_header_bytes - at_lost_body) {
    return fail(Errc::corrupt, "the header of a file of lost writes is damaged");
  }
  const auto* text = reinterpret_cast<const char*>(from.data() + at_lost_body);
  const auto shallow = [](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    if (depth > lost_depth_max) throw LostFileError{"nested too deeply"};
    return true;
  };
  try {
    return lost_header_from(json::parse(text, text + body_bytes, shallow));
  } catch (const json::exception& error) {
    return fail(Errc::corrupt, "bad header of a file of lost writes: {}", error.what());
  } catch (const LostFileError& error) {
    return fail(Errc::corrupt, "bad header of a file of lost writes: {}", error.what);
  }
}

FrameHeader lost_record(const Range& range, std::span<const std::byte> content) {
  RD_CHECK(content.size() == range.length_bytes);
  FrameHeader header;
  header.range = range;
  header.type = is_all_zero(content) ? FrameType::copy_zero : FrameType::copy_data;
  if (header.type == FrameType::copy_zero) return header;
  header.payload_bytes = static_cast<std::uint32_t>(content.size());
  header.payload_crc32c = crc32c(content);
  return header;
}

Result<FrameHeader> decode_lost_record(const LostHeader& file,
                                       std::span<const std::byte, frame_header_bytes> from) {
  auto header = decode_header(from);
  if (!header) return fail(Errc::corrupt, "a record is damaged: {}", header.error().message);
  const bool is_record =
      header->type == FrameType::copy_data || header->type == FrameType::copy_zero;
  const Range& range = header->range;
  if (!is_record || range.disk >= file.disks.size() || !fits(range, file.disks[range.disk].bytes)) {
    return fail(Errc::corrupt, "a record is none of this file's disks");
  }
  return header;
}

std::string lost_file_name(std::uint64_t number) {
  return fmt::format("{:0{}}{}", number, lost_name_digits, lost_suffix);
}

std::optional<std::uint64_t> lost_number_from_name(std::string_view name) {
  if (name.size() != lost_name_digits + lost_suffix.size() || !name.ends_with(lost_suffix)) {
    return std::nullopt;
  }
  std::uint64_t number = 0;
  const char* end = name.data() + lost_name_digits;
  const auto [after, error] = std::from_chars(name.data(), end, number);
  if (error != std::errc{} || after != end || number == 0) return std::nullopt;
  return number;
}

}  // namespace replicad
