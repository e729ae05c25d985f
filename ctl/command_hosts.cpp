// hosts, place

#include "core/control/placement.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/placement_options.h"
#include "ctl/table.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;

namespace {

std::string percent(const std::optional<double>& value) {
  return value ? fmt::format("{:.1f}%", *value) : std::string("-");
}

Json host_json(const HostReport& report) {
  // Everything the daemon says of itself, with what only we know.
  Json json = report.facts ? report.facts->raw : Json::object();
  json.erase("schema");
  json["host"] = report.name;
  json["address"] = report.address;
  json["reachable"] = report.facts.has_value();
  json["error"] = report.facts ? Json() : error_json(report.facts.error());
  return json;
}

void print_hosts(Context& context, const std::vector<HostReport>& reports) {
  Table table({"HOST",
               "ADDRESS",
               "STATE",
               "VERSION",
               ">CPUS",
               ">LOAD",
               ">CPU-PSI",
               ">IO-PSI",
               ">MEM-FREE",
               ">SPACE-FREE",
               ">UPTIME",
               ">CRASHES",
               ">LINK-LOSS",
               ">DISK-ERR",
               ">PRIMARY",
               ">REPLICA"});
  std::vector<std::string> errors;
  for (const HostReport& report : reports) {
    std::vector<Cell> row{printable(report.name), printable(report.address)};
    if (!report.facts) {
      const Error& error = report.facts.error();
      const std::string state =
          error.code == Errc::unreachable || error.code == Errc::timeout ? "unreachable" : "error";
      row.emplace_back(state, context.paint(state, Tone::bad));
      row.resize(16, Cell("-"));
      errors.push_back(fmt::format("{}: {}", printable(report.name), printable(error.message)));
    } else {
      const HostFacts& facts = *report.facts;
      const std::string state = facts.draining ? "draining" : "up";
      row.emplace_back(state, context.paint(state, facts.draining ? Tone::warn : Tone::good));
      row.insert(row.end(),
                 {printable(facts.version),
                  fmt::format("{:.0f}", facts.cpus),
                  fmt::format("{:.2f}", facts.load_1m),
                  percent(facts.cpu_pressure_percent),
                  percent(facts.io_pressure_percent),
                  format_bytes(facts.memory_free_bytes),
                  format_bytes(facts.image_dir_free_bytes),
                  format_seconds(facts.uptime_seconds),
                  fmt::format("{:.1f}", facts.unclean_restarts),
                  fmt::format("{:.1f}", facts.link_losses),
                  fmt::format("{:.1f}", facts.disk_errors),
                  fmt::format("{}", facts.volumes_primary),
                  fmt::format("{}", facts.volumes_replica)});
    }
    table.add_row(std::move(row));
  }
  context.terminal().out << table.text();
  for (const std::string& error : errors)
    context.terminal().out << error << '\n';
  context.terminal().out << std::flush;
}

Json placement_json(const Placement& placement, const PlacementRequest& request) {
  Json json{{"bytes", request.bytes},
            {"copies", request.copies},
            {"chosen", placement.chosen},
            {"hosts", Json::array()}};
  json["primary"] = placement.chosen.empty() ? Json() : Json(placement.chosen.front());
  json["weights"] = {{"load", request.weights.load},
                     {"capacity", request.weights.capacity},
                     {"stability", request.weights.stability}};
  for (const HostScore& host : placement.hosts) {
    Json terms = Json::array();
    for (const ScoreTerm& term : host.terms) {
      terms.push_back({{"group", term.group},
                       {"name", term.name},
                       {"value", term.value},
                       {"unit", term.unit},
                       {"score", term.score},
                       {"weight", term.weight},
                       {"points", term.score * term.weight}});
    }
    json["hosts"].push_back({{"host", host.host},
                             {"accepted", host.rejected.empty()},
                             {"rejected", host.rejected},
                             {"warnings", host.warnings},
                             {"score", host.total},
                             {"load", host.group_score("load")},
                             {"capacity", host.group_score("capacity")},
                             {"stability", host.group_score("stability")},
                             {"terms", std::move(terms)}});
  }
  return json;
}

std::string choice_of(const Placement& placement, const std::string& host) {
  for (std::size_t i = 0; i < placement.chosen.size(); ++i) {
    if (placement.chosen[i] == host) return i == 0 ? "primary" : "replica";
  }
  return {};
}

void print_scores(Context& context, const Placement& placement) {
  Table table({"HOST", "CHOICE", ">SCORE", ">LOAD", ">CAPACITY", ">STABILITY", "WHY-NOT"});
  for (const HostScore& host : placement.hosts) {
    const std::string choice = host.rejected.empty() ? choice_of(placement, host.host) : "rejected";
    const Tone tone = choice.empty() ? Tone::plain : host.rejected.empty() ? Tone::good : Tone::bad;
    std::string reasons;
    for (const std::string& reason : host.rejected)
      reasons += (reasons.empty() ? "" : "; ") + reason;
    if (choice.empty() && !placement.chosen.empty()) reasons = "enough better ones";
    const auto figure = [&](double value) {
      return host.terms.empty() ? std::string() : fmt::format("{:.3f}", value);
    };
    table.add_row({printable(host.host),
                   Cell(choice, context.paint(choice, tone)),
                   figure(host.total),
                   figure(host.group_score("load")),
                   figure(host.group_score("capacity")),
                   figure(host.group_score("stability")),
                   printable(reasons)});
  }
  context.terminal().out << table.text();
}

void print_explanation(Context& context,
                       const Placement& placement,
                       const PlacementWeights& weights) {
  context.terminal().out << fmt::format(
      "\nscore = {:.2f} load + {:.2f} capacity + {:.2f} stability; each term is between 0 (worst) "
      "and 1 (best)\n",
      weights.load,
      weights.capacity,
      weights.stability);
  for (const HostScore& host : placement.hosts) {
    if (host.terms.empty()) continue;
    context.terminal().out << fmt::format("\n{}: {:.3f}\n", printable(host.host), host.total);
    Table table({"TERM", "GROUP", ">VALUE", ">SCORE", ">WEIGHT", ">POINTS"});
    for (const ScoreTerm& term : host.terms) {
      const std::string value =
          fmt::format("{:.2f}{}{}", term.value, term.unit.empty() ? "" : " ", term.unit);
      table.add_row({term.name,
                     term.group,
                     value,
                     fmt::format("{:.3f}", term.score),
                     fmt::format("{:.3f}", term.weight),
                     fmt::format("{:.3f}", term.score * term.weight)});
    }
    context.terminal().out << table.text(2);
  }
  context.terminal().out << std::flush;
}

}  // namespace

