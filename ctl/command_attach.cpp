// attach, detach: a volume's disks as kernel devices that survive the end of their connection.

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <syslog.h>
#include <unistd.h>

#include "core/base/names.h"
#include "core/control/members.h"
#include "core/control/text.h"
#include "ctl/attach_info.h"
#include "ctl/commands.h"
#include "ctl/nbd_kernel.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace po = boost::program_options;

namespace {

constexpr std::uint64_t dead_seconds_default = 300;
constexpr auto look_interval = std::chrono::milliseconds(500);
constexpr useconds_t retry_us = 200'000;
/// The kernel notes each request that takes longer ("Possible stuck request"), each time that this passes.
constexpr unsigned look_for_lost_ms = 2'000;

/// Also what detach looks for: it must do without a daemon.
std::string identifier_of(const std::string& volume, const std::string& disk) {
  return "replicad " + volume + "/" + disk;
}

std::string device_path(std::uint32_t index) {
  return fmt::format("/dev/nbd{}", index);
}

struct Attachment {
  std::string socket;
  std::string disk;
  std::string identifier;
  std::uint32_t index = 0;
  std::uint64_t bytes = 0;
};

/// The disk that is meant, of a volume that is served on this machine.
Result<AttachInfo> find_disk(Context& context, const std::string& disk) {
  const std::vector<MemberReport> reports = context.cluster().ask_volume(context.volume());
  const auto primary = find_primary(context.volume(), reports);
  if (!primary) return tl::unexpected(primary.error());
  const VolumeView& volume = *(*primary)->volume;
  const auto disks = attach_infos(volume);
  if (!disks) return tl::unexpected(disks.error());
  for (const AttachInfo& info : *disks) {
    if (!disk.empty() && info.disk != disk) continue;
    std::error_code ignored;
    if (std::filesystem::exists(info.socket, ignored)) return info;
    return with_hint(
        fail(Errc::refused,
             "{} is served on {}, at {}, which is not there",
             volume.name,
             volume.host,
             info.socket),
        "attach it on that host, or move the volume here first (`replicactl switchover`)");
  }
  return fail(Errc::not_found, "{} has no disk {}", volume.name, disk);
}

/// What suits a server that is not a spinning disk; what the kernel refuses stays as it is.
void tune_queue(std::uint32_t index) {
  const std::string queue = fmt::format("/sys/block/nbd{}/queue/", index);
  std::ofstream(queue + "scheduler") << "none\n";
  std::ofstream(queue + "max_sectors_kb") << "512\n";
  // How often the driver looks whether the connection that a request was sent on is still the device's, and sends it
  // again if not: every 30 s unless told. Nothing fails when it is over.
  std::ofstream(queue + "io_timeout") << look_for_lost_ms << "\n";
}

/// One line, to the terminal or, in the background, to syslog.
class Voice {
 public:
  explicit Voice(bool background) : background_(background) {
    if (background_) ::openlog("replicactl", LOG_PID, LOG_DAEMON);
  }
  void say(int priority, const std::string& line) const {
    if (background_) {
      ::syslog(priority, "%s", line.c_str());
    } else {
      std::fprintf(stderr, "replicactl: %s\n", line.c_str());
    }
  }

 private:
  bool background_;
};

/// Another connection for the device, tried until there is one or the device has gone.
Status connect_again(NbdKernel& kernel, const Attachment& attachment) {
  while (nbd_backend(attachment.index) == attachment.identifier) {
    const auto connection = nbd_handshake(attachment.socket, attachment.disk);
    if (!connection) {
      ::usleep(retry_us);
      continue;
    }
    if (connection->bytes != attachment.bytes) {
      return fail(Errc::refused,
                  "{} has {} bytes now, the device {}",
                  attachment.identifier,
                  connection->bytes,
                  attachment.bytes);
    }
    return kernel.reconnect(attachment.index, *connection, attachment.identifier);
  }
  return {};
}

/// Until the device is disconnected.
void keep_connected(NbdKernel& kernel, const Attachment& attachment, const Voice& voice) {
  while (nbd_backend(attachment.index) == attachment.identifier) {
    if (!kernel.wait_dead(attachment.index, look_interval)) continue;
    voice.say(LOG_WARNING,
              device_path(attachment.index) + ": the connection has ended, its I/O waits");
    if (const Status again = connect_again(kernel, attachment); !again) {
      voice.say(LOG_ERR, device_path(attachment.index) + ": " + again.error().message);
      continue;
    }
    voice.say(LOG_NOTICE, device_path(attachment.index) + ": connected again");
  }
}

/// Goes on in a process of its own. True in that one.
Result<bool> go_to_background() {
  const pid_t child = ::fork();
  if (child < 0) return fail_errno(errno, "fork");
  if (child > 0) return false;
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : {0, 1, 2})
    ::dup2(null, fd);
  static_cast<void>(::chdir("/"));
  return true;
}

Result<std::uint64_t> dead_seconds_option(const OptionValues& values) {
  const std::string text = text_option(values, "dead-timeout");
  if (text.empty()) return dead_seconds_default;
  const auto ms = parse_duration_ms(text);
  if (!ms) return fail(Errc::invalid_argument, "--dead-timeout: {}", ms.error().message);
  if (*ms < 1000) return fail(Errc::invalid_argument, "--dead-timeout is at least 1 s");
  return *ms / 1000;
}

