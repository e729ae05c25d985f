#include "core/control/failover_view.h"

#include <algorithm>

#include "core/base/modes.h"
#include "core/control/members.h"
#include "core/control/text.h"

namespace replicad {

namespace {

/// The primary sends a heartbeat every second.
constexpr double heard_lately_seconds = 3;

bool names_host(const std::vector<std::string>& hosts, const std::string& host) {
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

std::optional<Record> latest_record(const std::vector<MemberReport>& reports) {
  const VoterState* latest = nullptr;
  for (const MemberReport& report : reports) {
    if (!report.volume || !report.volume->vote.record) continue;
    if (latest == nullptr || report.volume->vote.accepted > latest->accepted)
      latest = &report.volume->vote;
  }
  return latest == nullptr ? std::nullopt : latest->record;
}

/// A member knows that this record was chosen, so that the voters before it do not matter any more.
bool is_known_chosen(const Record& record, const std::vector<MemberReport>& reports) {
  return std::any_of(reports.begin(), reports.end(), [&](const MemberReport& report) {
    return report.volume && report.volume->vote.chosen && report.volume->vote.record == record;
  });
}

std::string who_hears(const Record& record, const std::vector<MemberReport>& reports) {
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    const VolumeView& view = *report.volume;
    if (view.host == record.primary && view.role == Role::primary &&
        (view.state == "serving" || view.state == "held" || view.state == "transferring"))
      return fmt::format("{} says that it is {}", printable(view.host), printable(view.state));
    if (view.role != Role::replica || !view.replica || !view.replica->connected) continue;
    const double heard = view.replica->heard_seconds.value_or(0);
    if (heard <= heard_lately_seconds)
      return fmt::format("{} heard it {:.1f} s ago", printable(view.host), heard);
  }
  return {};
}

CopyInfo copy_of(const MemberState& member,
                 const Record& record,
                 const std::vector<MemberReport>& reports) {
  CopyInfo copy;
  copy.host = member.host;
  copy.witness = member.witness;
  copy.in_sync = names_host(record.in_sync, member.host);
  const MemberReport* report = report_of(reports, member.host);
  copy.reachable = report != nullptr && report->volume.has_value();
  if (!copy.reachable) {
    copy.silent_because = why_silent(reports, member.host);
    return copy;
  }
  const VolumeView& view = *report->volume;
  copy.epoch = view.history.epoch;
  copy.sequence = view.history.sequence;
  if (view.replica) {
    copy.consistent = view.replica->consistent;
    copy.is_short = view.replica->is_short;
    copy.heard_seconds = view.replica->heard_seconds;
  }
  if (view.role == Role::primary) copy.consistent = view.clean || view.state == "serving";
  // A primary that ended uncleanly has written on behind the last point that it recorded; of a replica whose log could
  // not be read only the checkpoint is known.
  copy.end_known = record.primary == member.host ? view.role == Role::primary && view.clean
                                                 : view.replica && view.replica->open;
  return copy;
}

void add_last_lag(const Record& record,
                  const std::vector<MemberReport>& reports,
                  std::vector<CopyInfo>& copies) {
  const MemberReport* primary = report_of(reports, record.primary);
  if (primary == nullptr || !primary->volume) return;
  for (CopyInfo& copy : copies) {
    const ReplicaView* seen = primary->volume->replica_on(copy.host);
    if (seen == nullptr) continue;
    copy.lag_bytes = seen->lag_bytes;
    copy.lag_seconds = seen->lag_seconds;
    if (!seen->lag_disks.empty()) copy.lacks = seen->lag_disks;
  }
}

/// Nothing that was answered depended on a replica.
bool is_async(const FailoverView& view) {
  return view.mode == mode_name(Mode::async);
}

bool is_further(const CopyInfo& a, const CopyInfo& b) {
  if (a.epoch.number != b.epoch.number) return a.epoch.number > b.epoch.number;
  return a.sequence > b.sequence;
}

/// Of those that answer; nullptr if none does.
const CopyInfo* furthest_copy(const std::vector<CopyInfo>& copies) {
  const CopyInfo* furthest = nullptr;
  for (const CopyInfo& copy : copies) {
    if (copy.reachable && !copy.witness && (furthest == nullptr || is_further(copy, *furthest)))
      furthest = &copy;
  }
  return furthest;
}

/// What the furthest copy's log has beyond the others. They heard the primary as long as these came.
void add_logged_losses(const std::vector<MemberReport>& reports, std::vector<CopyInfo>& copies) {
  const CopyInfo* furthest = furthest_copy(copies);
  for (CopyInfo& copy : copies) {
    const MemberReport* report = report_of(reports, copy.host);
    if (report == nullptr || report->lacks.empty()) continue;
    copy.lacks = report->lacks;
    if (!copy.heard_seconds || !furthest->heard_seconds) continue;
    const double longer = std::max(0.0, *copy.heard_seconds - *furthest->heard_seconds);
    for (DiskLoss& loss : copy.lacks)
      loss.seconds = longer;
  }
}

struct Reason {
  std::string why;
  std::string hint;
};

/// Why the longest of the short copies may not take over either, and what to do.
Reason why_not_longest(const FailoverView& view) {
  const std::string force = "--force takes a copy all the same, and what it lacks is lost";
  std::vector<std::string> silent;
  std::vector<std::string> unknown;
  for (const CopyInfo& copy : view.copies) {
    if (!copy.in_sync) continue;
    if (!copy.reachable) silent.push_back(printable(copy.host));
    if (copy.reachable && !copy.end_known) unknown.push_back(printable(copy.host));
  }
  if (!silent.empty()) {
    return {fmt::format("the longest of them may take over only when every member in sync answers, "
                        "and {} does not",
                        format_list(silent)),
            "bring it back; " + force};
  }
  if (unknown.empty()) return {"another one is longer", "choose that one; " + force};
  const std::string why = fmt::format(
      "how far the copy of {} goes is not known: it may be the longest", format_list(unknown));
  if (unknown.front() != printable(view.record->primary)) return {why, "repair it; " + force};
  return {why, fmt::format("`replicactl activate {}` serves it there; {}", view.volume, force)};
}

std::string with_copies(const FailoverView& view, std::string message) {
  for (const std::string& line : describe_copies(view))
    message += "\n  " + line;
  return message;
}

tl::unexpected<Error> refuse_failover(const FailoverView& view,
                                      Errc code,
                                      std::string reason,
                                      std::string hint) {
  return tl::unexpected(Error{code, 0, with_copies(view, std::move(reason)), std::move(hint)});
}

/// Whether the target, or anybody if none is asked for, lacks nothing or is the longest of all.
Status check_whole(const FailoverView& view) {
  const std::vector<std::string> able = failover_candidates(view);
  if (view.target.empty() && able.empty()) {
    const bool any_short =
        std::any_of(view.copies.begin(), view.copies.end(), [](const auto& copy) {
          return copy.reachable && copy.in_sync && copy.is_short;
        });
    Reason reason{{},
                  "bring a member that is in sync back; --to HOST --force takes a copy all the "
                  "same, and what it lacks is lost"};
    if (any_short) reason = why_not_longest(view);
    return refuse_failover(view,
                           Errc::refused,
                           fmt::format("no replica of {} that answers is in sync and whole: each "
                                       "may lack acknowledged writes{}{}",
                                       view.volume,
                                       any_short ? "; " : "",
                                       reason.why),
                           reason.hint);
  }
  const auto target = std::find_if(view.copies.begin(), view.copies.end(), [&](const auto& copy) {
    return copy.host == view.target;
  });
  const bool lacks = target != view.copies.end() && target->is_short && !is_async(view) &&
                     !names_host(able, view.target);
  if (!lacks) return {};
  Reason reason{{},
                "choose a member without that word, or bring the primary back; --force takes this "
                "copy all the same, and what it lacks is lost"};
  if (able.empty()) reason = why_not_longest(view);
  return refuse_failover(view,
                         Errc::refused,
                         fmt::format("{} may lack acknowledged writes of {}: it crashed, and no "
                                     "primary has found since that nothing is missing{}{}",
                                     printable(view.target),
                                     view.volume,
                                     reason.why.empty() ? "" : "; ",
                                     reason.why),
                         reason.hint);
}

}  // namespace

FailoverView look_for_failover(const std::string& target,
                               const std::vector<MemberReport>& reports) {
  FailoverView view;
  view.target = target;
  view.record = latest_record(reports);
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    view.volume = report.volume->name;
    view.mode = report.volume->mode;
  }
  if (!view.record) return view;
  if (view.record->handover) view.mode = mode_name(Mode::sync);
  std::vector<std::string> answering;
  for (const MemberState& member : view.record->members)
    view.copies.push_back(copy_of(member, *view.record, reports));
  for (const CopyInfo& copy : view.copies)
    (copy.reachable ? answering : view.silent).push_back(copy.host);
  if (const CopyInfo* furthest = furthest_copy(view.copies)) {
    const Sequence end = furthest->sequence;
    for (CopyInfo& copy : view.copies) {
      if (copy.reachable && !copy.witness && copy.sequence <= end)
        copy.writes_behind = end - copy.sequence;
    }
  }
  view.has_quorum = has_quorum(*view.record, answering, is_known_chosen(*view.record, reports));
  view.primary_alive = who_hears(*view.record, reports);
  add_logged_losses(reports, view.copies);
  add_last_lag(*view.record, reports, view.copies);
  return view;
}

