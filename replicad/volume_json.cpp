#include "replicad/volume_json.h"

#include <algorithm>

#include "core/vote/record_json.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr std::size_t text_bytes_max = 1024;  ///< of an error that is shown
constexpr std::size_t error_bytes_max = 256 * kib;
constexpr std::uint64_t any_number = ~std::uint64_t{0};

/// Without a part of a character at the end.
std::string first_bytes(std::string text) {
  if (text.size() <= text_bytes_max) return text;
  std::size_t end = text_bytes_max;
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) == 0x80U; };
  while (end > 0 && continues(text[end]))
    --end;
  text.resize(end);
  return text;
}

std::optional<Error> read_error(FieldReader& outer, const char* name) {
  const json* value = outer.optional_object(name);
  if (value == nullptr) return std::nullopt;
  FieldReader fields(*value, name);
  Error error;
  error.code = errc_from_name(fields.text("code", 64));
  // Part of it may be a peer's words: however long, the rest of the message counts.
  error.message = first_bytes(fields.text("message", error_bytes_max));
  error.hint = first_bytes(fields.optional_text("hint", error_bytes_max).value_or(""));
  if (const Status status = fields.finish_allow_unknown(); !status) outer.reject(status.error());
  return error;
}

DiskLoss read_disk_lag(const json& value, FieldReader& outer) {
  FieldReader fields(value, "lag_disks");
  DiskLoss lag;
  lag.disk = fields.text("disk", disk_name_bytes_max);
  lag.writes = fields.number("writes", 0, any_number);
  lag.bytes = fields.number("bytes", 0, any_number);
  lag.seconds = std::max(0.0, fields.real("seconds"));
  if (const Status status = fields.finish_allow_unknown(); !status) outer.reject(status.error());
  return lag;
}

PeerStatus read_peer(const json& value, FieldReader& outer) {
  FieldReader fields(value, "replicas");
  PeerStatus peer;
  peer.host = fields.text("host", host_name_bytes_max);
  peer.state = fields.text("state", 64);
  peer.in_sync = fields.boolean("in_sync");
  peer.sent = fields.number("sent", 0, any_number);
  peer.received = fields.number("received", 0, any_number);
  peer.logged = fields.number("logged", 0, any_number);
  peer.durable = fields.number("durable", 0, any_number);
  peer.applied = fields.number("applied", 0, any_number);
  peer.digest = fields.text("digest", 32);
  peer.lag_bytes = fields.optional_number("lag_bytes", 0, any_number).value_or(0);
  if (value.is_object() && value.contains("lag_seconds") && !value["lag_seconds"].is_null()) {
    // Two readings of a clock may give a little less than nothing.
    peer.lag_seconds = std::max(0.0, fields.real("lag_seconds"));
  }
  if (value.is_object() && value.contains("lag_disks")) {
    for (const json& item : fields.list("lag_disks", disks_max))
      peer.lag_disks.push_back(read_disk_lag(item, fields));
  }
  if (const json* copy = fields.optional_object("copy")) {
    FieldReader progress(*copy, "copy");
    peer.copy = CopyStatus{
        .done_bytes = progress.number("done_bytes", 0, any_number),
        .total_bytes = progress.number("total_bytes", 0, any_number),
        .sent_bytes = progress.optional_number("sent_bytes", 0, any_number).value_or(0),
        .blocks_left = progress.optional_number("blocks_left", 0, any_number).value_or(0)};
    if (const Status status = progress.finish_allow_unknown(); !status)
      fields.reject(status.error());
  }
  peer.error = read_error(fields, "error");
  if (const Status status = fields.finish_allow_unknown(); !status) outer.reject(status.error());
  return peer;
}

/// A member of which the plugin has said nothing yet.
PeerStatus unknown_peer(const std::string& host) {
  PeerStatus peer;
  peer.host = host;
  peer.state = "disconnected";
  peer.digest = to_hex(Digest{});
  return peer;
}

json peers_json(const VolumeSnapshot& snapshot) {
  json list = json::array();
  for (const MemberState& member : snapshot.state.members) {
    if (member.host == snapshot.host || member.witness) continue;
    PeerStatus peer = unknown_peer(member.host);
    if (snapshot.plugin) {
      for (const PeerStatus& known : snapshot.plugin->replicas) {
        if (known.host == member.host) peer = known;
      }
    }
    // Without a plugin nobody is connected, and the recorded set is all there is.
    if (!snapshot.plugin_running) {
      peer.in_sync = contains_host(snapshot.state.in_sync, member.host);
      if (peer.state != "detached" && peer.state != "refused") peer.state = "disconnected";
      peer.copy.reset();
      peer.lag_seconds.reset();
    }
    list.push_back(to_json(peer));
  }
  return list;
}

json disks_json(const std::vector<DiskState>& disks) {
  json list = json::array();
  for (const DiskState& disk : disks) {
    list.push_back({{"name", disk.name},
                    {"bytes", disk.bytes},
                    {"path", disk.path},
                    {"allocated_bytes", 0},
                    {"adopted", disk.adopted}});
  }
  return list;
}

