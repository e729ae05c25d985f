// list, status, wait

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <thread>

#include "core/base/names.h"
#include "core/control/members.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/table.h"
#include "ctl/units.h"
#include "ctl/volume_report.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto watch_every = std::chrono::seconds(1);
constexpr auto wait_every = std::chrono::milliseconds(200);

Tone tone_of(const std::string& state) {
  if (state == "serving" || state == "streaming") return Tone::good;
  if (state == "failed" || state == "detached" || state == "refused" || state == "unreachable" ||
      state == "missing" || state == "unknown" || state == "inconsistent" || state == "split") {
    return Tone::bad;
  }
  return state == "stopped" ? Tone::plain : Tone::warn;
}

Json silent_json(const VolumesAnswer& answer) {
  Json list = Json::array();
  for (const auto& [host, error] : answer.silent) {
    list.push_back({{"host", host.name}, {"address", host.address}, {"error", error_json(error)}});
  }
  return list;
}

void print_silent(Context& context, const VolumesAnswer& answer) {
  for (const auto& [host, error] : answer.silent) {
    context.terminal().out << fmt::format("{}: {}: {}\n",
                                          context.paint("no answer", Tone::bad),
                                          printable(host.name),
                                          printable(error.message));
  }
}

std::string disks_text(const VolumeView& view) {
  std::string text;
  for (const DiskView& disk : view.disks) {
    text += fmt::format("{}{} {}{}",
                        text.empty() ? "" : ", ",
                        printable(disk.name),
                        format_bytes(disk.bytes),
                        disk.adopted ? " (adopted)" : "");
  }
  return text;
}

std::string number(const std::optional<std::uint64_t>& value) {
  return value ? fmt::format("{}", *value) : std::string();
}

std::string copy_text(const std::optional<CopyView>& copy) {
  if (!copy) return {};
  const double part = copy->total_bytes == 0 ? 0.0
                                             : static_cast<double>(copy->done_bytes) * 100.0 /
                                                   static_cast<double>(copy->total_bytes);
  return fmt::format("{:.1f}% of {}", part, format_bytes(copy->total_bytes));
}

std::string volume_text(Context& context, const VolumeReport& report) {
  const VolumeView& view = *report.view;
  std::string text = fmt::format("{}  {}  {} on {}  epoch {}  sequence {}\n",
                                 context.paint(report.name, Tone::strong),
                                 printable(view.mode),
                                 context.paint(printable(report.state), tone_of(report.state)),
                                 printable(view.primary),
                                 view.epoch.number,
                                 view.history.sequence);
  text += fmt::format("  disks: {}\n", disks_text(view));
  if (report.primary != nullptr && report.primary->nbd) {
    text += fmt::format("  export: {}\n", printable(report.primary->nbd->uri));
  }
  const VolumeView& known = report.primary != nullptr ? *report.primary : view;
  if (known.vote.record && known.vote.record->handover) {
    const HandoverState& prepared = *known.vote.record->handover;
    text += fmt::format(
        "  handover: from {0} to {1}, {2}; `replicactl handover {3} --finish` if the VM runs on "
        "{1}, "
        "else `--end`\n",
        printable(prepared.from),
        printable(prepared.to),
        prepared.term == 0 ? "the role moves with the first write there" : "the role has moved",
        report.name);
  }
  Table table({"HOST",
               "ROLE",
               "STATE",
               "IN-SYNC",
               ">SENT",
               ">RECEIVED",
               ">LOGGED",
               ">DURABLE",
               ">APPLIED",
               ">LAG",
               ">LAG-TIME",
               ">COPY"});
  for (const MemberRow& row : report.members) {
    const std::string state = printable(row.state);
    table.add_row({printable(row.host),
                   row.role,
                   Cell(state, context.paint(state, tone_of(row.state))),
                   row.in_sync ? "yes" : "no",
                   number(row.sent),
                   number(row.received),
                   number(row.logged),
                   number(row.durable),
                   number(row.applied),
                   row.lag_bytes ? format_bytes(*row.lag_bytes) : "",
                   row.lag_seconds ? format_seconds(*row.lag_seconds) : "",
                   copy_text(row.copy)});
  }
  text += table.text(2);
  for (const std::string& problem : report.problems) {
    text += fmt::format("  {}: {}\n", context.paint("problem", Tone::bad), problem);
  }
  if (report.primary != nullptr && report.primary->verify)
    text += fmt::format("  verify: {}\n", verify_text(*report.primary->verify));
  text += fmt::format("  failover: {}\n", failover_text(report));
  return text;
}