std::vector<LogQuestion> log_questions(const std::vector<MemberReport>& reports) {
  std::vector<LogQuestion> questions;
  const FailoverView view = look_for_failover({}, reports);
  const CopyInfo* furthest = furthest_copy(view.copies);
  if (furthest == nullptr) return questions;
  const MemberReport* knows = report_of(reports, furthest->host);
  if (!knows->volume->replica) return questions;  // a primary has no log
  for (const CopyInfo& copy : view.copies) {
    if (copy.writes_behind.value_or(0) == 0 || !copy.lacks.empty()) continue;
    questions.push_back({copy.host, knows->host, knows->address, copy.sequence});
  }
  return questions;
}

Status check_failover(const FailoverView& view) {
  if (!view.record) return fail(Errc::refused, "no member that answers has a record of the volume");
  const std::string primary = printable(view.record->primary);
  if (!view.primary_alive.empty()) {
    return refuse_failover(
        view,
        Errc::refused,
        fmt::format("the primary {} of {} is alive: {}", primary, view.volume, view.primary_alive),
        fmt::format("`replicactl switchover {}` moves it without a loss; --force fences it",
                    view.volume));
  }
  if (!view.has_quorum) {
    std::vector<std::string> silent;
    for (const std::string& host : view.silent)
      silent.push_back(printable(host));
    return refuse_failover(
        view,
        Errc::unreachable,
        fmt::format("{} of the {} voters of {} do not answer ({}), so nobody can know that {} has "
                    "stopped, nor fence it",
                    view.silent.size(),
                    view.record->members.size(),
                    view.volume,
                    format_list(silent),
                    primary),
        "bring one of them back, or make sure that the primary is off and use --force: that opens "
        "a history of its own. A witness would have made a majority (`create --witness`)");
  }
  if (!view.target.empty() && !names_host(view.record->in_sync, view.target)) {
    return refuse_failover(
        view,
        Errc::refused,
        fmt::format("{} is not in sync: it lacks acknowledged writes of {}, or may",
                    printable(view.target),
                    view.volume),
        "choose a member that is in sync; --force takes this copy all the same, and what it lacks "
        "is lost");
  }
  return check_whole(view);
}

