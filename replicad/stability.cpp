#include "replicad/stability.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "replicad/json_fields.h"

namespace replicad {

namespace {

constexpr std::uint64_t seconds_max = std::uint64_t{1} << 40;

}  // namespace

Stability fade(const Stability& stability, std::int64_t now_seconds) {
  const std::int64_t passed = std::max<std::int64_t>(0, now_seconds - stability.updated_seconds);
  const double factor =
      std::exp2(-static_cast<double>(passed) / static_cast<double>(stability_half_life_seconds));
  Stability faded = stability;
  faded.unclean_restarts *= factor;
  faded.link_losses *= factor;
  faded.disk_errors *= factor;
  faded.updated_seconds = now_seconds;
  return faded;
}

std::string encode_stability(const Stability& stability) {
  const nlohmann::json document = {
      {"schema", 1},
      {"unclean_restarts", stability.unclean_restarts},
      {"link_losses", stability.link_losses},
      {"disk_errors", stability.disk_errors},
      {"updated_seconds", std::max<std::int64_t>(0, stability.updated_seconds)}};
  return document.dump(2) + "\n";
}

Result<Stability> decode_stability(std::string_view content) {
  const auto document = parse_json_object(content, Errc::corrupt);
  if (!document) return tl::unexpected(document.error());
  FieldReader fields(*document);
  Stability stability;
  stability.unclean_restarts = fields.real("unclean_restarts");
  stability.link_losses = fields.real("link_losses");
  stability.disk_errors = fields.real("disk_errors");
  stability.updated_seconds =
      static_cast<std::int64_t>(fields.number("updated_seconds", 0, seconds_max));
  if (const Status status = fields.finish_allow_unknown(); !status) {
    return fail(Errc::corrupt, "{}", status.error().message);
  }
  return stability;
}

}  // namespace replicad
