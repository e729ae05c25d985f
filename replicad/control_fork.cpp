// Two histories of one volume (docs/architecture.md, "Forks"): hearing of another one, and giving the own
// one up for it.

#include "core/base/log.h"
#include "core/vote/fork.h"
#include "core/vote/record_json.h"
#include "io/file.h"
#include "replicad/control_api.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"

namespace replicad {

using nlohmann::json;

namespace {

struct ForkMessage {
  std::shared_ptr<Volume> volume;
  VolumeState state;
  Record record;  ///< of the other history
};

/// The volume must be this one, with a record of its own.
Result<ForkMessage> read_message(ControlContext& context,
                                 const std::string& name,
                                 const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const std::string uuid = fields.text("uuid", 36);
  const json& record_field = fields.object("record");
  RD_TRY(fields.finish());
  auto record = record_from_json(record_field);
  if (!record) return tl::unexpected(record.error());
  auto volume = find_volume(context, name);
  if (!volume) return tl::unexpected(volume.error());
  const bool broken = run_on_reactor(context.reactor, [&] { return (*volume)->is_broken(); });
  ForkMessage message{*volume, state_of(context, *volume), std::move(*record)};
  if (broken || message.state.uuid != uuid) {
    return fail(Errc::refused,
                "{} has another volume {}, with uuid {}",
                context.options.host,
                name,
                message.state.uuid);
  }
  return message;
}

bool is_same_history(const ForkMessage& message) {
  const auto& own = message.state.vote.record;
  return own && own->fork == message.record.fork;
}

/// What this host knew of the history that it gives up stays beside the state file.
Status keep_state_aside(ControlContext& context, const VolumeState& state) {
  const std::uint32_t fork = state.vote.record ? state.vote.record->fork : 0;
  const std::string path =
      fmt::format("{}/given-up-{:08x}.state", context.environment.volume_dir(state.name), fork);
  return write_file_durably(path, encode_volume_state(state));
}

}  // namespace

ControlApi::Answer ControlApi::rival(const std::string& name, const std::string& body) {
  const auto message = read_message(context_, name, body);
  if (!message) return tl::unexpected(message.error());
  const bool known = message->state.rival && message->state.rival->fork == message->record.fork;
  if (!is_same_history(*message) && message->state.vote.record && !known)
    RD_TRY(stop_for_rival(context_, message->volume, message->record));
  return json{{"schema", 1}};
}

ControlApi::Answer ControlApi::resolve(const std::string& name, const std::string& body) {
  const auto message = read_message(context_, name, body);
  if (!message) return tl::unexpected(message.error());
  const auto operation = OperationGuard::begin(context_, name, "resolve");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  if (is_same_history(*message)) {
    RD_TRY(update_volume(context_, volume, [](VolumeState& state) -> Status {
      state.rival.reset();
      return {};
    }));
    return describe_volume(context_, volume);
  }
  if (message->record.primary == context_.options.host) {
    return fail(Errc::refused,
                "{} has no other history than {}",
                context_.options.host,
                describe_history(*message->state.vote.record));
  }
  if (!end_export_process(context_, volume, std::chrono::milliseconds(0)))
    return fail(Errc::timeout, "the export of volume {} does not end", name);
  RD_TRY(keep_state_aside(context_, state_of(context_, volume)));
  RD_TRY(call_reactor<void>(context_.reactor, [volume, &message](auto done) {
    volume->join_history(message->record, std::move(done));
  }));
  return describe_volume(context_, volume);
}

}  // namespace replicad