std::vector<std::string> longest_of_short(const Record& record,
                                          const std::vector<CopyInfo>& copies) {
  const CopyInfo* longest = nullptr;
  for (const CopyInfo& copy : copies) {
    if (!copy.in_sync) continue;
    const bool counts = copy.host == record.primary || copy.is_short;
    if (!copy.reachable || !copy.consistent || !copy.end_known || !counts) return {};
    if (longest == nullptr || is_further(copy, *longest)) longest = &copy;
  }
  std::vector<std::string> hosts;
  for (const CopyInfo& copy : copies) {
    if (copy.in_sync && copy.host != record.primary && !is_further(*longest, copy))
      hosts.push_back(copy.host);
  }
  return hosts;
}

std::vector<std::string> failover_candidates(const FailoverView& view, bool with_short) {
  const std::vector<std::string> longest = longest_of_short(*view.record, view.copies);
  std::vector<const CopyInfo*> able;
  for (const CopyInfo& copy : view.copies) {
    const bool takes_over =
        copy.reachable && !copy.witness && copy.in_sync && copy.consistent &&
        copy.host != view.record->primary &&
        (with_short || !copy.is_short || is_async(view) || names_host(longest, copy.host));
    if (takes_over) able.push_back(&copy);
  }
  std::stable_sort(
      able.begin(), able.end(), [](const auto* a, const auto* b) { return is_further(*a, *b); });
  std::vector<std::string> hosts;
  hosts.reserve(able.size());
  for (const CopyInfo* copy : able)
    hosts.push_back(copy->host);
  return hosts;
}

