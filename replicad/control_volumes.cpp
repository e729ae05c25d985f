// Requests about the host, and about volumes as a whole: list, show, create, delete, set, members,
// resync.

#include <algorithm>

#include <fcntl.h>

#include "core/base/log.h"
#include "io/file.h"
#include "io/image_identity.h"
#include "replicad/control_api.h"
#include "replicad/host_metrics.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"
#include "replicad/trail_file.h"
#include "replicad/volume_files.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto plugin_timeout = std::chrono::seconds(15);

json metrics_json(const HostMetrics& metrics, const Stability& stability) {
  const auto or_null = [](const std::optional<double>& value) {
    return value ? json(*value) : json(nullptr);
  };
  return {{"cpus", metrics.cpus},
          {"load_1m", metrics.load_1m},
          {"cpu_pressure_percent", or_null(metrics.cpu_pressure_percent)},
          {"io_pressure_percent", or_null(metrics.io_pressure_percent)},
          {"memory_bytes", metrics.memory_bytes},
          {"memory_free_bytes", metrics.memory_free_bytes},
          {"image_dir_bytes", metrics.image_dir_bytes},
          {"image_dir_free_bytes", metrics.image_dir_free_bytes},
          {"uptime_seconds", metrics.uptime_seconds},
          {"unclean_restarts", stability.unclean_restarts},
          {"link_losses", stability.link_losses},
          {"disk_errors", stability.disk_errors}};
}

bool has_member(const std::vector<MemberState>& members, const std::string& host) {
  return std::any_of(
      members.begin(), members.end(), [&](const auto& member) { return member.host == host; });
}

/// Addresses that this host may have to connect to.
Status check_member_addresses(const Options& options, const std::vector<MemberState>& members) {
  for (const MemberState& member : members) {
    if (member.stream.empty() && !member.witness) {
      return fail(Errc::invalid_argument, "member {} has no stream address", member.host);
    }
    for (const std::string& address : {member.stream, member.control}) {
      if (address.empty() || address.starts_with("unix:")) continue;
      RD_TRY(check_plaintext_address(options, "member " + member.host, address));
    }
  }
  return {};
}

struct CreateRequest {
  VolumeState state;
  bool adopts = false;
  bool overcommit = false;  ///< images are sparse: they may be larger than the free space
};

Result<CreateRequest> parse_create(const json& body, const Options& options) {
  CreateRequest request;
  VolumeState& state = request.state;
  FieldReader fields(body);
  state.name = fields.text("name", volume_name_bytes_max);
  state.uuid = fields.text("uuid", 36);
  state.primary = fields.text("primary", host_name_bytes_max);
  for (const json& item : fields.list("disks", disks_max)) {
    FieldReader reader(item, "disks");
    DiskState disk;
    disk.name = reader.text("name", disk_name_bytes_max);
    disk.bytes = reader.number("bytes", 0, disk_bytes_max);
    const auto adopt = reader.optional_text("adopt", 4095);
    if (const Status status = reader.finish(); !status) fields.reject(status.error());
    disk.adopted = adopt.has_value();
    disk.path = adopt.value_or(image_path(options.image_dir, state.name, disk.name));
    request.adopts |= disk.adopted;
    state.disks.push_back(std::move(disk));
  }
  state.members = read_members(fields, "members");
  if (const json* settings = fields.optional_object("settings")) {
    read_settings(*settings, fields, state.settings);
  }
  state.consistent = fields.boolean_or("consistent", true);
  state.in_sync = fields.texts("in_sync", members_max, host_name_bytes_max);
  const bool founder = fields.boolean_or("founder", true);
  request.overcommit = fields.boolean_or("overcommit", false);
  RD_TRY(fields.finish());
  // Before any of its names becomes part of a path.
  if (!is_valid_name(state.name)) {
    return with_hint(fail(Errc::invalid_argument, "\"{}\" is not a valid volume name", state.name),
                     "use a-z, 0-9, '.', '_' and '-', at most 64 characters");
  }
  for (const DiskState& disk : state.disks) {
    if (!is_valid_name(disk.name)) {
      return fail(Errc::invalid_argument, "\"{}\" is not a valid disk name", disk.name);
    }
  }
  if (founder)
    state.vote = founding_state(first_record(state.primary, state.in_sync, state.members));
  return request;
}

