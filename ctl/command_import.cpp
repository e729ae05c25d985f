// import

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <fstream>
#include <sstream>

#include <sys/stat.h>

#include "core/control/members.h"
#include "core/control/plan.h"
#include "core/control/text.h"
#include "ctl/commands.h"
#include "ctl/nbd_copy.h"
#include "ctl/progress.h"

namespace replicad::ctl {

namespace po = boost::program_options;

namespace {

struct Target {
  std::string host;
  DiskView disk;
  std::optional<ExportView> nbd;  ///< absent while the volume is not active
};

Result<DiskView> choose_disk(const VolumeView& volume, const std::string& wanted) {
  std::vector<std::string> names;
  for (const DiskView& disk : volume.disks) {
    if (disk.name == wanted) return disk;
    names.push_back(disk.name);
  }
  if (!wanted.empty()) {
    return fail(Errc::not_found,
                "{} has no disk '{}'; its disks are {}",
                volume.name,
                wanted,
                format_list(names));
  }
  if (volume.disks.size() == 1) return volume.disks.front();
  return with_hint(
      fail(Errc::invalid_argument, "{} has {} disks", volume.name, volume.disks.size()),
      fmt::format("say which one by --disk: {}", format_list(names)));
}

/// The primary and the disk, as they are now.
Result<Target> find_target(Context& context, const std::string& disk_name) {
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto primary = find_primary(context.volume(), reports);
  if (!primary) return tl::unexpected(primary.error());
  const VolumeView& volume = *(*primary)->volume;
  const auto disk = choose_disk(volume, disk_name);
  if (!disk) return tl::unexpected(disk.error());
  return Target{volume.host, *disk, volume.nbd};
}

Status check_fits(const ImportSource& source, const DiskView& disk) {
  if (source.bytes <= disk.bytes) return {};
  return fail(Errc::refused,
              "{} has {} ({} bytes), disk {} only {} ({} bytes)",
              printable(source.argument),
              format_bytes(source.bytes),
              source.bytes,
              disk.name,
              format_bytes(disk.bytes),
              disk.bytes);
}

Status check_socket_here(const Target& target) {
  struct stat info {};
  const std::string& socket = target.nbd->socket;
  if (::stat(socket.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) return {};
  return with_hint(
      fail(Errc::refused, "the export's socket {} is not on this machine", printable(socket)),
      fmt::format("give the command on {}, the primary", printable(target.host)));
}

Status check_unused(const Target& target, const std::string& volume) {
  std::ifstream file("/proc/net/unix");
  std::ostringstream content;
  content << file.rdbuf();
  const std::size_t clients = count_connections(content.str(), target.nbd->socket);
  if (clients == 0) return {};
  return with_hint(fail(Errc::busy,
                        "{} is in use: its export has {} connection{}",
                        volume,
                        clients,
                        clients == 1 ? "" : "s"),
                   "detach the disk from the guest first; an import under a running guest would "
                   "tear its file system");
}

Status activate(Context& context) {
  const auto plan = plan_activate(context.volume(), context.cluster().ask_volume(context.volume()));
  if (!plan) return tl::unexpected(plan.error());
  const Step& step = plan->steps.front();
  Timeouts timeouts = context.cluster().timeouts();
  timeouts.answer_ms = std::max(timeouts.answer_ms, step.answer_ms);
  const ApiAnswer answer = call_api(step.address, step.request, timeouts);
  if (!answer.body) return tl::unexpected(answer.body.error());
  context.say(fmt::format("{}: activated", printable(step.host)));
  return {};
}

/// Opens the export as a client does: the socket may be there without a server, or be another
/// volume's.
Status check_export(const Target& target, const std::string& uri) {
  const auto bytes = export_bytes(uri);
  if (!bytes) {
    return with_hint(
        tl::unexpected(bytes.error()),
        fmt::format("is {} this machine, and may you open the socket?", printable(target.host)));
  }
  if (*bytes == target.disk.bytes) return {};
  return fail(Errc::refused,
              "{} has {} bytes, disk {} has {}: that is another export",
              printable(uri),
              *bytes,
              target.disk.name,
              target.disk.bytes);
}

Status copy(Context& context,
            const ImportSource& source,
            const std::string& uri,
            const Target& target,
            int progress_fd) {
  Progress progress(context,
                    fmt::format("{} to {}/{}",
                                source.argument.substr(source.argument.rfind('/') + 1),
                                context.volume(),
                                target.disk.name),
                    progress_fd);
  progress.update(0, source.bytes);
  const Status status = run_nbdcopy(source.argument, uri, [&](unsigned percent) {
    progress.update(percent == 100 ? source.bytes
                                   : static_cast<std::uint64_t>(static_cast<double>(source.bytes) *
                                                                percent / 100.0),
                    source.bytes);
  });
  progress.finish();
  if (status) return {};
  return with_hint(fail(status.error().code,
                        "the import failed; disk {} holds part of it: {}",
                        target.disk.name,
                        status.error().message),
                   status.error().hint.empty() ? "give the command again when the cause is removed"
                                               : status.error().hint);
}

}  // namespace

void add_import_options(OptionSpecs& specs) {
  specs.add_options()("disk",
                      po::value<std::string>()->value_name("DISK"),
                      "the disk to fill; needed if there are several")(
      "progress", po::value<int>()->value_name("FD"), "write N/100 lines to this descriptor");
}

Status run_import(Context& context, const OptionValues& values) {
  const std::string disk_name = text_option(values, "disk");
  const auto progress_fd = progress_option(values);
  if (!progress_fd) return tl::unexpected(progress_fd.error());
  const auto source = open_source(context.arguments()[1]);
  if (!source) return tl::unexpected(source.error());
  auto target = find_target(context, disk_name);
  if (!target) return tl::unexpected(target.error());
  RD_TRY(check_fits(*source, target->disk));
  if (target->nbd) {
    RD_TRY(check_socket_here(*target));
    RD_TRY(check_unused(*target, context.volume()));
  }
  const std::string what = fmt::format("{} ({}) to disk {} of {} on {}",
                                       printable(source->argument),
                                       format_bytes(source->bytes),
                                       target->disk.name,
                                       context.volume(),
                                       printable(target->host));
  if (context.options().dry_run) {
    context.say(
        fmt::format("would: {}copy {}", target->nbd ? "" : "activate the volume and ", what));
    if (context.options().json) {
      context.print_json({{"volume", context.volume()},
                          {"dry_run", true},
                          {"disk", target->disk.name},
                          {"bytes", source->bytes},
                          {"source", source->argument}});
    }
    return {};
  }
  RD_TRY(context.confirm(fmt::format("overwrite the disk: copy {}?", what)));
  if (!target->nbd) {
    RD_TRY(activate(context));
    target = find_target(context, disk_name);
    if (!target) return tl::unexpected(target.error());
    if (!target->nbd) {
      return fail(
          Errc::protocol, "{} was activated but its primary names no export", context.volume());
    }
    RD_TRY(check_socket_here(*target));
  }
  const auto uri = target->nbd->uris.find(target->disk.name);
  if (uri == target->nbd->uris.end())
    return fail(Errc::protocol, "the primary names no URI of disk {}", target->disk.name);
  RD_TRY(check_export(*target, uri->second));
  RD_TRY(copy(context, *source, uri->second, *target, *progress_fd));
  context.say("copied " + what);
  if (context.options().json) {
    context.print_json({{"volume", context.volume()},
                        {"dry_run", false},
                        {"disk", target->disk.name},
                        {"bytes", source->bytes},
                        {"source", source->argument},
                        {"uri", uri->second}});
  }
  return {};
}

}  // namespace replicad::ctl
