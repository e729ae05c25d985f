#include "core/control/views.h"

#include <algorithm>
#include <cmath>

#include "core/base/limits.h"
#include "core/base/names.h"
#include "core/vote/record_json.h"

namespace replicad {

namespace {

using Json = nlohmann::json;

/// Reads fields of one JSON object and remembers the first that is missing or of the wrong type, so
/// that a parser reads straight through and checks once.
class Fields {
 public:
  Fields(const Json& json, std::string what) : json_(json), what_(std::move(what)) {
    if (!json_.is_object()) complain("", "an object");
  }

  std::string string(const char* name) {
    const Json* value = find(name);
    if (value != nullptr && value->is_string()) return value->get<std::string>();
    complain(name, "a string");
    return {};
  }
  std::string string_or_empty(const char* name) {
    const Json* value = find(name);
    return value == nullptr || value->is_null() ? std::string() : string(name);
  }
  std::uint64_t count(const char* name) {
    const Json* value = find(name);
    if (value != nullptr && value->is_number_unsigned()) return value->get<std::uint64_t>();
    if (value != nullptr && value->is_number_integer() && value->get<std::int64_t>() >= 0) {
      return value->get<std::uint64_t>();
    }
    complain(name, "a whole number");
    return 0;
  }
  std::uint64_t count_or_zero(const char* name) {
    const Json* value = find(name);
    return value == nullptr || value->is_null() ? 0 : count(name);
  }
  double number(const char* name) {
    const Json* value = find(name);
    if (value != nullptr && value->is_number() && std::isfinite(value->get<double>()))
      return value->get<double>();
    complain(name, "a number");
    return 0;
  }
  std::optional<double> number_or_null(const char* name) {
    const Json* value = find(name);
    if (value == nullptr || value->is_null()) return std::nullopt;
    return number(name);
  }
  bool boolean(const char* name) {
    const Json* value = find(name);
    if (value != nullptr && value->is_boolean()) return value->get<bool>();
    complain(name, "true or false");
    return false;
  }
  bool boolean_or(const char* name, bool otherwise) {
    const Json* value = find(name);
    return value == nullptr || value->is_null() ? otherwise : boolean(name);
  }
  const Json& object(const char* name) { return typed(name, Json::value_t::object, "an object"); }
  const Json& array(const char* name) { return typed(name, Json::value_t::array, "a list"); }
  /// nullptr if the field is absent or null.
  const Json* object_or_null(const char* name) {
    const Json* value = find(name);
    return value == nullptr || value->is_null() ? nullptr : &object(name);
  }
  [[nodiscard]] bool has(const char* name) const {
    const Json* value = find(name);
    return value != nullptr && !value->is_null();
  }
  std::vector<std::string> strings(const char* name) {
    std::vector<std::string> list;
    for (const Json& item : array(name)) {
      if (!item.is_string()) {
        complain(name, "a list of strings");
        return {};
      }
      list.push_back(item.get<std::string>());
    }
    return list;
  }
  void complain(const std::string& name, const char* expected) {
    if (!problem_.empty()) return;
    problem_ = name.empty() ? fmt::format("{} is not {}", what_, expected)
                            : fmt::format("{}: field '{}' is not {}", what_, name, expected);
  }
  /// Takes over what an inner object's reader found.
  void adopt(const Fields& inner) {
    if (problem_.empty()) problem_ = inner.problem_;
  }
  [[nodiscard]] Status status() const {
    if (!problem_.empty()) return fail(Errc::protocol, "unexpected answer: {}", problem_);
    return {};
  }

 private:
  const Json* find(const char* name) const {
    if (!json_.is_object()) return nullptr;
    const auto it = json_.find(name);
    return it == json_.end() ? nullptr : &*it;
  }
  const Json& typed(const char* name, Json::value_t type, const char* expected) {
    static const Json empty_object = Json::object();
    static const Json empty_array = Json::array();
    const Json* value = find(name);
    if (value != nullptr && value->type() == type) return *value;
    complain(name, expected);
    return type == Json::value_t::object ? empty_object : empty_array;
  }

