// What a voter is asked by proposers on other hosts (docs/control-api.md, "Voting").

#include "core/vote/record_json.h"
#include "replicad/control_api.h"
#include "replicad/reactor_call.h"

namespace replicad {

using nlohmann::json;

namespace {

/// The volume that a vote is for: name and uuid must fit.
Result<std::shared_ptr<Volume>> find_voting(ControlContext& context,
                                            const std::string& name,
                                            const std::string& uuid) {
  auto volume = find_volume(context, name);
  if (!volume) return volume;
  const std::string own =
      run_on_reactor(context.reactor, [found = *volume] { return found->state().uuid; });
  if (own == uuid) return volume;
  return fail(
      Errc::refused, "{} has another volume {}, with uuid {}", context.options.host, name, own);
}

struct RecordMessage {
  std::string uuid;
  Ballot ballot;
  Record record;
  StateStamps stamps;
};

Result<RecordMessage> parse_record_message(const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  RecordMessage message;
  message.uuid = fields.text("uuid", 36);
  const json& ballot_field = fields.object("ballot");
  const json& record_field = fields.object("record");
  message.stamps = fields.stamps("stamps");
  RD_TRY(fields.finish());
  auto ballot = ballot_from_json(ballot_field);
  if (!ballot) return tl::unexpected(ballot.error());
  auto record = record_from_json(record_field);
  if (!record) return tl::unexpected(record.error());
  message.ballot = std::move(*ballot);
  message.record = std::move(*record);
  return message;
}

}  // namespace

ControlApi::Answer ControlApi::vote(const std::string& name) {
  const auto volume = find_volume(context_, name);
  if (!volume) return tl::unexpected(volume.error());
  return run_on_reactor(context_.reactor, [found = *volume]() -> Answer {
    if (found->is_broken()) return tl::unexpected(*found->snapshot().error);
    const VolumeState& state = found->state();
    return json{{"schema", 1}, {"uuid", state.uuid}, {"fence", to_json(state.epoch)}};
  });
}

ControlApi::Answer ControlApi::vote_prepare(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const std::string uuid = fields.text("uuid", 36);
  PrepareRequest request;
  request.fork = static_cast<std::uint32_t>(fields.number("fork", 0, 0xffffffffU));
  const json& ballot_field = fields.object("ballot");
  request.stamps = fields.stamps("stamps");
  RD_TRY(fields.finish());
  auto ballot = ballot_from_json(ballot_field);
  if (!ballot) return tl::unexpected(ballot.error());
  request.ballot = std::move(*ballot);
  const auto volume = find_voting(context_, name, uuid);
  if (!volume) return tl::unexpected(volume.error());
  const auto reply = call_reactor<PrepareReply>(
      context_.reactor, [&](auto done) { (*volume)->vote_prepare(request, std::move(done)); });
  if (!reply) return tl::unexpected(reply.error());
  return json{{"schema", 1},
              {"granted", reply->granted},
              {"state", voter_json(reply->state)},
              {"fence", to_json(reply->fence)},
              {"stamps", stamps_json(reply->stamps)}};
}

ControlApi::Answer ControlApi::vote_accept(const std::string& name, const std::string& body) {
  const auto message = parse_record_message(body);
  if (!message) return tl::unexpected(message.error());
  const auto volume = find_voting(context_, name, message->uuid);
  if (!volume) return tl::unexpected(volume.error());
  const auto reply = call_reactor<AcceptReply>(context_.reactor, [&](auto done) {
    (*volume)->vote_accept({message->ballot, message->record, message->stamps}, std::move(done));
  });
  if (!reply) return tl::unexpected(reply.error());
  return json{{"schema", 1},
              {"granted", reply->granted},
              {"promised", ballot_json(reply->promised)},
              {"stamps", stamps_json(reply->stamps)}};
}

ControlApi::Answer ControlApi::vote_chosen(const std::string& name, const std::string& body) {
  const auto message = parse_record_message(body);
  if (!message) return tl::unexpected(message.error());
  const auto volume = find_voting(context_, name, message->uuid);
  if (!volume) return tl::unexpected(volume.error());
  RD_TRY(call_reactor<void>(context_.reactor, [&](auto done) {
    (*volume)->vote_chosen({message->ballot, message->record, message->stamps}, std::move(done));
  }));
  return json{{"schema", 1}};
}

}  // namespace replicad
