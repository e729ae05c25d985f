#include "core/control/members.h"

#include <algorithm>

#include "core/control/text.h"

namespace replicad {

const MemberReport* report_of(const std::vector<MemberReport>& reports, const std::string& host) {
  const auto it = std::find_if(
      reports.begin(), reports.end(), [&](const MemberReport& r) { return r.host == host; });
  return it == reports.end() ? nullptr : &*it;
}

bool says_not_found(const MemberReport& report) {
  return !report.volume && report.volume.error().code == Errc::not_found;
}

bool says_broken(const MemberReport& report) {
  if (report.volume) return false;
  const Errc code = report.volume.error().code;
  return code == Errc::corrupt || code == Errc::version_mismatch || code == Errc::io_error;
}

std::string why_silent(const std::vector<MemberReport>& reports, const std::string& host) {
  const MemberReport* report = report_of(reports, host);
  if (report == nullptr) return "its control address is not known";
  if (report->volume) return {};
  return printable(report->volume.error().message);
}

namespace {

tl::unexpected<Error> refuse(std::string message, std::string hint) {
  return tl::unexpected(Error{Errc::refused, 0, std::move(message), std::move(hint)});
}

}  // namespace

Status check_uuids(const std::string& volume, const std::vector<MemberReport>& reports) {
  const MemberReport* first = nullptr;
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    if (first == nullptr) first = &report;
    if (report.volume->uuid == first->volume->uuid) continue;
    return refuse(fmt::format("{} and {} have different volumes of the name {} (uuids {} and {})",
                              printable(first->host),
                              printable(report.host),
                              volume,
                              first->volume->uuid,
                              report.volume->uuid),
                  "one of them is a leftover or belongs to another group of hosts; ask the right "
                  "hosts by --hosts");
  }
  return {};
}

namespace {

/// Nobody says it is the primary: which error that is.
tl::unexpected<Error> no_primary(const std::string& volume,
                                 const std::vector<MemberReport>& reports) {
  const VolumeView* latest = nullptr;
  std::vector<std::string> silent;
  const Error* first_error = nullptr;
  const MemberReport* broken = nullptr;
  for (const MemberReport& report : reports) {
    if (broken == nullptr && says_broken(report)) broken = &report;
    if (report.volume) {
      if (latest == nullptr || latest->epoch.number < report.volume->epoch.number)
        latest = &*report.volume;
    } else if (!says_not_found(report)) {
      silent.push_back(printable(report.host));
      if (first_error == nullptr) first_error = &report.volume.error();
    }
  }
  if (latest != nullptr) {
    const std::string reason = why_silent(reports, latest->primary);
    if (reason.empty() || (report_of(reports, latest->primary) != nullptr &&
                           says_not_found(*report_of(reports, latest->primary)))) {
      return refuse(
          fmt::format("no host says that it is the primary of {}; {} takes {} for it",
                      volume,
                      printable(latest->host),
                      printable(latest->primary)),
          "see `replicactl status`; a move that is being decided settles by itself within seconds");
    }
    return tl::unexpected(
        Error{Errc::unreachable,
              0,
              fmt::format("the primary of {}, {}, does not answer: {}",
                          volume,
                          printable(latest->primary),
                          reason),
              fmt::format("start replicad there and try again, or let a replica take over: "
                          "`replicactl failover {}`",
                          volume)});
  }
  if (broken != nullptr) {
    const Error& error = broken->volume.error();
    return tl::unexpected(
        Error{error.code,
              error.sys_errno,
              fmt::format("{}: {}", printable(broken->host), printable(error.message)),
              printable(error.hint)});
  }
  if (!silent.empty()) {
    return tl::unexpected(
        Error{Errc::unreachable,
              0,
              fmt::format("no host that answers has a volume {}; no answer from {} ({})",
                          volume,
                          format_list(silent),
                          printable(first_error->message)),
              "start replicad there, or correct the addresses in the hosts list"});
  }
  return tl::unexpected(Error{Errc::not_found,
                              0,
                              fmt::format("there is no volume {}", volume),
                              "`replicactl list` shows the volumes of the hosts asked"});
}

}  // namespace

Result<const MemberReport*> find_primary(const std::string& volume,
                                         const std::vector<MemberReport>& reports) {
  RD_TRY(check_uuids(volume, reports));
  const MemberReport* primary = nullptr;
  const MemberReport* rival = nullptr;
  for (const MemberReport& report : reports) {
    if (!report.volume || report.volume->role != Role::primary) continue;
    if (primary == nullptr || report.volume->epoch.number > primary->volume->epoch.number) {
      primary = &report;
      rival = nullptr;
    } else if (report.volume->epoch.number == primary->volume->epoch.number) {
      rival = &report;
    }
  }
  if (primary == nullptr) return no_primary(volume, reports);
  if (rival != nullptr && primary->volume->state == "split" && primary->volume->error)
    return tl::unexpected(*primary->volume->error);
  if (rival != nullptr) {
    return refuse(fmt::format("{} and {} both say that they are the primary of {} in epoch {}",
                              printable(primary->host),
                              printable(rival->host),
                              volume,
                              primary->volume->epoch.number),
                  "nothing is done until one of them has given way; do not write to either before "
                  "you know which");
  }
  for (const MemberReport& report : reports) {
    if (!report.volume || report.volume->role == Role::primary) continue;
    if (report.volume->epoch.number <= primary->volume->epoch.number) continue;
    if (report.volume->primary == primary->host) continue;
    return refuse(fmt::format("{} is the primary of {} in epoch {}, but {} follows {} in epoch {}",
                              printable(primary->host),
                              volume,
                              primary->volume->epoch.number,
                              printable(report.host),
                              printable(report.volume->primary),
                              report.volume->epoch.number),
                  fmt::format("make {} reachable, so that it is clear which of them is the primary",
                              printable(report.volume->primary)));
  }
  return primary;
}

