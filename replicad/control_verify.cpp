// POST of /v1/volumes/NAME/verify (docs/control-api.md): the export compares images, and says in its status how far it
// is and what it has found.

#include "replicad/control_api.h"
#include "replicad/reactor_call.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr auto verify_timeout = std::chrono::seconds(15);

}  // namespace

ControlApi::Answer ControlApi::verify(const std::string& name, const std::string& body) {
  const auto document = parse_json_object(body, Errc::invalid_argument);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  const auto host = fields.optional_text("host", host_name_bytes_max);
  const bool repair = fields.boolean_or("repair", false);
  const bool force = fields.boolean_or("force", false);
  const bool stop = fields.boolean_or("stop", false);
  RD_TRY(fields.finish());
  const auto volume = find_volume(context_, name);
  if (!volume) return tl::unexpected(volume.error());
  RD_TRY(require_primary(context_, *volume));
  if (!run_on_reactor(context_.reactor, [volume = *volume] { return volume->is_serving(); })) {
    return with_hint(
        fail(Errc::refused, "volume {} is not served: its export is what compares", name),
        fmt::format("`replicactl activate {}` first", name));
  }
  json request = {{"repair", repair}, {"force", force}};
  if (host) request["host"] = *host;
  if (stop) request = {{"stop", true}};
  auto answer = ask_plugin(context_, *volume, "verify", request, verify_timeout);
  if (!answer) return tl::unexpected(answer.error());
  json result = {{"schema", 1}, {"id", nullptr}};
  if (const auto id = answer->find("id"); id != answer->end()) result["id"] = *id;
  return result;
}

}  // namespace replicad
