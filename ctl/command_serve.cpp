// activate, deactivate, restart, attach-info, set, resync

#include <thread>

#include "core/base/names.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/attach_info.h"
#include "ctl/commands.h"
#include "ctl/executor.h"
#include "ctl/progress.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace po = boost::program_options;
using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto poll_every = std::chrono::milliseconds(250);

std::string string_field(const Json& json, const char* name) {
  const auto it = json.find(name);
  return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
}

/// Where a copy stands that `resync --wait` watches.
struct CopyWatch {
  std::string host;
  bool seen_copying = false;
  std::uint64_t total_bytes = 0;
};

/// nullopt: not yet. An error ends the wait.
Result<bool> check_copy(const VolumeView& primary, CopyWatch& watch, Progress& progress) {
  const ReplicaView* replica = primary.replica_on(watch.host);
  if (replica == nullptr)
    return fail(Errc::not_found, "{} is no member of {} any more", watch.host, primary.name);
  if (replica->copy) {
    watch.seen_copying = true;
    watch.total_bytes = replica->copy->total_bytes;
    progress.update(replica->copy->done_bytes, replica->copy->total_bytes);
  }
  if (replica->state == "copying") watch.seen_copying = true;
  if (replica->in_sync && replica->state == "streaming") {
    if (watch.total_bytes > 0) progress.update(watch.total_bytes, watch.total_bytes);
    return true;
  }
  const bool ended = replica->state == "refused" ||
                     (watch.seen_copying && replica->state == "detached") ||
                     primary.state == "stopped" || primary.state == "failed";
  if (!ended) return false;
  return fail(replica->error ? replica->error->code : Errc::io_error,
              "the copy to {} ended: it is {}{}{}",
              watch.host,
              replica->state,
              replica->error ? ": " : "",
              replica->error ? replica->error->message : "");
}

Status wait_for_copy(Context& context, const std::string& host, int progress_fd) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(context.options().timeout_ms);
  CopyWatch watch{host};
  Progress progress(context, fmt::format("{} to {}", context.volume(), host), progress_fd);
  while (true) {
    const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
    const auto primary = find_primary(context.volume(), reports);
    if (!primary && primary.error().code != Errc::unreachable)
      return tl::unexpected(primary.error());
    if (primary) {
      const auto done = check_copy(*(*primary)->volume, watch, progress);
      if (!done || *done) progress.finish();
      if (!done) return tl::unexpected(done.error());
      if (*done) return {};
    }
    if (context.options().timeout_ms > 0 && Clock::now() > deadline) {
      progress.finish();
      return with_hint(fail(Errc::timeout, "the copy to {} is not done yet; it goes on", host),
                       fmt::format("`replicactl wait {} --for in-sync`", context.volume()));
    }
    std::this_thread::sleep_for(poll_every);
  }
}

}  // namespace