std::vector<std::string> describe_loss(const std::vector<MemberReport>& reports) {
  std::vector<std::string> lines;
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    for (const DiskView& disk : report.volume->disks) {
      lines.push_back(fmt::format("{}: disk {}, {} ({} of them on disk), {}{}",
                                  printable(report.host),
                                  printable(disk.name),
                                  format_bytes(disk.bytes),
                                  format_bytes(disk.allocated_bytes),
                                  printable(disk.path),
                                  disk.adopted ? ": adopted, the image is kept" : ""));
    }
    if (report.volume->lost_files > 0) {
      lines.push_back(
          fmt::format("{}: {} file(s) of lost writes, {}, the only copy of what is in "
                      "them (`replicactl lost-writes`)",
                      printable(report.host),
                      report.volume->lost_files,
                      format_bytes(report.volume->lost_bytes)));
    }
  }
  return lines;
}

std::vector<std::string> volume_problems(const std::string& volume,
                                         const std::vector<MemberReport>& reports) {
  std::vector<std::string> problems;
  const auto found = find_primary(volume, reports);
  if (!found) {
    problems.push_back(fmt::format("{}; {}", found.error().message, found.error().hint));
    return problems;
  }
  const VolumeView& primary = *(*found)->volume;
  const auto add_error = [&](const std::string& host, const std::optional<Error>& error) {
    if (!error) return;
    std::string text = fmt::format("{}: {}{}{}",
                                   printable(host),
                                   printable(error->message),
                                   error->hint.empty() ? "" : "; ",
                                   printable(error->hint));
    // The primary may have it from the member itself.
    if (std::find(problems.begin(), problems.end(), text) == problems.end())
      problems.push_back(std::move(text));
  };
  add_error(primary.host, primary.error);
  if (primary.transfer) {
    problems.push_back(fmt::format("{}: a move to {} is being settled",
                                   printable(primary.host),
                                   printable(primary.transfer->to)));
  }
  for (const MemberView& member : primary.members) {
    if (member.host == primary.host) continue;
    const ReplicaView* replica = primary.replica_on(member.host);
    // Nobody is connected to an export that was stopped, which is no problem of a copy that is whole.
    const bool rests = replica != nullptr && primary.state == "stopped" &&
                       replica->state == "disconnected" && primary.is_in_sync(member.host);
    if (replica != nullptr && !rests) add_error(member.host, replica->error);
    if (replica != nullptr && replica->state == "detached" && !replica->error) {
      problems.push_back(
          fmt::format("{} is detached: `replicactl resync {} --host {}` copies it anew",
                      printable(member.host),
                      volume,
                      printable(member.host)));
    }
    const MemberReport* report = report_of(reports, member.host);
    if (report == nullptr || report->volume) {
      if (report != nullptr && !(rests && report->volume->state == "disconnected"))
        add_error(member.host, report->volume->error);
      continue;
    }
    if (says_broken(*report)) {
      add_error(member.host, report->volume.error());
      continue;
    }
    problems.push_back(fmt::format("{} {}",
                                   printable(member.host),
                                   says_not_found(*report)
                                       ? "is a member but has no part of the volume"
                                       : "does not answer: " + why_silent(reports, member.host)));
  }
  if (primary.verify) {
    for (const VerifySideView& side : primary.verify->replicas) {
      if (side.left_blocks() == 0) continue;
      problems.push_back(fmt::format("{}: {} block(s) were found different by the last verify",
                                     printable(side.host),
                                     side.left_blocks()));
    }
  }
  for (const MemberReport& report : reports) {
    if (!report.volume || report.volume->lost_files == 0) continue;
    problems.push_back(
        fmt::format("{} keeps {} file(s) of lost writes: `replicactl lost-writes {}` shows them",
                    printable(report.host),
                    report.volume->lost_files,
                    volume));
  }
  for (const MemberReport& report : reports) {
    if (!report.volume || primary.member(report.host) != nullptr) continue;
    if (report.volume->state == "split") {
      add_error(report.host, report.volume->error);
      continue;
    }
    problems.push_back(fmt::format(
        "{} is no member but still has a part: `replicactl remove-replica {} {}` clears it",
        printable(report.host),
        volume,
        printable(report.host)));
  }
  return problems;
}

}  // namespace replicad