Status run_hosts(Context& context, const OptionValues& /*values*/) {
  const std::vector<HostReport> reports = context.cluster().ask_hosts();
  bool any = false;
  Json list = Json::array();
  for (const HostReport& report : reports) {
    any = any || report.facts.has_value();
    list.push_back(host_json(report));
  }
  if (context.options().json) {
    context.print_json({{"hosts", std::move(list)}});
  } else {
    print_hosts(context, reports);
  }
  if (!any) return fail(Errc::unreachable, "no host answers");
  return {};
}

void add_place_options(OptionSpecs& specs) {
  specs.add_options()("size",
                      po::value<std::string>()->value_name("SIZE[,SIZE..]"),
                      "size of the disk, or of each disk")(
      "copies",
      po::value<std::string>()->value_name("N"),
      "hosts that get a copy, the primary included (default 3)")(
      "primary", po::value<std::string>()->value_name("HOST"), "this host is to be the primary")(
      "on", po::value<std::string>()->value_name("HOST,.."), "choose among these hosts only")(
      "overcommit",
      "also take hosts with less free space than the disks may need (images are sparse)")(
      "explain", "show every term of every host's score");
}

Status run_place(Context& context, const OptionValues& values) {
  auto request = read_placement(values);
  if (!request) return tl::unexpected(request.error());
  const auto sizes = read_sizes(values);
  if (!sizes) return tl::unexpected(sizes.error());
  for (const std::uint64_t bytes : *sizes)
    request->bytes += bytes;
  const Placement placement = place(context.cluster().ask_hosts(), *request);
  if (context.options().json) {
    context.print_json(placement_json(placement, *request));
  } else {
    print_scores(context, placement);
    for (const HostScore& host : placement.hosts) {
      for (const std::string& warning : host.warnings) {
        if (host.rejected.empty())
          context.say(fmt::format("warning: {}: {}", printable(host.host), warning));
      }
    }
    if (values.count("explain") > 0) print_explanation(context, placement, request->weights);
  }
  if (placement.refusal) return tl::unexpected(*placement.refusal);
  return {};
}

}  // namespace replicad::ctl