/// The devices that `word` names: one by its path, or those of a volume (`disk`: of that one).
Result<std::vector<std::uint32_t>> devices_named(const std::string& word, const std::string& disk) {
  if (word.starts_with("/dev/")) {
    const auto index = nbd_index(word);
    if (!index) return tl::unexpected(index.error());
    if (!nbd_backend(*index).starts_with("replicad ")) {
      return fail(Errc::not_found, "{} is not attached by replicactl", word);
    }
    return std::vector<std::uint32_t>{*index};
  }
  if (!is_valid_name(word))
    return fail(Errc::invalid_argument, "'{}' is no name of a volume", printable(word));
  std::vector<std::uint32_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", ignored)) {
    const auto index = nbd_index(entry.path().filename().string());
    if (!index) continue;
    const std::string backend = nbd_backend(*index);
    const bool matches = disk.empty() ? backend.starts_with(identifier_of(word, ""))
                                      : backend == identifier_of(word, disk);
    if (matches) found.push_back(*index);
  }
  if (found.empty())
    return fail(Errc::not_found, "no disk of {} is attached on this machine", word);
  return found;
}

}  // namespace

void add_attach_options(OptionSpecs& specs) {
  specs.add_options()(
      "disk", po::value<std::string>()->value_name("DISK"), "which disk (default: the first)")(
      "dead-timeout",
      po::value<std::string>()->value_name("TIME"),
      "how long I/O waits for the export to come back before it fails (default 300s)")(
      "foreground", "do not go into the background: for service managers");
}

Status run_attach(Context& context, const OptionValues& values) {
  std::optional<std::uint32_t> wanted;
  if (context.arguments().size() > 1) {
    const auto index = nbd_index(context.arguments()[1]);
    if (!index) return tl::unexpected(index.error());
    wanted = *index;
  }
  const auto dead_seconds = dead_seconds_option(values);
  if (!dead_seconds) return tl::unexpected(dead_seconds.error());
  const auto disk = find_disk(context, text_option(values, "disk"));
  if (!disk) return tl::unexpected(disk.error());
  Attachment attachment{
      disk->socket, disk->disk, identifier_of(context.volume(), disk->disk), 0, disk->bytes};
  if (const auto devices = nbd_devices_of(attachment.identifier); !devices.empty()) {
    return fail(Errc::exists,
                "{} of {} is attached already, as {}",
                disk->disk,
                context.volume(),
                device_path(devices.front()));
  }
  if (context.options().dry_run) {
    context.say(fmt::format("would: attach {} of {} as {}",
                            disk->disk,
                            context.volume(),
                            wanted ? device_path(*wanted) : "a free /dev/nbdN"));
    if (context.options().json) {
      context.print_json(
          {{"volume", context.volume()},
           {"disk", disk->disk},
           {"device", wanted ? nlohmann::json(device_path(*wanted)) : nlohmann::json()},
           {"dry_run", true}});
    }
    return {};
  }
  auto kernel = NbdKernel::open();
  if (!kernel) return tl::unexpected(kernel.error());
  const auto connection = nbd_handshake(attachment.socket, attachment.disk);
  if (!connection) return tl::unexpected(connection.error());
  attachment.bytes = connection->bytes;
  const auto index = kernel->connect(wanted, *connection, attachment.identifier, *dead_seconds);
  if (!index) return tl::unexpected(index.error());
  attachment.index = *index;
  tune_queue(*index);
  if (context.options().json) {
    context.print_json({{"volume", context.volume()},
                        {"disk", disk->disk},
                        {"device", device_path(*index)},
                        {"dry_run", false}});
  }
  context.say(device_path(*index));
  const bool foreground = values.count("foreground") > 0;
  if (!foreground) {
    const auto background = go_to_background();
    if (!background) return tl::unexpected(background.error());
    if (!*background) return {};
  }
  keep_connected(*kernel, attachment, Voice(!foreground));
  if (!foreground) std::_Exit(EXIT_SUCCESS);
  return {};
}

void add_detach_options(OptionSpecs& specs) {
  specs.add_options()(
      "disk", po::value<std::string>()->value_name("DISK"), "which disk (default: all)")(
      "force", "also a device that is in use: its file system then sees errors");
}

Status run_detach(Context& context, const OptionValues& values) {
  const auto devices = devices_named(context.arguments().front(), text_option(values, "disk"));
  if (!devices) return tl::unexpected(devices.error());
  for (const std::uint32_t index : *devices) {
    const std::string path = device_path(index);
    // Mounted, held by device-mapper, or opened exclusively otherwise.
    const Fd alone(::open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
    if (!alone.valid() && errno == EBUSY && values.count("force") == 0) {
      return with_hint(fail(Errc::busy, "{} is in use", path),
                       "unmount it first; --force cuts it off all the same");
    }
  }
  nlohmann::json detached = nlohmann::json::array();
  if (context.options().dry_run) {
    for (const std::uint32_t index : *devices) {
      context.say("would: detach " + device_path(index));
      detached.push_back(device_path(index));
    }
    if (context.options().json)
      context.print_json({{"devices", std::move(detached)}, {"dry_run", true}});
    return {};
  }
  auto kernel = NbdKernel::open();
  if (!kernel) return tl::unexpected(kernel.error());
  for (const std::uint32_t index : *devices) {
    RD_TRY(kernel->disconnect(index));
    detached.push_back(device_path(index));
    context.say(device_path(index) + ": detached");
  }
  if (context.options().json)
    context.print_json({{"devices", std::move(detached)}, {"dry_run", false}});
  return {};
}

}  // namespace replicad::ctl