json replica_json(const ReplicaStatus& status, bool open) {
  return {{"open", open},
          {"connected", status.connected},
          {"consistent", status.consistent},
          {"short", status.is_short},
          {"received", status.marks.received},
          {"logged", status.marks.logged},
          {"durable", status.marks.durable},
          {"applied", status.marks.applied},
          {"logged_digest", to_hex(status.marks.logged_digest)},
          {"applied_digest", to_hex(status.marks.applied_digest)},
          {"backlog_bytes", status.backlog_bytes},
          {"log_bytes", status.log_bytes},
          {"heard_seconds",
           status.heard ? json(std::chrono::duration<double>(*status.heard).count()) : json()}};
}

/// The handover on record, on every host; the standby's export on the one that has it.
json handover_shown(const VolumeSnapshot& snapshot) {
  const auto& record = snapshot.state.vote.record;
  if (!record || !record->handover) return nullptr;
  json shown = handover_json(*record->handover);
  shown["export"] =
      snapshot.standby ? export_json(*snapshot.standby, snapshot.state) : json(nullptr);
  shown["error"] = to_json(snapshot.standby_error);
  return shown;
}

void add_primary(const VolumeSnapshot& snapshot, json& volume) {
  const VolumeState& state = snapshot.state;
  const bool current = snapshot.plugin_running && snapshot.plugin;
  volume["epoch"] = to_json(state.vote.record ? state.vote.record->epoch : state.epoch);
  volume["history"] = to_json(current ? snapshot.plugin->history : state.history);
  volume["active"] = state.active;
  volume["clean"] = state.clean;
  volume["sequence_reserved"] = state.sequence_reserved;
  volume["export"] = snapshot.nbd_export ? export_json(*snapshot.nbd_export, state) : json(nullptr);
  volume["transfer"] = nullptr;
  if (state.transfer) {
    volume["transfer"] = {{"to", state.transfer->to},
                          {"epoch", to_json(state.transfer->epoch)},
                          {"history", to_json(state.transfer->point)}};
  }
  volume["replicas"] = peers_json(snapshot);
  volume["verify"] = current ? snapshot.plugin->verify : json(nullptr);
  volume["counters"] = current ? snapshot.plugin->counters : json::object();
}

void add_replica(const VolumeSnapshot& snapshot, json& volume) {
  const VolumeState& state = snapshot.state;
  if (state.disks.empty()) {  // a witness
    volume["history"] = to_json(HistoryPoint{});
    return;
  }
  volume["history"] = to_json(snapshot.replica ? snapshot.replica->logged : state.checkpoint);
  if (snapshot.replica) {
    volume["replica"] = replica_json(*snapshot.replica, true);
    return;
  }
  ReplicaStatus closed;
  closed.consistent = state.consistent;
  closed.is_short = !state.whole;
  closed.marks.received = closed.marks.logged = state.checkpoint.sequence;
  closed.marks.durable = closed.marks.applied = state.checkpoint.sequence;
  closed.marks.logged_digest = closed.marks.applied_digest = state.checkpoint.digest;
  if (state.stage_bytes) {
    closed.marks.applied = 0;
    closed.marks.applied_digest = {};
  }
  volume["replica"] = replica_json(closed, false);
}

}  // namespace

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

json to_json(const std::vector<MemberState>& members) {
  json list = json::array();
  for (const MemberState& member : members) {
    list.push_back({{"host", member.host},
                    {"stream", member.stream},
                    {"control", member.control},
                    {"role", member.witness ? "witness" : "data"}});
  }
  return list;
}

json voters_json(const std::optional<Record>& record) {
  const VoterSet voters = record ? voters_of(*record) : VoterSet{};
  return {{"hosts", voters.hosts}, {"tie_break", voters.tie_break}};
}

json data_members_json(const std::vector<MemberState>& members) {
  std::vector<MemberState> data;
  for (const MemberState& member : members) {
    if (!member.witness) data.push_back(member);
  }
  return to_json(data);
}

json to_json(const Error& error) {
  return {{"code", errc_name(error.code)}, {"message", error.message}, {"hint", error.hint}};
}

json to_json(const std::optional<Error>& error) {
  return error ? to_json(*error) : json(nullptr);
}

void read_settings(const json& object, FieldReader& outer, VolumeSettings& settings) {
  FieldReader fields(object, "settings");
  if (const auto name = fields.optional_text("mode", 32)) {
    const auto mode = mode_from_name(*name);
    if (mode) settings.mode = *mode;
    if (!mode) fields.reject("mode must be async, semi-sync or sync");
  }
  if (const auto name = fields.optional_text("congestion", 32)) {
    const auto congestion = congestion_from_name(*name);
    if (congestion) settings.congestion = *congestion;
    if (!congestion) fields.reject("congestion must be throttle or detach");
  }
  if (const auto name = fields.optional_text("on_local_error", 32)) {
    const auto policy = on_local_error_from_name(*name);
    if (policy) settings.on_local_error = *policy;
    if (!policy) fields.reject("on_local_error must be hold or fail");
  }
  settings.autostart = fields.boolean_or("autostart", settings.autostart);
  const auto number = [&](const char* name, std::uint64_t value_max, std::uint64_t fallback) {
    return fields.optional_number(name, 0, value_max).value_or(fallback);
  };
  settings.ring_bytes = number("ring_bytes", ring_bytes_max, settings.ring_bytes);
  settings.log_bytes = number("log_bytes", log_bytes_max, settings.log_bytes);
  settings.segment_bytes = number("segment_bytes", segment_bytes_max, settings.segment_bytes);
  settings.ack_timeout_ms = static_cast<std::uint32_t>(
      number("ack_timeout_ms", ack_timeout_ms_max, settings.ack_timeout_ms));
  settings.quorum_timeout_ms = static_cast<std::uint32_t>(
      number("quorum_timeout_ms", quorum_timeout_ms_max, settings.quorum_timeout_ms));
  if (const Status status = fields.finish(); !status) outer.reject(status.error());
}