/// One look at one volume or at all; `text` or `json` is what to show.
struct Look {
  Json json;
  std::string text;
};

Result<Look> look_at_one(Context& context, const std::string& name) {
  const std::vector<MemberReport> reports = context.cluster().ask_volume(name);
  const bool any = std::any_of(
      reports.begin(), reports.end(), [](const MemberReport& r) { return r.volume.has_value(); });
  if (!any) return tl::unexpected(find_primary(name, reports).error());
  const VolumeReport report = make_volume_report(name, reports);
  Look look;
  look.json = {{"volumes", Json::array({status_json(report)})}};
  look.text = volume_text(context, report);
  return look;
}

bool has_view(const std::vector<MemberReport>& reports) {
  return std::any_of(
      reports.begin(), reports.end(), [](const MemberReport& r) { return r.volume.has_value(); });
}

Result<Look> look_at_all(Context& context) {
  const auto answer = context.cluster().ask_volumes();
  if (!answer) return tl::unexpected(answer.error());
  Look look;
  Json volumes = Json::array();
  for (const auto& [name, reports] : answer->volumes) {
    if (!has_view(reports)) {
      // Every host that listed it cannot read it, or described it in a way that cannot be read.
      volumes.push_back(unreadable_json(name, reports));
      look.text += fmt::format("{}{}  unknown\n", look.text.empty() ? "" : "\n", name);
      for (const std::string& problem : volume_problems(name, reports))
        look.text += fmt::format("  {}: {}\n", context.paint("problem", Tone::bad), problem);
      continue;
    }
    const VolumeReport report = make_volume_report(name, reports);
    volumes.push_back(status_json(report));
    look.text += (look.text.empty() ? "" : "\n") + volume_text(context, report);
  }
  if (answer->volumes.empty()) look.text = "no volumes\n";
  for (const auto& [host, error] : answer->silent) {
    look.text += fmt::format("{}: {}: {}\n",
                             context.paint("no answer", Tone::bad),
                             printable(host.name),
                             printable(error.message));
  }
  look.json = {{"volumes", std::move(volumes)}, {"silent", silent_json(*answer)}};
  return look;
}

Result<Look> look(Context& context) {
  return context.arguments().empty() ? look_at_all(context)
                                     : look_at_one(context, context.volume());
}

Status watch(Context& context) {
  std::ostream& out = context.terminal().out;
  // Ends by Ctrl-C, when nobody reads any more, or when every host says that there is no such volume.
  while (out) {
    const auto seen = look(context);
    if (!seen && seen.error().code == Errc::not_found) return tl::unexpected(seen.error());
    if (context.options().json) {
      if (seen) {
        context.print_json(seen->json);
      } else {
        print_error(context.terminal(), true, seen.error());
      }
    } else {
      std::string text = seen ? seen->text : seen.error().message + "\n";
      if (context.terminal().out_is_tty) {
        // Home, the text with each line's rest cleared, then everything below.
        for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 4)
          text.replace(at, 1, "\x1b[K\n");
        out << "\x1b[H" << text << "\x1b[J" << std::flush;
      } else {
        out << text << '\n' << std::flush;
      }
    }
    std::this_thread::sleep_for(watch_every);
  }
  return {};
}

/// What `wait --for` waits for.
struct WaitGoal {
  enum class Kind { in_sync, serving, primary };
  Kind kind = Kind::in_sync;
  std::string host;
};

Result<WaitGoal> parse_goal(const std::string& text) {
  if (text == "in-sync") return WaitGoal{WaitGoal::Kind::in_sync, {}};
  if (text == "serving") return WaitGoal{WaitGoal::Kind::serving, {}};
  if (text.starts_with("primary=") && is_valid_name(text.substr(8))) {
    return WaitGoal{WaitGoal::Kind::primary, text.substr(8)};
  }
  return fail(Errc::invalid_argument,
              "--for takes in-sync, serving or primary=HOST, not '{}'",
              printable(text));
}

bool is_reached(const WaitGoal& goal, const VolumeReport& report) {
  if (report.primary == nullptr) return false;
  switch (goal.kind) {
    case WaitGoal::Kind::serving:
      return report.state == "serving";
    case WaitGoal::Kind::primary:
      return report.primary->host == goal.host && !report.primary->transfer;
    case WaitGoal::Kind::in_sync:
      return std::all_of(report.members.begin(), report.members.end(), [](const MemberRow& row) {
        return row.role != "replica" || (row.in_sync && row.reachable && row.state == "streaming");
      });
  }
  return false;
}

