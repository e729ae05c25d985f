#include "ctl/commands.h"

#include <algorithm>

#include "core/base/limits.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace {

constexpr std::size_t many = 64;

const char* const create_details =
    "The hosts are chosen by load, capacity and stability (`replicactl place --explain` shows\n"
    "how), unless --primary and --on say otherwise. Each gets an image per disk, a plain raw\n"
    "file; if one of them fails, what was created on the others is taken back.\n"
    "With --adopt, existing raw files or block devices on the primary become its images in\n"
    "place; they are copied to the replicas once the volume is active, and `delete` keeps them.\n\n"
    "  replicactl create vm1 --size 20G,10G --copies 3 --mode sync\n"
    "  replicactl create vm2 --adopt /dev/vg0/vm2 --size 40G --primary a --copies 2";

const char* const switchover_details =
    "The primary holds the guest's writes, drains and flushes them, waits until the new primary\n"
    "has applied the last one, compares sequence and digest, and hands over; the hypervisor\n"
    "reconnects. If anything fails, or the deadline passes, the old primary goes on as if nothing\n"
    "had been asked. On success the proof is printed.";

const char* const handover_details =
    "HOST opens the volume's disks at once, writable in name, and a hypervisor may start its half "
    "of\n"
    "a live migration there: reads are answered with what the guest has written so far, the first\n"
    "write moves the role, with all the checks of `switchover`. Until it is finished or ended the "
    "volume\n"
    "is `sync`, whatever its mode is. If the migration fails, the source's next write takes the "
    "role\n"
    "back, as long as no write of the target's guest was let in.\n\n"
    "  replicactl handover vm1 --to b      # then migrate\n"
    "  replicactl handover vm1 --finish    # the VM runs on b: the role moves if it has not\n"
    "  replicactl handover vm1 --end       # the VM was not migrated: all stays as it is";

const char* const failover_details =
    "Asks a majority of the voters for a new epoch, which fences the old primary, lets the most\n"
    "complete replica that is in sync apply its log, and starts the export there. Refused, with "
    "what\n"
    "every copy has, while somebody still hears the primary, without a majority, or without a\n"
    "replica in sync; --force does it all the same, and what the chosen copy lacks is lost.";

const char* const restart_details =
    "Ends nbdkit after everything answered is durable, and starts the one that is installed now,\n"
    "with the plugin that is installed now. The NBD socket stays open meanwhile: guests wait, are\n"
    "connected again and send what was not answered. For upgrades; see docs/operations.md.";

const char* const attach_details =
    "Connects a disk of a volume that is served on this machine to /dev/nbdN (the kernel's module\n"
    "nbd), for what takes a device rather than NBD: Xen, Firecracker, a mount. A process stays in\n"
    "the background and connects the device again when the export was exchanged or has crashed; "
    "its\n"
    "I/O waits meanwhile and does not fail before --dead-timeout. `detach` ends both.\n\n"
    "  replicactl attach vm1 /dev/nbd0";

const char* const delete_details =
    "Without --force the command lists what would be lost and refuses (exit code 3). An active\n"
    "volume is never deleted. Replicas are removed first and the primary last, so that a delete\n"
    "that is cut short leaves the newest copy. Adopted images are kept.";

const char* const import_details =
    "Copies a raw file, a block device or an NBD URI into a disk, by nbdcopy through the export's\n"
    "socket; so it runs on the primary's machine. The volume is activated if need be, and must\n"
    "not be in use.\n\n"
    "  replicactl import vm1 debian.raw --disk vda\n"
    "  replicactl import vm1 nbd://10.0.0.9/export";

const char* const set_details =
    "Settings: mode (async, semi-sync, sync), congestion (throttle, detach), on_local_error\n"
    "(hold, fail), autostart (yes, no), ring_bytes, log_bytes, segment_bytes (sizes),\n"
    "ack_timeout_ms, quorum_timeout_ms (times; 0: requests wait for a quorum without end). The\n"
    "primary is told first, then the others; a member that cannot be reached is named, and the\n"
    "exit code is 4. A mode that asks more of the replicas reaches them before the primary: then\n"
    "nothing changes there while one that is in sync cannot be reached.\n\n"
    "  replicactl set vm1 mode=semi-sync ack_timeout=3s";

