// create, add-replica, remove-replica, delete

#include <algorithm>
#include <set>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/names.h"
#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/executor.h"
#include "ctl/placement_options.h"
#include "ctl/units.h"
#include "io/file.h"

namespace replicad::ctl {

namespace po = boost::program_options;

namespace {

/// Size of a file or device on this machine, for --adopt without --size.
Result<std::uint64_t> local_bytes(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid())
    return fail_errno(errno, "--adopt without --size: cannot open {} here", printable(path));
  return image_bytes(fd.get());
}

Result<std::vector<std::string>> read_adopt(const OptionValues& values) {
  auto paths = split_list(text_option(values, "adopt"));
  if (!paths) return fail(Errc::invalid_argument, "--adopt: {}", paths.error().message);
  for (const std::string& path : *paths) {
    if (!path.starts_with('/')) {
      return fail(Errc::invalid_argument,
                  "--adopt takes absolute paths on the primary, not '{}'",
                  printable(path));
    }
  }
  if (!paths->empty() && text_option(values, "primary").empty()) {
    return fail(Errc::invalid_argument, "--adopt needs --primary: the host that has the image");
  }
  return paths;
}

Result<std::vector<std::uint64_t>> sizes_for(const OptionValues& values,
                                             const std::vector<std::string>& adopt) {
  std::vector<std::uint64_t> sizes;
  if (adopt.empty() || values.count("size") > 0) {
    const auto given = read_sizes(values);
    if (!given) return tl::unexpected(given.error());
    sizes = *given;
  } else {
    for (const std::string& path : adopt) {
      const auto bytes = local_bytes(path);
      if (!bytes) {
        return with_hint(tl::unexpected(bytes.error()),
                         "give --size if the image is on another machine");
      }
      RD_TRY(check_disk_bytes(*bytes));
      sizes.push_back(*bytes);
    }
  }
  if (!adopt.empty() && adopt.size() != sizes.size()) {
    return fail(
        Errc::invalid_argument, "--size names {} disks, --adopt {}", sizes.size(), adopt.size());
  }
  return sizes;
}

Status read_disk_names(const OptionValues& values, std::vector<CreateRequest::Disk>& disks) {
  const auto names = split_list(text_option(values, "disk-names"));
  if (!names) return fail(Errc::invalid_argument, "--disk-names: {}", names.error().message);
  if (!names->empty() && names->size() != disks.size()) {
    return fail(Errc::invalid_argument,
                "--disk-names gives {} names for {} disks",
                names->size(),
                disks.size());
  }
  std::set<std::string> used;
  for (std::size_t i = 0; i < disks.size(); ++i) {
    disks[i].name = names->empty() ? default_disk_name(i) : (*names)[i];
    if (!is_valid_name(disks[i].name) || disks[i].name.size() > disk_name_bytes_max) {
      return fail(Errc::invalid_argument,
                  "--disk-names: '{}' is no name of a disk (at most {} lower-case letters, digits, "
                  "'.', '_' and '-')",
                  printable(disks[i].name),
                  disk_name_bytes_max);
    }
    if (!used.insert(disks[i].name).second)
      return fail(Errc::invalid_argument, "two disks are called {}", disks[i].name);
  }
  return {};
}

Result<nlohmann::json> read_create_settings(const OptionValues& values) {
  std::vector<std::string> pairs;
  if (values.count("set") > 0) pairs = values["set"].as<std::vector<std::string>>();
  if (const std::string mode = text_option(values, "mode"); !mode.empty())
    pairs.push_back("mode=" + mode);
  if (values.count("autostart") > 0) pairs.emplace_back("autostart=yes");
  return parse_settings(pairs);
}

Result<CreateRequest> read_create(const std::string& name, const OptionValues& values) {
  CreateRequest request;
  request.name = name;
  const auto adopt = read_adopt(values);
  if (!adopt) return tl::unexpected(adopt.error());
  const auto sizes = sizes_for(values, *adopt);
  if (!sizes) return tl::unexpected(sizes.error());
  for (std::size_t i = 0; i < sizes->size(); ++i) {
    request.disks.push_back({{}, (*sizes)[i], adopt->empty() ? std::string() : (*adopt)[i]});
  }
  RD_TRY(read_disk_names(values, request.disks));
  auto settings = read_create_settings(values);
  if (!settings) return tl::unexpected(settings.error());
  request.settings = std::move(*settings);
  return request;
}

/// Witnesses are named, not placed, and get no copy.
Status read_witnesses(const OptionValues& values,
                      CreateRequest& request,
                      PlacementRequest& placement) {
  const auto hosts = split_list(text_option(values, "witness"));
  if (!hosts) return fail(Errc::invalid_argument, "--witness: {}", hosts.error().message);
  for (const std::string& host : *hosts) {
    if (!is_valid_name(host))
      return fail(Errc::invalid_argument, "--witness: '{}' is no name of a host", printable(host));
    if (host == placement.primary)
      return fail(Errc::invalid_argument, "--witness: {} is the primary", host);
    request.witnesses.push_back(host);
    placement.without.push_back(host);
  }
  return {};
}

/// What each chosen host will be, with its score.
void show_choice(Context& context, const Placement& placement) {
  for (std::size_t i = 0; i < placement.chosen.size(); ++i) {
    const HostScore& score = *placement.score_of(placement.chosen[i]);
    context.say(fmt::format("{}: {} (score {:.3f})",
                            printable(score.host),
                            i == 0 ? "primary" : "replica",
                            score.total));
    for (const std::string& warning : score.warnings) {
      context.say(fmt::format(
          "{}: {}: {}", context.paint("warning", Tone::warn), printable(score.host), warning));
    }
  }
}

}  // namespace