std::vector<MemberState> read_members(FieldReader& fields, const char* name) {
  std::vector<MemberState> members;
  for (const json& item : fields.list(name, members_max)) {
    FieldReader member(item, name);
    MemberState state;
    state.host = member.text("host", host_name_bytes_max);
    state.stream = member.text("stream", 300);
    state.control = member.text("control", 300);
    const std::string role = member.optional_text("role", 16).value_or("data");
    if (role != "data" && role != "witness") fields.reject("a member is data or witness");
    state.witness = role == "witness";
    members.push_back(std::move(state));
    if (const Status status = member.finish(); !status) fields.reject(status.error());
  }
  return members;
}

json to_json(const std::vector<DiskLoss>& losses) {
  json list = json::array();
  for (const DiskLoss& loss : losses) {
    list.push_back({{"disk", loss.disk},
                    {"writes", loss.writes},
                    {"bytes", loss.bytes},
                    {"seconds", loss.seconds ? json(*loss.seconds) : json(nullptr)}});
  }
  return list;
}

json to_json(const PeerStatus& peer) {
  json copy = nullptr;
  if (peer.copy) {
    copy = {{"done_bytes", peer.copy->done_bytes},
            {"total_bytes", peer.copy->total_bytes},
            {"sent_bytes", peer.copy->sent_bytes},
            {"blocks_left", peer.copy->blocks_left}};
  }
  return {{"host", peer.host},
          {"state", peer.state},
          {"in_sync", peer.in_sync},
          {"sent", peer.sent},
          {"received", peer.received},
          {"logged", peer.logged},
          {"durable", peer.durable},
          {"applied", peer.applied},
          {"digest", peer.digest},
          {"lag_bytes", peer.lag_bytes},
          {"lag_seconds", peer.lag_seconds ? json(*peer.lag_seconds) : json(nullptr)},
          {"lag_disks", to_json(peer.lag_disks)},
          {"copy", copy},
          {"error", to_json(peer.error)}};
}

std::vector<PeerStatus> read_peers(FieldReader& fields, const char* name) {
  std::vector<PeerStatus> peers;
  for (const json& item : fields.list(name, members_max)) {
    peers.push_back(read_peer(item, fields));
  }
  return peers;
}

Result<PluginStatus> plugin_status_from(const json& event) {
  FieldReader fields(event);
  PluginStatus status;
  status.state = fields.text("state", 64);
  status.history = fields.point("history");
  status.replicas = read_peers(fields, "replicas");
  status.overtaken = fields.boolean_or("overtaken", false);
  if (const json* counters = fields.optional_object("counters")) status.counters = *counters;
  if (const json* verify = fields.optional_object("verify")) status.verify = *verify;
  status.error = read_error(fields, "error");
  RD_TRY(fields.finish_allow_unknown());
  return status;
}

std::string export_uri(const std::string& socket, const std::string& disk) {
  return fmt::format("nbd+unix:///{}?socket={}", disk, socket);
}

json export_json(const ExportInfo& info, const VolumeState& state) {
  json uris = json::object();
  for (const DiskState& disk : state.disks)
    uris[disk.name] = export_uri(info.socket, disk.name);
  return {{"pid", info.pid},
          {"socket", info.socket},
          {"uri", state.disks.empty() ? "" : export_uri(info.socket, state.disks.front().name)},
          {"uris", uris}};
}

json volume_json(const VolumeSnapshot& snapshot) {
  const VolumeState& state = snapshot.state;
  const bool primary = state.primary == snapshot.host;
  json volume = {{"schema", 1},
                 {"host", snapshot.host},
                 {"name", state.name},
                 {"uuid", state.uuid},
                 {"role", primary ? "primary" : "replica"},
                 {"primary", state.primary},
                 {"epoch", to_json(state.epoch)},
                 {"settings", to_json(state.settings)},
                 {"disks", disks_json(state.disks)},
                 {"members", to_json(state.members)},
                 {"in_sync", state.in_sync},
                 {"state", snapshot.shown_state},
                 {"error", to_json(snapshot.error)},
                 {"vote", voter_json(state.vote)},
                 {"handover", handover_shown(snapshot)}};
  if (primary) {
    add_primary(snapshot, volume);
  } else {
    add_replica(snapshot, volume);
  }
  return volume;
}

}  // namespace replicad
