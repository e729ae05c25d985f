// switchover

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include "core/base/names.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/executor.h"
#include "ctl/table.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;

namespace {

std::string number_of(const Json& json, const char* name) {
  const auto it = json.find(name);
  return it != json.end() && it->is_number_integer() ? it->dump() : std::string();
}

/// The daemon's word is not enough: the digests it gives are compared here once more.
Status check_proof(const Json& proof, const std::string& to) {
  const std::string digest = text_of(proof, "primary_digest");
  const auto equal = proof.find("equal");
  if (digest.empty() || equal == proof.end() || !equal->is_boolean()) {
    return fail(Errc::protocol,
                "the answer holds no proof; `replicactl status` shows where the volume is served");
  }
  const auto replicas = proof.find("replicas");
  if (replicas != proof.end() && replicas->is_array()) {
    for (const Json& replica : *replicas) {
      if (!replica.is_object() || text_of(replica, "host") != to) continue;
      if (equal->get<bool>() && text_of(replica, "digest") == digest) return {};
      return fail(Errc::diverged,
                  "the digests of {} and of the old primary differ ({} and {})",
                  to,
                  text_of(replica, "digest"),
                  digest);
    }
  }
  return fail(Errc::protocol, "the proof says nothing of {}", to);
}

std::string proof_text(Context& context, const Json& proof) {
  const auto history = proof.find("history");
  const std::string sequence =
      history != proof.end() && history->is_object() ? number_of(*history, "sequence") : "?";
  const auto epoch = proof.find("epoch");
  const std::string number =
      epoch != proof.end() && epoch->is_object() ? number_of(*epoch, "number") : "?";
  const auto held = proof.find("held_ms");
  const std::string held_text = held != proof.end() && held->is_number()
                                    ? fmt::format("{:.1f} ms", held->get<double>())
                                    : "?";
  std::string text = fmt::format("{} moved from {} to {}, epoch {}: {}\n",
                                 printable(text_of(proof, "volume")),
                                 printable(text_of(proof, "from")),
                                 printable(text_of(proof, "to")),
                                 number,
                                 context.paint("equal since sequence " + sequence, Tone::good));
  text += fmt::format("the guest's I/O was held for {}\n", held_text);
  Table table({"HOST", "PART", ">SENT", ">RECEIVED", ">DURABLE", ">APPLIED", "DIGEST"});
  table.add_row({printable(text_of(proof, "from")),
                 "old primary",
                 "",
                 "",
                 "",
                 sequence,
                 printable(text_of(proof, "primary_digest"))});
  const auto replicas = proof.find("replicas");
  for (const Json& replica :
       replicas == proof.end() || !replicas->is_array() ? Json::array() : *replicas) {
    if (!replica.is_object()) continue;
    const bool is_target = text_of(replica, "host") == text_of(proof, "to");
    table.add_row({printable(text_of(replica, "host")),
                   is_target ? "new primary" : "replica",
                   number_of(replica, "sent"),
                   number_of(replica, "received"),
                   number_of(replica, "durable"),
                   number_of(replica, "applied"),
                   printable(text_of(replica, "digest"))});
  }
  text += table.text(2);
  const auto nbd = proof.find("export");
  if (nbd != proof.end() && nbd->is_object())
    text += fmt::format("export: {}\n", printable(text_of(*nbd, "uri")));
  return text;
}

}  // namespace

void add_switchover_options(OptionSpecs& specs) {
  specs.add_options()("to",
                      po::value<std::string>()->value_name("HOST"),
                      "the new primary; default: the best replica in sync")(
      "deadline",
      po::value<std::string>()->value_name("TIME"),
      "how long the guest's writes may be held before all stays as it was (default 30s)");
}

Status run_switchover(Context& context, const OptionValues& values) {
  SwitchoverRequest request;
  request.to = text_option(values, "to");
  if (!request.to.empty() && !is_valid_name(request.to)) {
    return fail(Errc::invalid_argument, "--to: '{}' is no name of a host", printable(request.to));
  }
  const auto deadline_ms = deadline_option(values, request.deadline_ms);
  if (!deadline_ms) return tl::unexpected(deadline_ms.error());
  request.deadline_ms = *deadline_ms;
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  std::vector<HostReport> hosts;
  if (request.to.empty()) hosts = context.cluster().ask_hosts();
  const auto plan = plan_switchover(context.volume(), request, reports, hosts);
  if (!plan) return tl::unexpected(plan.error());
  std::string text;
  Status status = run_plan(
      context, *plan, [&](const Step& step, const Json& proof, PlanResult& result) -> Status {
        RD_TRY(check_proof(proof, step.request.body["to"].get<std::string>()));
        result.result = {{"proof", proof}};
        text = proof_text(context, proof);
        return {};
      });
  if (!text.empty() && !context.options().json && !context.options().quiet)
    context.terminal().out << text << std::flush;
  return status;
}

}  // namespace replicad::ctl