void add_create_options(OptionSpecs& specs) {
  specs.add_options()("size",
                      po::value<std::string>()->value_name("SIZE[,SIZE..]"),
                      "size of each disk, such as 20G,10G")(
      "copies",
      po::value<std::string>()->value_name("N"),
      "hosts that get a copy, the primary included (default 3)")(
      "mode", po::value<std::string>()->value_name("MODE"), "sync (default), semi-sync or async")(
      "primary",
      po::value<std::string>()->value_name("HOST"),
      "this host is the primary; default: the best score")(
      "on", po::value<std::string>()->value_name("HOST,.."), "choose among these hosts only")(
      "overcommit",
      "also take hosts with less free space than the disks may need (images are sparse)")(
      "adopt",
      po::value<std::string>()->value_name("PATH[,PATH..]"),
      "files or devices on the primary that become its images in place, one per disk")(
      "disk-names",
      po::value<std::string>()->value_name("NAME,.."),
      "names of the disks (default vda, vdb, ...)")(
      "set",
      po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
      "a setting; may be repeated")(
      "autostart",
      "serve the volume again by itself after a crash or power cut (as --set autostart=yes)")(
      "witness",
      po::value<std::string>()->value_name("HOST,.."),
      "hosts that vote and have no copy");
}

Status run_create(Context& context, const OptionValues& values) {
  auto placement_request = read_placement(values);
  if (!placement_request) return tl::unexpected(placement_request.error());
  auto request = read_create(context.volume(), values);
  if (!request) return tl::unexpected(request.error());
  request->overcommit = placement_request->overcommit;
  RD_TRY(read_witnesses(values, *request, *placement_request));
  for (const CreateRequest::Disk& disk : request->disks) {
    placement_request->bytes += disk.bytes;
    placement_request->primary_brings_images =
        placement_request->primary_brings_images || !disk.adopt.empty();
  }
  const std::vector<HostReport> hosts = context.cluster().ask_hosts();
  const Placement placement = place(hosts, *placement_request);
  if (placement.refusal) return tl::unexpected(*placement.refusal);
  request->uuid = random_uuid();
  const auto plan =
      plan_create(*request, placement.chosen, hosts, context.cluster().ask_volume(request->name));
  if (!plan) return tl::unexpected(plan.error());
  show_choice(context, placement);
  return run_plan(
      context, *plan, [&](const Step&, const nlohmann::json&, PlanResult& result) -> Status {
        result.result = {{"uuid", request->uuid},
                         {"primary", placement.chosen.front()},
                         {"hosts", placement.chosen}};
        return {};
      });
}