Status run_activate(Context& context, const OptionValues& /*values*/) {
  const auto plan = plan_activate(context.volume(), context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  std::string uri;
  Status status = run_plan(
      context, *plan, [&](const Step& step, const Json& answer, PlanResult& result) -> Status {
        uri = string_field(answer, "uri");
        if (uri.empty())
          return fail(Errc::protocol, "unexpected answer: field 'uri' is not a string");
        result.result = {
            {"host", step.host}, {"uri", uri}, {"socket", string_field(answer, "socket")}};
        return {};
      });
  if (status && !uri.empty()) context.say(printable(uri));
  return status;
}

Status run_restart(Context& context, const OptionValues& /*values*/) {
  const auto plan = plan_restart(context.volume(), context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  bool clean = true;
  Status status = run_plan(
      context, *plan, [&](const Step& step, const Json& answer, PlanResult& result) -> Status {
        const auto found = answer.find("clean");
        clean = found != answer.end() && found->is_boolean() && found->get<bool>();
        result.result = {{"host", step.host},
                         {"uri", string_field(answer, "uri")},
                         {"socket", string_field(answer, "socket")},
                         {"clean", clean}};
        return {};
      });
  if (status && !clean) {
    context.say(
        "note: the old export did not end cleanly; replicas are compared where they may differ");
  }
  return status;
}

Status run_deactivate(Context& context, const OptionValues& /*values*/) {
  const auto plan =
      plan_deactivate(context.volume(), context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  return run_plan(context, *plan);
}

void add_attach_info_options(OptionSpecs& specs) {
  specs.add_options()("format",
                      po::value<std::string>()->value_name("FORMAT"),
                      "uri, qemu, libvirt or all (default)");
}

Status run_attach_info(Context& context, const OptionValues& values) {
  std::string format = text_option(values, "format");
  if (format.empty()) format = "all";
  if (format != "uri" && format != "qemu" && format != "libvirt" && format != "all") {
    return fail(Errc::invalid_argument,
                "--format takes uri, qemu, libvirt or all, not '{}'",
                printable(format));
  }
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto primary = find_primary(context.volume(), reports);
  if (!primary) return tl::unexpected(primary.error());
  const VolumeView& volume = *(*primary)->volume;
  const auto disks = attach_infos(volume);
  if (!disks) return tl::unexpected(disks.error());
  if (context.options().json) {
    Json list = Json::array();
    for (const AttachInfo& disk : *disks) {
      list.push_back({{"name", disk.disk},
                      {"bytes", disk.bytes},
                      {"uri", disk.uri},
                      {"socket", disk.socket},
                      {"qemu", disk.qemu_arguments},
                      {"libvirt", disk.libvirt_xml}});
    }
    context.print_json(
        {{"volume", volume.name}, {"host", volume.host}, {"disks", std::move(list)}});
    return {};
  }
  context.terminal().out << attach_text(*disks, format) << std::flush;
  return {};
}

Status run_set(Context& context, const OptionValues& /*values*/) {
  const std::vector<std::string> pairs(context.arguments().begin() + 1, context.arguments().end());
  const auto settings = parse_settings(pairs);
  if (!settings) return tl::unexpected(settings.error());
  const auto plan =
      plan_set(context.volume(), *settings, context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  return run_plan(context, *plan, [&](const Step&, const Json&, PlanResult& result) -> Status {
    result.result = {{"settings", *settings}};
    return {};
  });
}

void add_resync_options(OptionSpecs& specs) {
  specs.add_options()(
      "host", po::value<std::string>()->value_name("HOST"), "the replica to copy to")(
      "wait", "wait until it is in sync, with a progress bar")(
      "progress",
      po::value<int>()->value_name("FD"),
      "with --wait: write N/100 lines to this descriptor");
}

Status run_resync(Context& context, const OptionValues& values) {
  const std::string host = text_option(values, "host");
  if (!is_valid_name(host))
    return fail(Errc::invalid_argument, "resync needs --host HOST, a member's name");
  const auto progress_fd = progress_option(values);
  if (!progress_fd) return tl::unexpected(progress_fd.error());
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto plan = plan_resync(context.volume(), host, reports);
  if (!plan) return tl::unexpected(plan.error());
  RD_TRY(context.confirm(fmt::format("overwrite the copy of {} on {}?", context.volume(), host)));
  RD_TRY(run_plan(context, *plan));
  if (values.count("wait") == 0 || context.options().dry_run) return {};
  RD_TRY(wait_for_copy(context, host, *progress_fd));
  context.say(fmt::format("{} is in sync", host));
  return {};
}

void add_readmit_options(OptionSpecs& specs) {
  specs.add_options()("host", po::value<std::string>()->value_name("HOST"), "whose image")(
      "force", "without a comparison; at the primary: also if what it lacks is lost");
}

Status run_readmit(Context& context, const OptionValues& values) {
  const std::string host = text_option(values, "host");
  if (!is_valid_name(host))
    return fail(Errc::invalid_argument, "readmit needs --host HOST, a member's name");
  const bool force = values.count("force") > 0;
  const auto plan =
      plan_readmit(context.volume(), host, force, context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  if (force) {
    RD_TRY(context.confirm(
        fmt::format("take the image of {} on {} without a comparison?", context.volume(), host)));
  }
  return run_plan(
      context, *plan, [&](const Step&, const Json& answer, PlanResult& result) -> Status {
        result.result = {{"readmit", answer}};
        const auto accepted = answer.find("accepted");
        const bool taken = accepted != answer.end() && *accepted == Json(true);
        context.say(taken ? fmt::format("{} takes its image as it is", host)
                          : fmt::format("the image of {} is the right one again", host));
        return {};
      });
}

}  // namespace replicad::ctl