std::string where_it_stands(const VolumeReport& report) {
  std::string text = fmt::format(
      "{} is {} on {}", report.name, printable(report.state), printable(report.view->primary));
  for (const MemberRow& row : report.members) {
    if (row.role != "replica") continue;
    text += fmt::format(
        "; {} is {}{}", printable(row.host), printable(row.state), row.in_sync ? ", in sync" : "");
  }
  return text;
}

}  // namespace

void add_status_options(OptionSpecs& specs) {
  specs.add_options()("watch", "show it again every second until interrupted");
}

Status run_status(Context& context, const OptionValues& values) {
  if (values.count("watch") > 0) {
    if (context.terminal().out_is_tty && !context.options().json)
      context.terminal().out << "\x1b[2J";
    return watch(context);
  }
  const auto seen = look(context);
  if (!seen) return tl::unexpected(seen.error());
  if (context.options().json) {
    context.print_json(seen->json);
  } else {
    context.terminal().out << seen->text << std::flush;
  }
  return {};
}

Status run_list(Context& context, const OptionValues& /*values*/) {
  const auto answer = context.cluster().ask_volumes();
  if (!answer) return tl::unexpected(answer.error());
  Table table({"NAME", "MODE", ">SIZE", ">DISKS", "PRIMARY", "STATE", "REPLICAS", "PROBLEMS"});
  Json volumes = Json::array();
  for (const auto& [name, reports] : answer->volumes) {
    if (!has_view(reports)) {
      volumes.push_back(unreadable_json(name, reports));
      table.add_row({name, "", "", "", "", "unknown", "", "1"});
      continue;
    }
    const VolumeReport report = make_volume_report(name, reports);
    Json json = status_json(report);
    for (const char* detail : {"settings", "digest", "failover", "transfer", "verify", "members"}) {
      json.erase(detail);
    }
    Json members = Json::array();
    std::size_t replicas = 0;
    for (const MemberRow& row : report.members) {
      if (row.role == "replica") ++replicas;
      members.push_back(
          {{"host", row.host}, {"role", row.role}, {"state", row.state}, {"in_sync", row.in_sync}});
    }
    json["members"] = std::move(members);
    volumes.push_back(std::move(json));
    const std::string state = printable(report.state);
    table.add_row({name,
                   printable(report.view->mode),
                   format_bytes(report.view->bytes()),
                   fmt::format("{}", report.view->disks.size()),
                   printable(report.view->primary),
                   Cell(state, context.paint(state, tone_of(report.state))),
                   fmt::format("{} of {} in sync", report.replicas_in_sync(), replicas),
                   report.problems.empty() ? "" : fmt::format("{}", report.problems.size())});
  }
  if (context.options().json) {
    context.print_json({{"volumes", std::move(volumes)}, {"silent", silent_json(*answer)}});
    return {};
  }
  context.terminal().out << table.text();
  print_silent(context, *answer);
  context.terminal().out << std::flush;
  return {};
}

void add_wait_options(OptionSpecs& specs) {
  specs.add_options()(
      "for", po::value<std::string>()->value_name("WHAT"), "in-sync, serving or primary=HOST");
}

Status run_wait(Context& context, const OptionValues& values) {
  const std::string text = text_option(values, "for");
  if (text.empty())
    return fail(Errc::invalid_argument, "wait needs --for in-sync, serving or primary=HOST");
  const auto goal = parse_goal(text);
  if (!goal) return tl::unexpected(goal.error());
  const auto deadline = Clock::now() + std::chrono::milliseconds(context.options().timeout_ms);
  while (true) {
    const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
    std::string stands;
    if (has_view(reports)) {
      const VolumeReport report = make_volume_report(context.volume(), reports);
      if (is_reached(*goal, report)) {
        if (context.options().json)
          context.print_json({{"reached", text}, {"volumes", Json::array({status_json(report)})}});
        context.say(where_it_stands(report));
        return {};
      }
      stands = where_it_stands(report);
    } else {
      const Error error = find_primary(context.volume(), reports).error();
      if (error.code == Errc::not_found) return tl::unexpected(error);
      stands = error.message;
    }
    if (context.options().timeout_ms > 0 && Clock::now() + wait_every > deadline) {
      return fail(Errc::timeout,
                  "waited {} for {}: {}",
                  format_seconds(static_cast<double>(context.options().timeout_ms) / 1000.0),
                  text,
                  stands);
    }
    std::this_thread::sleep_for(wait_every);
  }
}

}  // namespace replicad::ctl