Status check_create(const CreateRequest& request, const std::string& host) {
  const VolumeState& state = request.state;
  if (!has_member(state.members, host)) {
    return fail(
        Errc::invalid_argument, "{} is not among the members of volume {}", host, state.name);
  }
  if (!has_member(state.members, state.primary)) {
    return fail(Errc::invalid_argument, "the primary {} is not among the members", state.primary);
  }
  for (const std::string& member : state.in_sync) {
    if (!has_member(state.members, member)) {
      return fail(Errc::invalid_argument, "{} is in sync and not among the members", member);
    }
  }
  if (state.vote.record) {
    if (Status valid = check_record(*state.vote.record); !valid) return valid;
  } else if (state.primary == host) {
    return fail(Errc::invalid_argument, "the primary is a founder");
  }
  const bool witness = find_member(state.members, host)->witness;
  if (witness != state.disks.empty()) {
    return fail(Errc::invalid_argument, "disks: a witness has none, a data member at least one");
  }
  if (state.primary == host && !state.consistent) {
    return fail(Errc::invalid_argument, "the primary's images cannot be inconsistent");
  }
  if (state.primary != host && request.adopts) {
    return fail(Errc::invalid_argument, "only the primary's disks can be adopted");
  }
  return {};
}

/// Paths of all images on this host.
std::vector<std::string> used_images(ControlContext& context) {
  return run_on_reactor(context.reactor, [&context] {
    std::vector<std::string> used;
    for (const auto& volume : context.registry.all()) {
      for (const DiskState& disk : volume->state().disks)
        used.push_back(disk.path);
    }
    return used;
  });
}

/// Makes the files, the durable state and the open volume; undone if any of it fails.
Result<std::shared_ptr<Volume>> make_volume(ControlContext& context, const VolumeState& state) {
  VolumeFiles files(context.environment.volume_dir(state.name), context.options.image_dir);
  RD_TRY(files.make(state));
  VolumeState first = state;
  for (DiskState& disk : first.disks) {
    const Fd image(::open(disk.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!image.valid()) return fail_errno(errno, "open image {}", disk.path);
    auto identity = image_identity(image.get());
    if (!identity) return tl::unexpected(identity.error());
    disk.mark.identity = std::move(*identity);
  }
  auto volume = run_on_reactor(context.reactor, [&context, &state] {
    return Volume::create(context.environment, state.name);
  });
  Status status = update_volume(context, volume, [first](VolumeState& empty) -> Status {
    empty = first;
    return {};
  });
  if (status) {
    status = run_on_reactor(context.reactor, [volume]() -> Status {
      volume->take_role();
      if (!volume->has_images() && volume->open_error())
        return tl::unexpected(*volume->open_error());
      return {};
    });
  }
  if (!status) {
    static_cast<void>(call_reactor<void>(context.reactor, [volume](auto done) {
      volume->release(true, [done = std::move(done)] { done({}); });
    }));
    return tl::unexpected(status.error());
  }
  run_on_reactor(context.reactor, [&context, volume] { context.registry.add(volume); });
  files.keep();
  return volume;
}

}  // namespace

ControlApi::Answer ControlApi::host() {
  const HostMetrics metrics = read_host_metrics(context_.options.image_dir);
  std::uint64_t primaries = 0;
  std::uint64_t replicas = 0;
  run_on_reactor(context_.reactor, [&] {
    for (const auto& volume : context_.registry.all())
      ++(volume->is_primary() ? primaries : replicas);
  });
  return json{{"schema", 1},
              {"host", context_.options.host},
              {"version", REPLICAD_VERSION},
              {"stream", context_.stream_address},
              {"control", context_.control_address},
              {"image_dir", context_.options.image_dir},
              {"metrics", metrics_json(metrics, context_.stability())},
              {"volumes", {{"primary", primaries}, {"replica", replicas}}}};
}

ControlApi::Answer ControlApi::volumes() {
  const auto all = run_on_reactor(context_.reactor, [this] { return context_.registry.all(); });
  json list = json::array();
  for (const auto& volume : all)
    list.push_back(describe_volume(context_, volume));
  return json{{"schema", 1}, {"volumes", std::move(list)}};
}

ControlApi::Answer ControlApi::volume(const std::string& name) {
  const auto found = find_volume(context_, name);
  if (!found) return tl::unexpected(found.error());
  return describe_volume(context_, *found);
}