void add_add_replica_options(OptionSpecs& specs) {
  specs.add_options()("witness",
                      po::value<std::string>()->value_name("HOST"),
                      "add HOST as a witness instead: it votes and has no images")(
      "overcommit",
      "also if the host has less free space than the disks may need (images are sparse)");
}

namespace {

Status add_witness(Context& context, const std::string& host) {
  if (!is_valid_name(host)) {
    return fail(Errc::invalid_argument, "--witness: '{}' is no name of a host", printable(host));
  }
  if (context.arguments().size() > 1)
    return fail(Errc::invalid_argument, "either a HOST for a copy or --witness HOST, not both");
  const auto plan = plan_add_replica(context.volume(),
                                     host,
                                     context.cluster().ask_volume(context.volume()),
                                     context.cluster().ask_hosts(),
                                     AddedMember::witness);
  if (!plan) return tl::unexpected(plan.error());
  return run_plan(context, *plan);
}

}  // namespace

Status run_add_replica(Context& context, const OptionValues& values) {
  if (values.count("witness") > 0) return add_witness(context, text_option(values, "witness"));
  const std::string& volume = context.volume();
  const std::vector<MemberReport> reports = context.cluster().ask_volume(volume);
  const auto primary = find_primary(volume, reports);
  if (!primary) return tl::unexpected(primary.error());
  const std::vector<HostReport> hosts = context.cluster().ask_hosts();
  PlacementRequest request;
  request.version = REPLICAD_VERSION;
  request.copies = 1;
  request.bytes = (*primary)->volume->bytes();
  request.overcommit = values.count("overcommit") > 0;
  if (context.arguments().size() > 1) {
    request.on = {context.arguments()[1]};
  } else {
    for (const MemberView& member : (*primary)->volume->members)
      request.without.push_back(member.host);
    for (const MemberReport& report : reports) {
      if (report.volume) request.without.push_back(report.host);
    }
  }
  const Placement placement = place(hosts, request);
  if (placement.refusal) return tl::unexpected(*placement.refusal);
  const auto plan =
      plan_add_replica(volume,
                       placement.chosen.front(),
                       reports,
                       hosts,
                       request.overcommit ? AddedMember::overcommitted : AddedMember::copy);
  if (!plan) return tl::unexpected(plan.error());
  return run_plan(context, *plan);
}

void add_remove_replica_options(OptionSpecs& specs) {
  specs.add_options()("force", "also if that host keeps lost writes, which are removed with it");
}

Status run_remove_replica(Context& context, const OptionValues& values) {
  const std::string& volume = context.volume();
  const std::string& host = context.arguments()[1];
  const std::vector<MemberReport> reports = context.cluster().ask_volume(volume);
  const auto plan = plan_remove_replica(volume, host, values.count("force") > 0, reports);
  if (!plan) return tl::unexpected(plan.error());
  const MemberReport* report = report_of(reports, host);
  const bool witness = report != nullptr && report->volume && report->volume->disks.empty();
  RD_TRY(context.confirm(fmt::format(
      "remove the {} of {} on {}?", witness ? "witness" : "copy", volume, printable(host))));
  return run_plan(context, *plan);
}

void add_delete_options(OptionSpecs& specs) {
  specs.add_options()("force",
                      "delete; without it the command lists what would be lost and refuses");
}

Status run_delete(Context& context, const OptionValues& values) {
  const std::string& volume = context.volume();
  const std::vector<MemberReport> reports = context.cluster().ask_volume(volume);
  auto plan = plan_delete(volume, values.count("force") > 0, reports);
  if (!plan) return tl::unexpected(plan.error());
  for (const std::string& line : describe_loss(reports))
    context.say((context.options().dry_run ? "would lose " : "losing ") + line);
  return run_plan(context, *plan);
}

}  // namespace replicad::ctl