  const Json& json_;
  std::string what_;
  std::string problem_;
};

Epoch read_epoch(Fields& outer, const char* name) {
  Fields fields(outer.object(name), name);
  Epoch epoch;
  epoch.number = fields.count("number");
  const std::uint64_t tag = fields.count("tag");
  if (tag > 0xffffffffU) fields.complain("tag", "a number of 32 bits");
  epoch.tag = static_cast<std::uint32_t>(tag);
  outer.adopt(fields);
  return epoch;
}

HistoryView read_history(Fields& outer) {
  Fields fields(outer.object("history"), "history");
  HistoryView history;
  history.epoch = read_epoch(fields, "epoch");
  history.sequence = fields.count("sequence");
  history.digest = fields.string("digest");
  outer.adopt(fields);
  return history;
}

std::optional<Error> read_error(Fields& outer, const char* name) {
  const Json* json = outer.object_or_null(name);
  if (json == nullptr) return std::nullopt;
  Fields fields(*json, name);
  Error error;
  error.code = errc_from_name(fields.string("code"));
  error.message = fields.string("message");
  error.hint = fields.string_or_empty("hint");
  outer.adopt(fields);
  return error;
}

std::vector<DiskView> read_disks(Fields& outer) {
  std::vector<DiskView> disks;
  for (const Json& item : outer.array("disks")) {
    Fields fields(item, "disks");
    DiskView disk;
    disk.name = fields.string("name");
    disk.bytes = fields.count("bytes");
    if (disk.bytes > disk_bytes_max) fields.complain("bytes", "a possible size of a disk");
    disk.path = fields.string_or_empty("path");
    disk.allocated_bytes = fields.count_or_zero("allocated_bytes");
    disk.adopted = fields.boolean_or("adopted", false);
    outer.adopt(fields);
    disks.push_back(std::move(disk));
  }
  if (disks.size() > disks_max) outer.complain("disks", "a list of at most 16 disks");
  return disks;
}

std::vector<MemberView> read_members(Fields& outer) {
  std::vector<MemberView> members;
  for (const Json& item : outer.array("members")) {
    Fields fields(item, "members");
    MemberView member;
    member.host = fields.string("host");
    member.stream = fields.string_or_empty("stream");
    member.control = fields.string_or_empty("control");
    member.witness = fields.string_or_empty("role") == "witness";
    outer.adopt(fields);
    members.push_back(std::move(member));
  }
  if (members.size() > members_max) outer.complain("members", "a list of at most 16 hosts");
  return members;
}

std::vector<DiskLoss> read_losses(const Json& list, Fields& outer) {
  std::vector<DiskLoss> losses;
  for (const Json& item : list) {
    Fields fields(item, "disks");
    DiskLoss loss;
    loss.disk = fields.string("disk");
    loss.writes = fields.count("writes");
    loss.bytes = fields.count("bytes");
    loss.seconds = fields.number_or_null("seconds");
    outer.adopt(fields);
    losses.push_back(std::move(loss));
  }
  return losses;
}

ReplicaView read_replica(const Json& json, Fields& outer) {
  Fields fields(json, "replicas");
  ReplicaView replica;
  replica.host = fields.string("host");
  replica.state = fields.string("state");
  replica.in_sync = fields.boolean("in_sync");
  replica.sent = fields.count_or_zero("sent");
  replica.received = fields.count_or_zero("received");
  replica.logged = fields.count_or_zero("logged");
  replica.durable = fields.count_or_zero("durable");
  replica.applied = fields.count_or_zero("applied");
  replica.digest = fields.string_or_empty("digest");
  replica.lag_bytes = fields.count_or_zero("lag_bytes");
  replica.lag_seconds = fields.number_or_null("lag_seconds");
  if (fields.has("lag_disks")) replica.lag_disks = read_losses(fields.array("lag_disks"), fields);
  if (const Json* copy = fields.object_or_null("copy")) {
    Fields progress(*copy, "copy");
    replica.copy = CopyView{progress.count("done_bytes"), progress.count("total_bytes")};
    fields.adopt(progress);
  }
  replica.error = read_error(fields, "error");
  outer.adopt(fields);
  return replica;
}

ReplicaSelf read_replica_self(const Json& json, Fields& outer) {
  Fields fields(json, "replica");
  ReplicaSelf self;
  self.open = fields.boolean("open");
  self.connected = fields.boolean("connected");
  self.consistent = fields.boolean("consistent");
  self.is_short = fields.boolean("short");
  self.received = fields.count_or_zero("received");
  self.logged = fields.count_or_zero("logged");
  self.durable = fields.count_or_zero("durable");
  self.applied = fields.count_or_zero("applied");
  self.logged_digest = fields.string_or_empty("logged_digest");
  self.applied_digest = fields.string_or_empty("applied_digest");
  self.backlog_bytes = fields.count_or_zero("backlog_bytes");
  self.log_bytes = fields.count_or_zero("log_bytes");
  self.heard_seconds = fields.number_or_null("heard_seconds");
  outer.adopt(fields);
  return self;
}

ExportView read_export(const Json& json, Fields& outer) {
  Fields fields(json, "export");
  ExportView nbd;
  nbd.pid = fields.count_or_zero("pid");
  nbd.uri = fields.string("uri");
  nbd.socket = fields.string("socket");
  if (const Json* uris = fields.object_or_null("uris")) {
    for (const auto& [disk, uri] : uris->items()) {
      if (uri.is_string()) {
        nbd.uris[disk] = uri.get<std::string>();
      } else {
        fields.complain("uris", "a map of strings");
      }
    }
  }
  outer.adopt(fields);
  return nbd;
}

VerifySideView read_verify_side(const Json& json, Fields& outer) {
  Fields fields(json, "replicas");
  VerifySideView side;
  side.host = fields.string("host");
  side.state = fields.string("state");
  side.done_bytes = fields.count("done_bytes");
  side.total_bytes = fields.count("total_bytes");
  side.different_blocks = fields.count("different_blocks");
  side.repaired_blocks = fields.count("repaired_blocks");
  side.not_compared_blocks = fields.count("not_compared_blocks");
  for (const Json& item : fields.array("ranges")) {
    Fields range(item, "ranges");
    side.ranges.push_back({range.string("disk"), range.count("offset"), range.count("length")});
    fields.adopt(range);
  }
  side.error = read_error(fields, "error");
  outer.adopt(fields);
  return side;
}

VerifyView read_verify(const Json& json, Fields& outer) {
  Fields fields(json, "verify");
  VerifyView verify;
  verify.id = fields.count("id");
  verify.state = fields.string("state");
  verify.repair = fields.boolean("repair");
  verify.ended_seconds_ago = fields.number_or_null("ended_seconds_ago");
  verify.alone_blocks = fields.count("alone_blocks");
  verify.kept_blocks = fields.count("kept_blocks");
  verify.error = read_error(fields, "error");
  for (const Json& item : fields.array("replicas"))
    verify.replicas.push_back(read_verify_side(item, fields));
  verify.raw = json;
  outer.adopt(fields);
  return verify;
}

void read_primary_part(Fields& fields, VolumeView& volume) {
  volume.clean = fields.boolean_or("clean", true);
  if (const Json* nbd = fields.object_or_null("export")) volume.nbd = read_export(*nbd, fields);
  if (const Json* transfer = fields.object_or_null("transfer")) {
    Fields inner(*transfer, "transfer");
    volume.transfer = TransferView{inner.string("to"), read_epoch(inner, "epoch")};
    fields.adopt(inner);
  }
  if (const Json* verify = fields.object_or_null("verify"))
    volume.verify = read_verify(*verify, fields);
  for (const Json& item : fields.array("replicas"))
    volume.replicas.push_back(read_replica(item, fields));
  if (volume.replicas.size() > members_max)
    fields.complain("replicas", "a list of at most 16 hosts");
}

bool is_uuid(const std::string& text) {
  return !text.empty() && text.size() <= 64 &&
         text.find_first_not_of("0123456789abcdefABCDEF-") == std::string::npos;
}

}  // namespace

std::uint64_t VolumeView::bytes() const {
  std::uint64_t sum = 0;
  for (const DiskView& disk : disks)
    sum += disk.bytes;
  return sum;
}

bool VolumeView::is_in_sync(const std::string& host_name) const {
  return std::find(in_sync.begin(), in_sync.end(), host_name) != in_sync.end();
}

const MemberView* VolumeView::member(const std::string& host_name) const {
  const auto it = std::find_if(
      members.begin(), members.end(), [&](const MemberView& m) { return m.host == host_name; });
  return it == members.end() ? nullptr : &*it;
}

const ReplicaView* VolumeView::replica_on(const std::string& host_name) const {
  const auto it = std::find_if(
      replicas.begin(), replicas.end(), [&](const ReplicaView& r) { return r.host == host_name; });
  return it == replicas.end() ? nullptr : &*it;
}

Result<HostFacts> parse_host(const nlohmann::json& json) {
  Fields fields(json, "host");
  HostFacts facts;
  facts.host = fields.string("host");
  facts.version = fields.string("version");
  facts.stream = fields.string_or_empty("stream");
  facts.control = fields.string_or_empty("control");
  facts.image_dir = fields.string_or_empty("image_dir");
  facts.draining = fields.boolean_or("draining", false);
  Fields metrics(fields.object("metrics"), "metrics");
  facts.cpus = metrics.number("cpus");
  facts.load_1m = metrics.number("load_1m");
  facts.cpu_pressure_percent = metrics.number_or_null("cpu_pressure_percent");
  facts.io_pressure_percent = metrics.number_or_null("io_pressure_percent");
  facts.memory_bytes = metrics.count("memory_bytes");
  facts.memory_free_bytes = metrics.count("memory_free_bytes");
  facts.image_dir_bytes = metrics.count("image_dir_bytes");
  facts.image_dir_free_bytes = metrics.count("image_dir_free_bytes");
  facts.uptime_seconds = metrics.number("uptime_seconds");
  facts.unclean_restarts = metrics.number("unclean_restarts");
  facts.link_losses = metrics.number("link_losses");
  facts.disk_errors = metrics.number("disk_errors");
  fields.adopt(metrics);
  if (const Json* volumes = fields.object_or_null("volumes")) {
    Fields counts(*volumes, "volumes");
    facts.volumes_primary = counts.count_or_zero("primary");
    facts.volumes_replica = counts.count_or_zero("replica");
    fields.adopt(counts);
  }
  RD_TRY(fields.status());
  facts.raw = json;
  return facts;
}

Result<VolumeView> parse_volume(const nlohmann::json& json) {
  Fields fields(json, "volume");
  VolumeView volume;
  volume.host = fields.string("host");
  volume.name = fields.string("name");
  volume.uuid = fields.string("uuid");
  if (!is_uuid(volume.uuid)) fields.complain("uuid", "a uuid");
  const std::string role = fields.string("role");
  volume.role = role == "primary" ? Role::primary : Role::replica;
  if (role != "primary" && role != "replica") fields.complain("role", "'primary' or 'replica'");
  volume.primary = fields.string("primary");
  volume.epoch = read_epoch(fields, "epoch");
  volume.settings = fields.object("settings");
  Fields settings(volume.settings, "settings");
  volume.mode = settings.string("mode");
  fields.adopt(settings);
  volume.disks = read_disks(fields);
  volume.members = read_members(fields);
  volume.in_sync = fields.strings("in_sync");
  if (const Json* vote = fields.object_or_null("vote")) {
    auto state = voter_from_json(*vote);
    if (!state) return tl::unexpected(state.error());
    volume.vote = std::move(*state);
  }
  volume.state = fields.string("state");
  volume.error = read_error(fields, "error");
  volume.history = read_history(fields);
  if (const Json* lost = fields.object_or_null("lost_writes")) {
    Fields totals(*lost, "lost_writes");
    volume.lost_files = totals.count_or_zero("files");
    volume.lost_bytes = totals.count_or_zero("bytes");
    fields.adopt(totals);
  }
  if (volume.role == Role::primary) {
    read_primary_part(fields, volume);
  } else if (const Json* self = fields.object_or_null("replica")) {
    volume.replica = read_replica_self(*self, fields);
  }
  RD_TRY(fields.status());
  if (volume.uuid == unknown_uuid) {
    return tl::unexpected(volume.error.value_or(
        Error{Errc::corrupt, 0, fmt::format("what {} keeps cannot be read", volume.host), {}}));
  }
  return volume;
}

Result<std::optional<std::vector<DiskLoss>>> parse_log_count(const nlohmann::json& json) {
  Fields fields(json, "log");
  const bool complete = fields.boolean("complete");
  std::vector<DiskLoss> losses = read_losses(fields.array("disks"), fields);
  RD_TRY(fields.status());
  if (!complete) return std::nullopt;
  return losses;
}

std::optional<Error> parse_error_body(const nlohmann::json& json) {
  Fields fields(json, "answer");
  std::optional<Error> error = read_error(fields, "error");
  if (!fields.status()) return std::nullopt;
  return error;
}

}  // namespace replicad
