// Requests that change who is the primary: switchover, failover, promote.

#include <algorithm>

#include "core/base/log.h"
#include "io/file.h"
#include "replicad/control_api.h"
#include "replicad/failover.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"
#include "replicad/switchover.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr Duration promotion_timeout = std::chrono::seconds(25);

Result<PromotionRequest> parse_promotion(const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  PromotionRequest request;
  request.from = fields.text("from", host_name_bytes_max);
  request.term = fields.epoch("term");
  request.epoch = fields.epoch("epoch");
  request.history = fields.point("history");
  request.activate = fields.boolean("activate");
  if (const auto id = fields.optional_number("handover", 1, 0xffffffffU))
    request.handover = static_cast<std::uint32_t>(*id);
  RD_TRY(fields.finish());
  return request;
}

/// Becomes the primary by a majority's word. On error it has stayed a replica, unless the voters say
/// otherwise later: then the role keeper goes on.
Result<Record> take_primary(ControlContext& context,
                            const std::shared_ptr<Volume>& volume,
                            const PromotionRequest& request) {
  RD_TRY(run_on_reactor(context.reactor,
                        [volume, request] { return volume->check_promotion(request); }));
  const auto point =
      call_reactor<HistoryPoint>(context.reactor, [volume, request](const auto& done) {
        volume->seal_replica(request.epoch, request.history, promotion_timeout, done);
      });
  if (!point) return tl::unexpected(point.error());
  // Should this daemon end before the new role is on record here, the one after it goes on.
  RD_TRY(update_volume(context, volume, [request](VolumeState& state) -> Status {
    state.active = request.activate;
    return {};
  }));
  auto record = context.environment.votes->propose(
      volume,
      change_promote({context.options.host, request.term, request.epoch, request.handover}));
  if (!record) {
    run_on_reactor(context.reactor, [volume] {
      volume->set_recheck(true);
      volume->reopen_replica();
    });
    return record;
  }
  RD_TRY(call_reactor<void>(context.reactor, [volume, request, record, point](auto done) {
    volume->record_promotion(*record, *point, request.activate, std::move(done));
  }));
  return record;
}

/// The export did not start and no guest was served: the role goes back, and this host is a replica
/// as before. On error it is the primary, with its export stopped.
Status put_back(ControlContext& context,
                const std::shared_ptr<Volume>& volume,
                const PromotionRequest& request) {
  const VolumeState state = state_of(context, volume);
  const Epoch term = state.vote.record->epoch;
  const Epoch next{std::max(state.epoch.number, term.number) + 1, random_tag()};
  const auto record =
      context.environment.votes->propose(volume, change_promote({request.from, term, next}));
  if (!record) return tl::unexpected(record.error());
  RD_TRY(call_reactor<void>(context.reactor, [volume, request](auto done) {
    volume->become_replica(request.from, request.history, std::move(done));
  }));
  run_on_reactor(context.reactor, [volume] { volume->take_role(); });
  return {};
}

}  // namespace

ControlApi::Answer ControlApi::switchover(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  SwitchoverRequest request;
  request.to = fields.text("to", host_name_bytes_max);
  const auto deadline =
      fields.optional_number("deadline_ms", switchover_deadline_ms_min, switchover_deadline_ms_max)
          .value_or(switchover_deadline_ms_default);
  request.deadline = std::chrono::milliseconds(deadline);
  request.dry_run = fields.boolean_or("dry_run", false);
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "switchover");
  if (!operation) return tl::unexpected(operation.error());
  auto proof = run_switchover(context_, operation->volume(), request);
  if (!proof) {
    log(LogLevel::warn,
        "switchover_failed",
        "volume={} to={} error={}",
        name,
        log_value(request.to),
        log_value(proof.error().message));
  }
  return proof;
}

ControlApi::Answer ControlApi::promote(const std::string& name, const std::string& body) {
  const auto request = parse_promotion(body);
  if (!request) return tl::unexpected(request.error());
  const auto operation = OperationGuard::begin(context_, name, "promote");
  if (!operation) return tl::unexpected(operation.error());
  const auto& volume = operation->volume();
  const auto record = take_primary(context_, volume, *request);
  if (!record) return tl::unexpected(record.error());
  json nbd_export = nullptr;
  if (request->activate) {
    bool served = false;
    const auto started = start_export(context_, volume, &served);
    if (!started && !served) {
      if (const Status back = put_back(context_, volume, *request); !back) {
        return fail(Errc::io_error,
                    "{} is the primary of volume {}, its export did not start ({}), and it could "
                    "not be put back: {}",
                    context_.options.host,
                    name,
                    started.error().message,
                    back.error().message);
      }
      return tl::unexpected(started.error());
    }
    if (started) {
      nbd_export = run_on_reactor(context_.reactor, [volume, info = *started] {
        return export_json(info, volume->state());
      });
    }
  }
  const VolumeState state = state_of(context_, volume);
  return json{{"schema", 1},
              {"volume", name},
              {"epoch", to_json(state.vote.record->epoch)},
              {"export", nbd_export}};
}

ControlApi::Answer ControlApi::failover(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  FailoverRequest request;
  request.force = fields.boolean_or("force", false);
  request.dry_run = fields.boolean_or("dry_run", false);
  RD_TRY(fields.finish());
  const auto operation = OperationGuard::begin(context_, name, "failover");
  if (!operation) return tl::unexpected(operation.error());
  auto result = run_failover(context_, operation->volume(), request);
  if (!result) {
    log(LogLevel::warn,
        "failover_refused",
        "volume={} error={}",
        name,
        log_value(result.error().message));
  }
  return result;
}

}  // namespace replicad