ControlApi::Answer ControlApi::create(const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  auto request = parse_create(*document, context_.options);
  if (!request) return tl::unexpected(request.error());
  RD_TRY(check_create(*request, context_.options.host));
  RD_TRY(check_member_addresses(context_.options, request->state.members));
  const std::lock_guard lock(context_.create_mutex);
  std::vector<std::string> used = used_images(context_);
  for (DiskState& disk : request->state.disks) {
    if (disk.adopted) RD_TRY(check_adopted(disk, used));
    used.push_back(disk.path);
  }
  RD_TRY(check_volume_state(request->state));
  if (!request->overcommit) RD_TRY(check_space(request->state, context_.options.image_dir));
  const std::string name = request->state.name;
  RD_TRY(
      run_on_reactor(context_.reactor, [this, name] { return context_.registry.reserve(name); }));
  auto volume = make_volume(context_, request->state);
  run_on_reactor(context_.reactor, [this, name] { context_.registry.unreserve(name); });
  if (!volume) return tl::unexpected(volume.error());
  log(LogLevel::info, "created", "volume={} primary={}", name, request->state.primary);
  return describe_volume(context_, *volume);
}

ControlApi::Answer ControlApi::remove(const std::string& name, const std::string& uuid) {
  const auto operation = OperationGuard::begin(context_, name, "delete");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_no_handover(context_, volume));
  end_standby(context_, volume);
  RD_TRY(call_reactor<void>(context_.reactor, [volume, uuid](auto done) {
    if (volume->state().uuid != uuid) {
      return done(fail(Errc::refused,
                       "volume {} has the uuid {}, not {}",
                       volume->name(),
                       volume->state().uuid,
                       uuid.empty() ? "(none given)" : uuid));
    }
    if (volume->has_plugin() || volume->state().transfer) {
      return done(with_hint(fail(Errc::busy, "volume {} is being served or moved", volume->name()),
                            "stop the export with `replicactl deactivate` first"));
    }
    volume->release(true, [done] { done({}); });
  }));
  const VolumeState state = run_on_reactor(context_.reactor, [volume] { return volume->state(); });
  RD_TRY(remove_volume_files(
      state, context_.environment.volume_dir(name), context_.options.image_dir));
  run_on_reactor(context_.reactor, [this, name] { context_.registry.remove(name); });
  log(LogLevel::info, "deleted", "volume={}", name);
  return json{{"schema", 1}, {"name", name}};
}

ControlApi::Answer ControlApi::set(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  const auto operation = OperationGuard::begin(context_, name, "set");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  VolumeSettings settings =
      run_on_reactor(context_.reactor, [volume] { return volume->state().settings; });
  FieldReader fields(*document);
  read_settings(fields.object("settings"), fields, settings);
  RD_TRY(fields.finish());
  RD_TRY(update_volume(context_, volume, [settings](VolumeState& state) -> Status {
    state.settings = settings;
    return {};
  }));
  if (run_on_reactor(context_.reactor, [volume] { return volume->is_serving(); })) {
    const VolumeSettings in_force =
        run_on_reactor(context_.reactor, [volume] { return volume->settings_in_force(); });
    const auto told =
        ask_plugin(context_, volume, "set", {{"settings", to_json(in_force)}}, plugin_timeout);
    if (!told) return tl::unexpected(told.error());
  }
  return json{{"schema", 1}, {"settings", to_json(settings)}};
}

namespace {

/// From the members of `state` to `members`, one at a time.
std::vector<RecordChange> member_changes(const VolumeState& state,
                                         const std::vector<MemberState>& members) {
  std::vector<RecordChange> changes;
  changes.reserve(members.size() + state.members.size());
  for (const MemberState& member : members)
    changes.push_back(change_add_member(state.primary, member));
  for (const MemberState& member : state.members) {
    if (!has_member(members, member.host))
      changes.push_back(change_remove_member(state.primary, member.host));
  }
  return changes;
}

}  // namespace

