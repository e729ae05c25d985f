// Requests that change who is the primary: switchover here, promote and fence between hosts.

#include "core/base/log.h"
#include "replicad/control_api.h"
#include "replicad/reactor_call.h"
#include "replicad/switchover.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr Duration promotion_timeout = std::chrono::seconds(25);
constexpr std::uint64_t deadline_ms_min = 100;
constexpr std::uint64_t deadline_ms_max = 3'600'000;

Result<PromotionRequest> parse_promotion(const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  PromotionRequest request;
  request.from = fields.text("from", host_name_bytes_max);
  request.epoch = fields.epoch("epoch");
  request.history = fields.point("history");
  request.in_sync = fields.texts("in_sync", members_max, host_name_bytes_max);
  request.activate = fields.boolean("activate");
  RD_TRY(fields.finish());
  return request;
}

/// The export did not start and no guest was served: a replica again, as if nothing had been asked.
/// On error it is the primary, with its export stopped.
Status put_back(ControlContext& context,
                const std::shared_ptr<Volume>& volume,
                const PromotionRequest& request) {
  const Epoch epoch = run_on_reactor(context.reactor, [volume] { return volume->state().epoch; });
  RD_TRY(call_reactor<void>(context.reactor, [volume, request, epoch](auto done) {
    volume->become_replica(request.from, epoch, request.history, std::move(done));
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
  const auto deadline = fields.optional_number("deadline_ms", deadline_ms_min, deadline_ms_max)
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
  RD_TRY(call_reactor<void>(context_.reactor, [volume, request](auto done) {
    volume->promote(*request, promotion_timeout, std::move(done));
  }));
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
  const Epoch epoch = run_on_reactor(context_.reactor, [volume] { return volume->state().epoch; });
  return json{{"schema", 1}, {"volume", name}, {"epoch", to_json(epoch)}, {"export", nbd_export}};
}

ControlApi::Answer ControlApi::fence(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const Epoch epoch = fields.epoch("epoch");
  RD_TRY(fields.finish());
  const auto volume = find_volume(context_, name);
  if (!volume) return tl::unexpected(volume.error());
  RD_TRY(call_reactor<void>(
      context_.reactor, [volume, epoch](auto done) { (*volume)->fence(epoch, std::move(done)); }));
  return json{{"schema", 1}, {"volume", name}, {"epoch", to_json(epoch)}};
}

}  // namespace replicad