std::vector<std::string> describe_copies(const FailoverView& view) {
  std::vector<std::string> lines;
  for (const CopyInfo& copy : view.copies) {
    const bool was_primary = view.record && copy.host == view.record->primary;
    std::string line = printable(copy.host) + (was_primary ? " (primary)" : "") + ": ";
    if (!copy.reachable) {
      lines.push_back(line + (copy.in_sync ? "in sync, " : "") +
                      "does not answer: " + copy.silent_because);
      continue;
    }
    if (copy.witness) {
      lines.push_back(line + "witness, no copy");
      continue;
    }
    line += copy.in_sync ? "in sync" : "not in sync";
    line += fmt::format(", at write {} of epoch {}", copy.sequence, copy.epoch.number);
    if (!copy.consistent) line += ", incomplete";
    if (copy.is_short) line += ", may lack what it acknowledged before it crashed";
    if (copy.writes_behind.value_or(0) > 0)
      line += fmt::format(", {} writes behind the furthest copy that answers", *copy.writes_behind);
    if (copy.lag_bytes && *copy.lag_bytes > 0) {
      line +=
          fmt::format(", {} behind when the primary last looked", format_bytes(*copy.lag_bytes));
    }
    if (copy.heard_seconds)
      line += fmt::format(", heard the primary {} ago", format_seconds(*copy.heard_seconds));
    lines.push_back(std::move(line));
    for (const DiskLoss& loss : copy.lacks) {
      std::string lost = fmt::format("  it lacks of {}: {} writes, {}",
                                     printable(loss.disk),
                                     loss.writes,
                                     format_bytes(loss.bytes));
      if (loss.seconds) lost += fmt::format(", of the last {}", format_seconds(*loss.seconds));
      lines.push_back(std::move(lost));
    }
  }
  return lines;
}

nlohmann::json copies_json(const FailoverView& view) {
  const auto nullable = [](const auto& value) {
    return value ? nlohmann::json(*value) : nlohmann::json();
  };
  nlohmann::json copies = nlohmann::json::array();
  for (const CopyInfo& copy : view.copies) {
    nlohmann::json lacks = nlohmann::json::array();
    for (const DiskLoss& loss : copy.lacks) {
      lacks.push_back({{"disk", loss.disk},
                       {"writes", loss.writes},
                       {"bytes", loss.bytes},
                       {"seconds", nullable(loss.seconds)}});
    }
    nlohmann::json json{{"host", copy.host},
                        {"witness", copy.witness},
                        {"reachable", copy.reachable},
                        {"in_sync", copy.in_sync},
                        {"consistent", nullptr},
                        {"short", nullptr},
                        {"epoch", nullptr},
                        {"sequence", nullptr},
                        {"writes_behind", nullable(copy.writes_behind)},
                        {"lag_bytes", nullable(copy.lag_bytes)},
                        {"lag_seconds", nullable(copy.lag_seconds)},
                        {"heard_seconds", nullable(copy.heard_seconds)},
                        {"lacks", lacks}};
    if (copy.reachable && !copy.witness) {
      json["consistent"] = copy.consistent;
      json["short"] = copy.is_short;
      json["epoch"] = {{"number", copy.epoch.number}, {"tag", copy.epoch.tag}};
      json["sequence"] = copy.sequence;
    }
    copies.push_back(std::move(json));
  }
  return copies;
}

}  // namespace replicad