ControlApi::Answer ControlApi::members(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const std::vector<MemberState> members = read_members(fields, "members");
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "members");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_primary(context_, volume));
  RD_TRY(check_member_addresses(context_.options, members));
  if (!has_member(members, context_.options.host)) {
    return fail(Errc::refused,
                "the new list lacks {}, which cannot be left out here",
                context_.options.host);
  }
  for (const RecordChange& change : member_changes(state_of(context_, volume), members)) {
    const auto record = context_.environment.votes->propose(volume, change);
    if (!record) return tl::unexpected(record.error());
  }
  if (run_on_reactor(context_.reactor, [volume] { return volume->is_serving(); })) {
    const json now = {{"members", data_members_json(members)},
                      {"voters", voters_json(state_of(context_, volume).vote.record)}};
    const auto told = ask_plugin(context_, volume, "members", now, plugin_timeout);
    if (!told) return tl::unexpected(told.error());
  }
  return describe_volume(context_, volume);
}

ControlApi::Answer ControlApi::resync(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const std::string host = fields.text("host", host_name_bytes_max);
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "resync");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  RD_TRY(require_primary(context_, volume));
  const bool known = run_on_reactor(context_.reactor, [this, volume, host] {
    return host != context_.options.host && has_member(volume->state().members, host);
  });
  if (!known) return fail(Errc::not_found, "{} is no replica of volume {}", host, name);
  const auto started = ask_plugin(context_, volume, "copy", {{"host", host}}, plugin_timeout);
  if (!started) return tl::unexpected(started.error());
  return json{{"schema", 1}, {"host", host}};
}

namespace {

/// This host's state file is an older copy. What it may have promised is behind a record that the others choose without
/// it; its images hold nobody knows what.
Result<json> readmit_put_back(ControlContext& context,
                              const std::shared_ptr<Volume>& volume,
                              bool force) {
  const VolumeState state = state_of(context, volume);
  const bool is_primary = state.primary == context.options.host && !state.disks.empty();
  if (run_on_reactor(context.reactor, [volume] { return volume->has_plugin(); })) {
    return with_hint(fail(Errc::refused, "volume {} is served here", state.name),
                     "move it to another member (`replicactl switchover`) first");
  }
  if (is_primary && !force) {
    return with_hint(fail(Errc::refused,
                          "{} is the primary of volume {}: if its images count as they are, what "
                          "they lack is lost on every member",
                          context.options.host,
                          state.name),
                     "let another member take over (`replicactl failover`); --force takes them");
  }
  const auto chosen = context.environment.votes->propose(volume, change_version());
  if (!chosen && !(force && chosen.error().code == Errc::unreachable))
    return tl::unexpected(chosen.error());
  if (is_primary) {
    RD_TRY(forget_activity(context.environment.volume_dir(state.name)));
    RD_TRY(forget_trail(context.environment.volume_dir(state.name)));
  }
  const auto record = chosen ? std::optional<Record>(*chosen) : std::nullopt;
  RD_TRY(call_reactor<void>(context.reactor, [volume, record](auto done) {
    volume->end_put_back(record, std::move(done));
  }));
  return json{{"schema", 1}, {"accepted", true}};
}

}  // namespace

ControlApi::Answer ControlApi::readmit(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const bool force = fields.boolean_or("force", false);
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "readmit");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  if (run_on_reactor(context_.reactor, [volume] { return volume->is_put_back(); }))
    return readmit_put_back(context_, volume, force);
  struct Look {
    bool had_others;
    bool has_others;
    bool is_primary;
  };
  const auto look = run_on_reactor(context_.reactor, [volume]() -> Look {
    const bool before = volume->has_other_images();
    if (before) volume->look_again();
    return {before, volume->has_other_images(), volume->is_primary()};
  });
  const std::string& host = context_.options.host;
  if (!look.had_others) {
    return fail(Errc::refused, "the images of volume {} on {} are not in doubt", name, host);
  }
  if (!look.has_others) return json{{"schema", 1}, {"accepted", false}};
  if (look.is_primary && !force) {
    return with_hint(
        fail(Errc::refused,
             "{} is the primary of volume {}: if its image counts as it is, what it lacks is lost "
             "on "
             "every member",
             host,
             name),
        "let another member take over (`replicactl failover`); --force takes this image");
  }
  if (look.is_primary) {
    RD_TRY(forget_activity(context_.environment.volume_dir(name)));
    RD_TRY(forget_trail(context_.environment.volume_dir(name)));
  }
  RD_TRY(call_reactor<void>(context_.reactor, [volume, force](auto done) {
    volume->accept_images(force, std::move(done));
  }));
  return json{{"schema", 1}, {"accepted", true}};
}

}  // namespace replicad