const char* const resolve_details =
    "Two histories exist when a replica was made the primary by force while others went on. Where\n"
    "they meet, both stop (state split). The hosts that have another history than HOST give it up\n"
    "and become replicas of the kept one; what they knew of theirs is kept beside their state.\n"
    "Then `activate` serves the kept history.\n\n"
    "  replicactl resolve vm1 --keep b";

const char* const wait_details =
    "WHAT is `in-sync` (every replica is connected and in sync), `serving` (the export is up) or\n"
    "`primary=HOST`. With --timeout, exit code 124 when the time is over.";

const char* const resync_details =
    "Compares all disks with a replica's, beside live writes, and sends what differs: at once,\n"
    "for one that is `detached` and would otherwise wait. What only it has is kept aside there.";

const char* const verify_details =
    "Reads all disks from the media of the primary and of its replicas, beside live writes, and\n"
    "compares them block by block; bit rot is found, lag is not mistaken for it. Exit code 1 if\n"
    "something differs. With --repair the primary writes such blocks anew through the stream, if\n"
    "another replica has them as it does; --force: also if none has. Interrupting the command\n"
    "lets it go on: `status` shows it, --stop ends it.\n\n"
    "  replicactl verify vm1\n"
    "  replicactl verify vm1 --host b --repair --force";

const char* const readmit_details =
    "A host whose image is another file or device than before, or was changed by somebody else,\n"
    "does not use it. This lets it look again, and if nothing has changed takes the image: the\n"
    "primary compares all of it. With --force a replica's image counts as right without that, and\n"
    "a primary's as all there is: what it lacks is lost.";

const char* const add_replica_details =
    "A witness votes and has no images: with two copies it makes a failover possible.\n\n"
    "  replicactl add-replica vm1 --witness c";

const char* const lost_writes_details =
    "A host that comes back with writes that the volume has gone on without keeps them in a file\n"
    "before it is made equal to the others. Lists these files; with --host and --file shows the\n"
    "ranges of one, --extract writes their content, --remove --force removes it.\n\n"
    "  replicactl lost-writes vm1\n"
    "  replicactl lost-writes vm1 --host a --file 1 --extract /tmp/lost";

const Command readmit_command{"readmit",
                              "NAME",
                              "Take a host's image that is another one than before",
                              readmit_details,
                              1,
                              1,
                              true,
                              add_readmit_options,
                              run_readmit};

const Command verify_command{"verify",
                             "NAME",
                             "Compare the replicas' disks with the primary's, block by block",
                             verify_details,
                             1,
                             1,
                             true,
                             add_verify_options,
                             run_verify};

const Command lost_writes_command{"lost-writes",
                                  "NAME",
                                  "List and show writes that a failover left behind",
                                  lost_writes_details,
                                  1,
                                  1,
                                  true,
                                  add_lost_writes_options,
                                  run_lost_writes};

const Command failover_command{"failover",
                               "NAME",
                               "Let a replica take over when the primary is lost",
                               failover_details,
                               1,
                               1,
                               true,
                               add_failover_options,
                               run_failover};

const Command resolve_command{"resolve",
                              "NAME",
                              "Choose one of two histories that a forced failover has made",
                              resolve_details,
                              1,
                              1,
                              true,
                              add_resolve_options,
                              run_resolve};

const Command restart_command{"restart",
                              "NAME",
                              "Start the NBD export anew under running guests",
                              restart_details,
                              1,
                              1,
                              true,
                              nullptr,
                              run_restart};

const Command attach_command{"attach",
                             "NAME [DEVICE]",
                             "Make a disk a kernel device (/dev/nbdN) that survives restarts",
                             attach_details,
                             1,
                             2,
                             true,
                             add_attach_options,
                             run_attach};

const Command detach_command{"detach",
                             "NAME|DEVICE",
                             "Disconnect a device that `attach` has made",
                             "Refused while it is in use (mounted, for instance).",
                             1,
                             1,
                             false,
                             add_detach_options,
                             run_detach};

const Command import_command{"import",
                             "NAME FILE|NBD-URI",
                             "Fill a disk from a raw file, a device or an NBD export",
                             import_details,
                             2,
                             2,
                             true,
                             add_import_options,
                             run_import};

const Command handover_command{"handover",
                               "NAME",
                               "Prepare the live migration of a running VM to another host",
                               handover_details,
                               1,
                               1,
                               true,
                               add_handover_options,
                               run_handover};

