#include "core/store/volume_state.h"

#include <algorithm>
#include <charconv>
#include <set>

#include <nlohmann/json.hpp>

#include "core/store/resync_stage.h"
#include "core/vote/record_json.h"

namespace replicad {

namespace {

using nlohmann::json;

constexpr std::string_view state_magic = "replicad-state ";
constexpr std::uint64_t state_version = 1;
constexpr int json_depth_max = 8;
constexpr std::size_t path_bytes_max = 4095;
constexpr std::size_t address_bytes_max = 300;

/// Why a document cannot be read; becomes Errc::corrupt.
struct DocumentError {
  std::string what;
};

// --- encoding

json to_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

json to_json(const HistoryPoint& point) {
  return {{"epoch", to_json(point.epoch)},
          {"sequence", point.sequence},
          {"digest", to_hex(point.digest)}};
}

json to_json(const VolumeSettings& settings) {
  return {{"mode", mode_name(settings.mode)},
          {"congestion", congestion_name(settings.congestion)},
          {"on_local_error", on_local_error_name(settings.on_local_error)},
          {"autostart", settings.autostart},
          {"ring_bytes", settings.ring_bytes},
          {"log_bytes", settings.log_bytes},
          {"segment_bytes", settings.segment_bytes},
          {"ack_timeout_ms", settings.ack_timeout_ms},
          {"quorum_timeout_ms", settings.quorum_timeout_ms}};
}

json disks_to_json(const std::vector<DiskState>& disks) {
  json list = json::array();
  for (const DiskState& disk : disks) {
    list.push_back({{"name", disk.name},
                    {"bytes", disk.bytes},
                    {"path", disk.path},
                    {"adopted", disk.adopted}});
    json& entry = list.back();
    const ImageMark& mark = disk.mark;
    if (!mark.identity.empty()) entry["identity"] = mark.identity;
    if (mark.modified_ns) entry["modified_ns"] = *mark.modified_ns;
    for (const ImageSample& sample : mark.samples)
      entry["samples"].push_back(fmt::format("{} {}", sample.offset_bytes, to_hex(sample.sum)));
  }
  return list;
}

json members_to_json(const std::vector<MemberState>& members) {
  json list = json::array();
  for (const MemberState& member : members) {
    list.push_back({{"host", member.host},
                    {"stream", member.stream},
                    {"control", member.control},
                    {"role", member.witness ? "witness" : "data"}});
  }
  return list;
}

json transfer_to_json(const std::optional<TransferState>& transfer) {
  if (!transfer) return nullptr;
  return {{"to", transfer->to},
          {"epoch", to_json(transfer->epoch)},
          {"point", to_json(transfer->point)}};
}

// --- decoding: each reader names the field it could not read

const json& field(const json& object, const char* name) {
  if (!object.is_object()) throw DocumentError{fmt::format("no object around \"{}\"", name)};
  const auto found = object.find(name);
  if (found == object.end()) throw DocumentError{fmt::format("field \"{}\" is missing", name)};
  return *found;
}

std::uint64_t number(const json& object,
                     const char* name,
                     std::uint64_t value_max = ~std::uint64_t{0}) {
  const json& value = field(object, name);
  if (!value.is_number_unsigned()) {
    throw DocumentError{fmt::format("field \"{}\" is not a whole number", name)};
  }
  const auto result = value.get<std::uint64_t>();
  if (result > value_max) {
    throw DocumentError{fmt::format("field \"{}\" is {}, at most {}", name, result, value_max)};
  }
  return result;
}

std::uint32_t number_32(const json& object, const char* name) {
  return static_cast<std::uint32_t>(number(object, name, 0xffffffffU));
}

bool boolean(const json& object, const char* name) {
  const json& value = field(object, name);
  if (!value.is_boolean()) {
    throw DocumentError{fmt::format("field \"{}\" is not true or false", name)};
  }
  return value.get<bool>();
}

std::string text_of(const json& value, const char* name) {
  if (!value.is_string()) throw DocumentError{fmt::format("field \"{}\" is not a string", name)};
  return value.get<std::string>();
}

std::string text(const json& object, const char* name) {
  return text_of(field(object, name), name);
}

const json& list(const json& object, const char* name) {
  const json& value = field(object, name);
  if (!value.is_array()) throw DocumentError{fmt::format("field \"{}\" is not a list", name)};
  return value;
}

Epoch epoch(const json& object, const char* name) {
  const json& value = field(object, name);
  return Epoch{number(value, "number"), number_32(value, "tag")};
}

HistoryPoint point(const json& object, const char* name) {
  const json& value = field(object, name);
  const auto digest = digest_from_hex(text(value, "digest"));
  if (!digest) throw DocumentError{fmt::format("digest of \"{}\" is not 32 hex digits", name)};
  return HistoryPoint{epoch(value, "epoch"), number(value, "sequence"), *digest};
}

VolumeSettings settings_from(const json& value) {
  VolumeSettings settings;
  const auto mode = mode_from_name(text(value, "mode"));
  if (!mode) throw DocumentError{"unknown mode"};
  const auto congestion = congestion_from_name(text(value, "congestion"));
  if (!congestion) throw DocumentError{"unknown congestion setting"};
  const auto on_local_error = on_local_error_from_name(text(value, "on_local_error"));
  if (!on_local_error) throw DocumentError{"unknown on_local_error setting"};
  settings.on_local_error = *on_local_error;
  settings.autostart = boolean(value, "autostart");
  settings.mode = *mode;
  settings.congestion = *congestion;
  settings.ring_bytes = number(value, "ring_bytes");
  settings.log_bytes = number(value, "log_bytes");
  settings.segment_bytes = number(value, "segment_bytes");
  settings.ack_timeout_ms = number_32(value, "ack_timeout_ms");
  settings.quorum_timeout_ms = number_32(value, "quorum_timeout_ms");
  return settings;
}

std::optional<TransferState> transfer_from(const json& object) {
  const json& value = field(object, "transfer");
  if (value.is_null()) return std::nullopt;
  return TransferState{text(value, "to"), epoch(value, "epoch"), point(value, "point")};
}

std::optional<Record> optional_record(const json& document, const char* name) {
  if (!document.contains(name)) return std::nullopt;
  auto record = record_from_json(field(document, name));
  if (!record) throw DocumentError{record.error().message};
  return std::move(*record);
}

ImageSample sample_from(const json& value) {
  const std::string content = text_of(value, "samples");
  const std::size_t space = content.find(' ');
  ImageSample sample;
  const char* end = content.data() + std::min(space, content.size());
  const auto [after, error] = std::from_chars(content.data(), end, sample.offset_bytes);
  const auto sum = space == std::string::npos
                       ? std::nullopt
                       : digest_from_hex(std::string_view(content).substr(space + 1));
  if (error != std::errc{} || after != end || !sum)
    throw DocumentError{"a sample is not an offset and a checksum"};
  sample.sum = *sum;
  return sample;
}

ImageMark mark_from(const json& disk) {
  ImageMark mark;
  if (disk.contains("identity")) mark.identity = text(disk, "identity");
  if (disk.contains("modified_ns")) mark.modified_ns = number(disk, "modified_ns");
  if (!disk.contains("samples")) return mark;
  for (const json& sample : list(disk, "samples"))
    mark.samples.push_back(sample_from(sample));
  return mark;
}

VolumeState state_from(const json& document) {
  VolumeState state;
  state.generation = number(document, "generation");
  state.name = text(document, "name");
  state.uuid = text(document, "uuid");
  for (const json& disk : list(document, "disks")) {
    state.disks.push_back({text(disk, "name"),
                           number(disk, "bytes"),
                           text(disk, "path"),
                           boolean(disk, "adopted"),
                           mark_from(disk)});
  }
  for (const json& member : list(document, "members")) {
    const std::string role = text(member, "role");
    if (role != "data" && role != "witness") throw DocumentError{"unknown role of a member"};
    state.members.push_back(
        {text(member, "host"), text(member, "stream"), text(member, "control"), role == "witness"});
  }
  state.settings = settings_from(field(document, "settings"));
  auto vote = voter_from_json(field(document, "vote"));
  if (!vote) throw DocumentError{vote.error().message};
  state.vote = std::move(*vote);
  state.primary = text(document, "primary");
  state.epoch = epoch(document, "epoch");
  for (const json& host : list(document, "in_sync"))
    state.in_sync.push_back(text_of(host, "in_sync"));
  state.active = boolean(document, "active");
  state.clean = boolean(document, "clean");
  state.history = point(document, "history");
  state.sequence_reserved = number(document, "sequence_reserved");
  state.transfer = transfer_from(document);
  state.consistent = boolean(document, "consistent");
  state.checkpoint = point(document, "checkpoint");
  state.whole = boolean(document, "whole");
  if (document.contains("resync")) state.resync = epoch(document, "resync");
  if (document.contains("rewind")) state.rewind = number(document, "rewind");
  if (document.contains("marked_at")) state.marked_at = point(document, "marked_at");
  if (document.contains("stage_bytes")) state.stage_bytes = number(document, "stage_bytes");
  if (document.contains("stamps")) {
    auto stamps = stamps_from_json(field(document, "stamps"));
    if (!stamps) throw DocumentError{stamps.error().message};
    state.stamps = std::move(*stamps);
  }
  if (document.contains("put_back")) state.put_back = number(document, "put_back", counter_max);
  state.fork_base = optional_record(document, "fork_base");
  state.rival = optional_record(document, "rival");
  return state;
}

/// The depth is bounded before anything deep is built.
json parse_bounded(std::string_view body) {
  const auto shallow = [](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    if (depth > json_depth_max) throw DocumentError{"nested too deeply"};
    return true;
  };
  return json::parse(body.begin(), body.end(), shallow);
}

/// Reads digits of `base` from the front of `from`, and the one character `behind` them.
std::optional<std::uint64_t> take_number(std::string_view& from, char behind, int base) {
  std::uint64_t value = 0;
  const char* end = from.data() + from.size();
  const auto [after, error] = std::from_chars(from.data(), end, value, base);
  if (error != std::errc{} || after == end || *after != behind) return std::nullopt;
  from.remove_prefix(static_cast<std::size_t>(after - from.data()) + 1);
  return value;
}

/// Checks the first line and the checksum; the body.
Result<std::string_view> body_of(std::string_view content) {
  if (content.size() > volume_state_bytes_max) {
    return fail(Errc::corrupt,
                "state file of {} bytes, at most {} expected",
                content.size(),
                volume_state_bytes_max);
  }
  if (!content.starts_with(state_magic)) {
    return fail(Errc::corrupt, "not a replicad state file: the first line is wrong");
  }
  std::string_view rest = content.substr(state_magic.size());
  const auto version = take_number(rest, ' ', 10);
  if (!version || *version == 0) {
    return fail(Errc::corrupt, "state file: no version in the first line");
  }
  if (*version > state_version) {
    return fail(Errc::version_mismatch,
                "state file has format version {}, this program knows up to {}",
                *version,
                state_version);
  }
  const auto checksum = take_number(rest, ' ', 16);
  const auto body_bytes = take_number(rest, '\n', 10);
  if (!checksum || !body_bytes) {
    return fail(Errc::corrupt, "state file: the first line is damaged");
  }
  if (*body_bytes != rest.size()) {
    return fail(Errc::corrupt,
                "state file: {} bytes behind the first line, {} expected",
                rest.size(),
                *body_bytes);
  }
  if (crc32c(std::as_bytes(std::span(rest))) != *checksum) {
    return fail(Errc::corrupt, "state file: the checksum is wrong");
  }
  return rest;
}

// --- rules

Status check_host(std::string_view host, std::string_view role) {
  if (!is_valid_name(host)) {
    return fail(Errc::invalid_argument, "{} \"{}\" is not a valid host name", role, host);
  }
  return {};
}

Status check_uuid(std::string_view uuid) {
  bool valid = uuid.size() == 36;
  for (std::size_t i = 0; valid && i < uuid.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    const char c = uuid[i];
    valid = dash ? c == '-' : (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  }
  if (!valid) return fail(Errc::invalid_argument, "\"{}\" is not a lower-case UUID", uuid);
  return {};
}

Status check_disk(const DiskState& disk) {
  if (!is_valid_name(disk.name) || disk.name.size() > disk_name_bytes_max) {
    return fail(Errc::invalid_argument, "\"{}\" is not a valid disk name", disk.name);
  }
  if (disk.bytes == 0 || disk.bytes > disk_bytes_max || disk.bytes % disk_granularity_bytes != 0) {
    return fail(Errc::invalid_argument,
                "disk {}: size {} is not a multiple of {} between {} and {}",
                disk.name,
                disk.bytes,
                disk_granularity_bytes,
                disk_granularity_bytes,
                disk_bytes_max);
  }
  const bool bad_path = disk.path.empty() || disk.path.front() != '/' ||
                        disk.path.size() > path_bytes_max ||
                        disk.path.find('\0') != std::string::npos;
  if (bad_path) {
    return fail(Errc::invalid_argument, "disk {}: the image path is not absolute", disk.name);
  }
  const ImageMark& mark = disk.mark;
  bool bad_mark =
      mark.identity.size() > image_identity_bytes_max || mark.samples.size() > image_samples_max;
  for (const ImageSample& sample : mark.samples)
    bad_mark = bad_mark || sample.offset_bytes >= disk.bytes;
  if (bad_mark)
    return fail(Errc::invalid_argument, "disk {}: the image's mark is no mark", disk.name);
  return {};
}

/// A witness has none.
Status check_disks(const std::vector<DiskState>& disks, bool has_witness) {
  if (disks.empty() && has_witness) return {};
  if (disks.empty() || disks.size() > disks_max) {
    return fail(Errc::invalid_argument, "{} disks, 1 to {} allowed", disks.size(), disks_max);
  }
  std::set<std::string_view> names;
  std::set<std::string_view> paths;
  for (const DiskState& disk : disks) {
    RD_TRY(check_disk(disk));
    if (!names.insert(disk.name).second) {
      return fail(Errc::invalid_argument, "two disks are named {}", disk.name);
    }
    if (!paths.insert(disk.path).second) {
      return fail(Errc::invalid_argument, "two disks have the image {}", disk.path);
    }
  }
  return {};
}

Status check_members(const std::vector<MemberState>& members) {
  if (members.empty() || members.size() > members_max) {
    return fail(Errc::invalid_argument, "{} members, 1 to {} allowed", members.size(), members_max);
  }
  std::set<std::string_view> hosts;
  for (const MemberState& member : members) {
    RD_TRY(check_host(member.host, "member"));
    if (!hosts.insert(member.host).second) {
      return fail(Errc::invalid_argument, "two members are on host {}", member.host);
    }
    if (member.stream.size() > address_bytes_max || member.control.size() > address_bytes_max) {
      return fail(Errc::invalid_argument, "member {}: an address is too long", member.host);
    }
  }
  return {};
}

Status check_range(std::string_view name,
                   std::uint64_t value,
                   std::uint64_t value_min,
                   std::uint64_t value_max) {
  if (value < value_min || value > value_max) {
    return fail(Errc::invalid_argument,
                "{} is {}, allowed are {} to {}",
                name,
                value,
                value_min,
                value_max);
  }
  return {};
}

Status check_settings(const VolumeSettings& settings) {
  RD_TRY(check_range("ring_bytes", settings.ring_bytes, ring_bytes_min, ring_bytes_max));
  RD_TRY(
      check_range("segment_bytes", settings.segment_bytes, segment_bytes_min, segment_bytes_max));
  if (settings.segment_bytes % segment_header_bytes != 0) {
    return fail(Errc::invalid_argument,
                "segment_bytes is {}, not a multiple of {}",
                settings.segment_bytes,
                segment_header_bytes);
  }
  RD_TRY(check_range(
      "log_bytes", settings.log_bytes, log_segments_min * settings.segment_bytes, log_bytes_max));
  RD_TRY(check_range("quorum_timeout_ms", settings.quorum_timeout_ms, 0, quorum_timeout_ms_max));
  return check_range(
      "ack_timeout_ms", settings.ack_timeout_ms, ack_timeout_ms_min, ack_timeout_ms_max);
}

Status check_counters(const VolumeState& state) {
  RD_TRY(check_range("generation", state.generation, 0, counter_max));
  RD_TRY(check_range("epoch", state.epoch.number, 0, counter_max));
  RD_TRY(check_range("sequence_reserved", state.sequence_reserved, 0, counter_max));
  for (const HistoryPoint* at : {&state.history, &state.checkpoint}) {
    RD_TRY(check_range("sequence", at->sequence, 0, counter_max));
    RD_TRY(check_range("epoch", at->epoch.number, 0, counter_max));
  }
  if (state.transfer) {
    RD_TRY(check_host(state.transfer->to, "transfer target"));
    RD_TRY(check_range("epoch", state.transfer->epoch.number, 0, counter_max));
    RD_TRY(check_range("epoch", state.transfer->point.epoch.number, 0, counter_max));
    RD_TRY(check_range("sequence", state.transfer->point.sequence, 0, counter_max));
  }
  if (state.resync) RD_TRY(check_range("epoch", state.resync->number, 0, counter_max));
  if (state.rewind) RD_TRY(check_range("rewind", *state.rewind, 1, lost_files_max));
  if (!state.stage_bytes) return {};
  RD_TRY(check_range("stage_bytes", *state.stage_bytes, stage_header_bytes, counter_max));
  if (!state.consistent)
    return fail(Errc::invalid_argument, "stage_bytes at an inconsistent member");
  return {};
}

}  // namespace

std::string encode_volume_state_body(const VolumeState& state) {
  json document = {{"generation", state.generation},
                   {"name", state.name},
                   {"uuid", state.uuid},
                   {"disks", disks_to_json(state.disks)},
                   {"members", members_to_json(state.members)},
                   {"settings", to_json(state.settings)},
                   {"primary", state.primary},
                   {"epoch", to_json(state.epoch)},
                   {"in_sync", state.in_sync},
                   {"active", state.active},
                   {"clean", state.clean},
                   {"history", to_json(state.history)},
                   {"sequence_reserved", state.sequence_reserved},
                   {"transfer", transfer_to_json(state.transfer)},
                   {"consistent", state.consistent},
                   {"checkpoint", to_json(state.checkpoint)},
                   {"whole", state.whole},
                   {"vote", voter_json(state.vote)}};
  if (state.resync) document["resync"] = to_json(*state.resync);
  if (state.rewind) document["rewind"] = *state.rewind;
  if (state.marked_at) document["marked_at"] = to_json(*state.marked_at);
  if (state.stage_bytes) document["stage_bytes"] = *state.stage_bytes;
  if (!state.stamps.empty()) document["stamps"] = stamps_json(state.stamps);
  if (state.put_back) document["put_back"] = *state.put_back;
  if (state.fork_base) document["fork_base"] = record_json(*state.fork_base);
  if (state.rival) document["rival"] = record_json(*state.rival);
  return document.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string encode_volume_state(const VolumeState& state) {
  const std::string body = encode_volume_state_body(state);
  return fmt::format("{}{} {:08x} {}\n{}",
                     state_magic,
                     state_version,
                     crc32c(std::as_bytes(std::span(body))),
                     body.size(),
                     body);
}

Result<VolumeState> decode_volume_state(std::string_view content) {
  const auto body = body_of(content);
  if (!body) return tl::unexpected(body.error());
  return decode_volume_state_body(*body);
}

Result<VolumeState> decode_volume_state_body(std::string_view body) {
  if (body.size() > volume_state_bytes_max) return fail(Errc::corrupt, "state file: too long");
  try {
    VolumeState state = state_from(parse_bounded(body));
    if (const Status valid = check_volume_state(state); !valid) {
      return fail(Errc::corrupt, "state file: {}", valid.error().message);
    }
    return state;
  } catch (const json::exception& error) {
    return fail(Errc::corrupt, "state file: {}", error.what());
  } catch (const DocumentError& error) {
    return fail(Errc::corrupt, "state file: {}", error.what);
  }
}

Status check_volume_state(const VolumeState& state) {
  if (!is_valid_name(state.name)) {
    return fail(
        Errc::invalid_argument,
        "\"{}\" is not a valid volume name (a-z, 0-9, '.', '_', '-', at most {} characters)",
        state.name,
        volume_name_bytes_max);
  }
  RD_TRY(check_uuid(state.uuid));
  const bool has_witness = std::any_of(
      state.members.begin(), state.members.end(), [](const auto& item) { return item.witness; });
  RD_TRY(check_disks(state.disks, has_witness));
  RD_TRY(check_members(state.members));
  RD_TRY(check_settings(state.settings));
  RD_TRY(check_host(state.primary, "primary"));
  if (state.in_sync.size() > members_max) {
    return fail(
        Errc::invalid_argument, "{} hosts in sync, at most {}", state.in_sync.size(), members_max);
  }
  std::set<std::string_view> hosts;
  for (const std::string& host : state.in_sync) {
    RD_TRY(check_host(host, "in-sync member"));
    if (!hosts.insert(host).second) {
      return fail(Errc::invalid_argument, "host {} is twice in the in-sync set", host);
    }
  }
  return check_counters(state);
}

std::string promised_primary(const VolumeState& state, std::string_view host) {
  const bool by_vote = state.vote.record && state.vote.record->epoch == state.epoch;
  const std::string& primary = by_vote ? state.vote.record->primary : state.primary;
  return primary == host ? std::string() : primary;
}

HistoryPoint unclean_point(const Epoch& epoch, const VolumeState& state) {
  DigestItem item;
  item.epoch = epoch;
  item.sequence = std::max(state.sequence_reserved, state.history.sequence);
  return {epoch, item.sequence, extend_digest({}, item)};
}

void begin_writing(VolumeState& state) {
  for (DiskState& disk : state.disks)
    disk.mark.modified_ns.reset();
}

void forget_images(VolumeState& state, std::string_view host, bool trust) {
  for (DiskState& disk : state.disks)
    disk.mark = {};
  state.marked_at.reset();
  if (state.primary == host) {
    state.clean = false;
    return;
  }
  if (trust) return;
  state.consistent = false;
  state.resync.reset();
  state.rewind.reset();
  state.stage_bytes.reset();
}

void begin_anew(VolumeState& state, std::uint64_t generation) {
  state.generation = std::max(state.generation, generation);
  state.put_back.reset();
}

Mode mode_in_force(const VolumeState& state) {
  const bool handover = state.vote.record && state.vote.record->handover;
  return handover ? Mode::sync : state.settings.mode;
}

bool contains_host(const std::vector<std::string>& hosts, std::string_view host) {
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

}  // namespace replicad
