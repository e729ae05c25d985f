// GET and DELETE of /v1/volumes/NAME/lost-writes (docs/control-api.md).

#include <unistd.h>

#include "core/base/log.h"
#include "io/file.h"
#include "replicad/control_api.h"
#include "replicad/lost_writes.h"
#include "replicad/reactor_call.h"
#include "replicad/volume_json.h"

namespace replicad {

using nlohmann::json;

namespace {

/// Of one answer: what replicactl reads at a time stays below its limit also in hexadecimal digits.
constexpr std::size_t records_per_answer = 4096;
constexpr std::uint64_t content_per_answer = 1 * mib;

std::string hex_of(std::span<const std::byte> bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const std::byte byte : bytes) {
    text += digits[std::to_integer<unsigned>(byte) >> 4];
    text += digits[std::to_integer<unsigned>(byte) & 15U];
  }
  return text;
}

json lost_header_json(const LostHeader& header) {
  json disks = json::array();
  for (const LostHeader::Disk& disk : header.disks)
    disks.push_back({{"name", disk.name}, {"bytes", disk.bytes}});
  return {{"host", header.host},
          {"disks", disks},
          {"left", to_json(header.left)},
          {"term", to_json(header.term)},
          {"primary", header.primary},
          {"epoch", to_json(header.epoch)},
          {"begun_seconds", header.begun_seconds}};
}

json damaged_file_json(std::uint64_t number, const Error& error) {
  return {{"number", number}, {"damaged", error.message}};
}

json lost_file_json(LostFileReader& reader, std::uint64_t number) {
  json file = lost_header_json(reader.header());
  std::uint64_t ranges = 0;
  std::uint64_t bytes = 0;
  json damaged = nullptr;
  for (;;) {
    const auto record = reader.next(false);
    if (!record) damaged = record.error().message;
    if (!record || !*record) break;
    ++ranges;
    bytes += (*record)->range.length_bytes;
  }
  file["number"] = number;
  file["ranges"] = ranges;
  file["bytes"] = bytes;
  file["file_bytes"] = reader.file_bytes();
  file["damaged"] = damaged;
  return file;
}

struct LostPlace {
  std::string directory;
  std::optional<std::uint64_t> rewind;
  std::string uuid;
};

Result<LostPlace> lost_place(ControlContext& context, const std::string& name) {
  const auto volume = find_volume(context, name);
  if (!volume) return tl::unexpected(volume.error());
  return run_on_reactor(context.reactor, [&context, volume, name] {
    return LostPlace{lost_directory(context.environment.volume_dir(name)),
                     (*volume)->state().rewind,
                     (*volume)->state().uuid};
  });
}

}  // namespace

ControlApi::Answer ControlApi::lost_writes(const std::string& name) {
  const auto place = lost_place(context_, name);
  if (!place) return tl::unexpected(place.error());
  const auto numbers = list_lost_files(place->directory);
  if (!numbers) return tl::unexpected(numbers.error());
  json files = json::array();
  for (const std::uint64_t number : *numbers) {
    auto reader = LostFileReader::open(place->directory, number);
    files.push_back(reader ? lost_file_json(*reader, number)
                           : damaged_file_json(number, reader.error()));
    // A rewind that is under way goes on writing.
    files.back()["complete"] = !place->rewind || number < *place->rewind;
  }
  return json{
      {"schema", 1}, {"host", context_.options.host}, {"name", name}, {"files", std::move(files)}};
}

ControlApi::Answer ControlApi::lost_file(const std::string& name,
                                         const std::string& number,
                                         const std::string& at) {
  const auto place = lost_place(context_, name);
  if (!place) return tl::unexpected(place.error());
  const auto file = number_in(number, "number of a file of lost writes");
  if (!file) return tl::unexpected(file.error());
  auto reader = LostFileReader::open(place->directory, *file);
  if (!reader) return tl::unexpected(reader.error());
  if (!at.empty()) {
    const auto offset = number_in(at, "at");
    if (!offset) return tl::unexpected(offset.error());
    reader->seek(*offset);
  }
  json answer = lost_header_json(reader->header());
  json ranges = json::array();
  json damaged = nullptr;
  json next = nullptr;
  std::uint64_t content = 0;
  while (next.is_null()) {
    const auto record = reader->next(true);
    if (!record) damaged = record.error().message;
    if (!record || !*record) break;
    const LostFileReader::Record& found = **record;
    content += found.content.size();
    ranges.push_back({{"disk", reader->header().disks[found.range.disk].name},
                      {"offset", found.range.offset_bytes},
                      {"length", found.range.length_bytes},
                      {"zero", found.is_zero},
                      {"damaged", found.is_damaged},
                      {"content", hex_of(found.content)}});
    if (ranges.size() >= records_per_answer || content >= content_per_answer)
      next = reader->offset();
  }
  answer["schema"] = 1;
  answer["name"] = name;
  answer["number"] = *file;
  answer["ranges"] = std::move(ranges);
  answer["damaged"] = std::move(damaged);
  answer["next"] = std::move(next);
  return answer;
}

ControlApi::Answer ControlApi::remove_lost_file(const std::string& name,
                                                const std::string& number,
                                                const std::string& uuid) {
  const auto operation = OperationGuard::begin(context_, name, "removing lost writes");
  if (!operation) return tl::unexpected(operation.error());
  const auto place = lost_place(context_, name);
  if (!place) return tl::unexpected(place.error());
  const auto file = number_in(number, "number of a file of lost writes");
  if (!file) return tl::unexpected(file.error());
  if (place->uuid != uuid) {
    return fail(Errc::refused, "volume {} has the uuid {}", name, place->uuid);
  }
  if (place->rewind && *file >= *place->rewind) {
    return fail(Errc::busy, "the rewind that writes file {} is under way", *file);
  }
  const std::string path = place->directory + "/" + lost_file_name(*file);
  if (::unlink(path.c_str()) != 0) return fail_errno(errno, "remove {}", path);
  RD_TRY(sync_directory(place->directory));
  log(LogLevel::warn, "lost_writes_removed", "volume={} file={}", name, *file);
  return json{{"schema", 1}, {"name", name}, {"number", *file}};
}

}  // namespace replicad