const Command wait_command{"wait",
                           "NAME",
                           "Wait for a state of a volume",
                           wait_details,
                           1,
                           1,
                           true,
                           add_wait_options,
                           run_wait};

}  // namespace

const std::vector<Command>& all_commands() {
  static const std::vector<Command> commands{
      {"hosts", "", "Show the hosts and their metrics", "", 0, 0, false, nullptr, run_hosts},
      {"place",
       "",
       "Show which hosts a new volume would get, and why",
       "Changes nothing.\n\n  replicactl place --size 20G --copies 2 --explain",
       0,
       0,
       false,
       add_place_options,
       run_place},
      {"create",
       "NAME",
       "Create a volume and its images on the chosen hosts",
       create_details,
       1,
       1,
       true,
       add_create_options,
       run_create},
      {"list", "", "List the volumes of all hosts", "", 0, 0, false, nullptr, run_list},
      {"status",
       "[NAME]",
       "Show roles, states, watermarks and lag of one volume or of all",
       "",
       0,
       1,
       true,
       add_status_options,
       run_status},
      {"activate",
       "NAME",
       "Start the NBD export on the primary",
       "Says where it can be opened; repeating it is harmless.",
       1,
       1,
       true,
       nullptr,
       run_activate},
      {"deactivate",
       "NAME",
       "Stop the NBD export cleanly",
       "Detach the disk from the guest first.",
       1,
       1,
       true,
       nullptr,
       run_deactivate},
      restart_command,
      {"attach-info",
       "NAME",
       "Print NBD URI, QEMU options and libvirt XML of each disk",
       "",
       1,
       1,
       true,
       add_attach_info_options,
       run_attach_info},
      attach_command,
      detach_command,
      {"switchover",
       "NAME",
       "Move the running volume to another host, with proof",
       switchover_details,
       1,
       1,
       true,
       add_switchover_options,
       run_switchover},
      handover_command,
      failover_command,
      resolve_command,
      {"set",
       "NAME KEY=VALUE..",
       "Change settings of a volume",
       set_details,
       2,
       many,
       true,
       nullptr,
       run_set},
      {"resync",
       "NAME",
       "Compare all disks with a replica's, and send what differs",
       resync_details,
       1,
       1,
       true,
       add_resync_options,
       run_resync},
      verify_command,
      readmit_command,
      lost_writes_command,
      {"add-replica",
       "NAME [HOST]",
       "Add a copy on HOST, or on the host with the best score, or a witness",
       add_replica_details,
       1,
       2,
       true,
       add_add_replica_options,
       run_add_replica},
      {"remove-replica",
       "NAME HOST",
       "Remove the copy on HOST",
       "Refused without --force while that host keeps lost writes (`replicactl lost-writes`).",
       2,
       2,
       true,
       add_remove_replica_options,
       run_remove_replica},
      {"delete",
       "NAME",
       "Delete a volume and its images",
       delete_details,
       1,
       1,
       true,
       add_delete_options,
       run_delete},
      import_command,
      wait_command,
  };
  return commands;
}

const Command* find_command(std::string_view name) {
  const auto& commands = all_commands();
  const auto it = std::find_if(
      commands.begin(), commands.end(), [&](const Command& c) { return c.name == name; });
  return it == commands.end() ? nullptr : &*it;
}

std::string text_option(const OptionValues& values, const char* name) {
  return values.count(name) > 0 ? values[name].as<std::string>() : std::string();
}

Result<std::uint32_t> deadline_option(const OptionValues& values, std::uint32_t otherwise) {
  const std::string text = text_option(values, "deadline");
  if (text.empty()) return otherwise;
  const auto deadline_ms = parse_duration_ms(text);
  if (!deadline_ms)
    return fail(Errc::invalid_argument, "--deadline: {}", deadline_ms.error().message);
  if (*deadline_ms < switchover_deadline_ms_min || *deadline_ms > switchover_deadline_ms_max)
    return fail(Errc::invalid_argument, "--deadline is not between 100 ms and 1 h");
  return static_cast<std::uint32_t>(*deadline_ms);
}

std::string text_of(const nlohmann::json& answer, const char* name) {
  const auto it = answer.find(name);
  return it != answer.end() && it->is_string() ? it->get<std::string>() : std::string();
}

}  // namespace replicad::ctl
