#include "ctl/volume_report.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/control/members.h"
#include "core/control/text.h"
#include "ctl/context.h"

namespace replicad::ctl {

using Json = nlohmann::json;

namespace {

const VolumeView* latest_view(const std::vector<MemberReport>& reports) {
  const VolumeView* latest = nullptr;
  for (const MemberReport& report : reports) {
    if (!report.volume) continue;
    if (latest == nullptr || latest->epoch.number < report.volume->epoch.number)
      latest = &*report.volume;
  }
  return latest;
}

void fill_from_self(const VolumeView& own, MemberRow& row) {
  row.state = own.state;
  row.error = own.error;
  if (own.role == Role::primary) {
    row.received = row.logged = row.durable = row.applied = own.history.sequence;
    row.digest = own.history.digest;
    return;
  }
  if (!own.replica) return;
  row.consistent = own.replica->consistent;
  row.is_short = own.replica->is_short;
  row.received = own.replica->received;
  row.logged = own.replica->logged;
  row.durable = own.replica->durable;
  row.applied = own.replica->applied;
  row.digest = own.replica->applied_digest;
  row.backlog_bytes = own.replica->backlog_bytes;
}

/// What only the primary knows; its word on the state goes before the replica's own.
void fill_from_primary(const ReplicaView& seen, MemberRow& row) {
  row.in_sync = seen.in_sync;
  row.lag_bytes = seen.lag_bytes;
  row.lag_seconds = seen.lag_seconds;
  row.copy = seen.copy;
  if (seen.error) row.error = seen.error;
  if (row.reachable || seen.state != "disconnected") row.state = seen.state;
  if (row.reachable) {
    // The primary's word is up to half a second older than the replica's own.
    row.sent = std::max(seen.sent, row.received.value_or(0));
    return;
  }
  row.sent = seen.sent;
  row.received = seen.received;
  row.logged = seen.logged;
  row.durable = seen.durable;
  row.applied = seen.applied;
  row.digest = seen.digest;
}

MemberRow make_row(const std::string& host,
                   const VolumeReport& report,
                   const std::vector<MemberReport>& reports) {
  MemberRow row;
  row.host = host;
  const bool is_member = report.view->member(host) != nullptr;
  const MemberReport* own = report_of(reports, host);
  const MemberView* member = report.view->member(host);
  row.role = !is_member                     ? "none"
             : member->witness              ? "witness"
             : report.view->primary == host ? "primary"
                                            : "replica";
  const bool broken = own != nullptr && says_broken(*own);
  row.reachable = own != nullptr && (own->volume || says_not_found(*own) || broken);
  row.votes = own != nullptr && own->volume.has_value();
  row.state = broken ? "failed" : row.reachable ? "missing" : "unreachable";
  row.in_sync = is_member && report.view->is_in_sync(host);
  if (own != nullptr && own->volume) fill_from_self(*own->volume, row);
  if (own != nullptr && !own->volume && !says_not_found(*own)) row.error = own->volume.error();
  const ReplicaView* seen = report.primary == nullptr ? nullptr : report.primary->replica_on(host);
  const bool stopped = report.state == "stopped";
  if (seen != nullptr && is_member && row.state != "missing" && !broken) {
    const std::string own_state = row.state;
    fill_from_primary(*seen, row);
    // With the export stopped nobody is connected, which says nothing about the replica.
    if (stopped && row.reachable && own_state == "inconsistent") row.state = own_state;
  }
  return row;
}

template <typename T>
Json nullable(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

Json row_json(const MemberRow& row) {
  Json copy;
  if (row.copy)
    copy = {{"done_bytes", row.copy->done_bytes}, {"total_bytes", row.copy->total_bytes}};
  return {{"host", row.host},
          {"role", row.role},
          {"state", row.state},
          {"reachable", row.reachable},
          {"in_sync", row.in_sync},
          {"consistent", nullable(row.consistent)},
          {"short", nullable(row.is_short)},
          {"sent", nullable(row.sent)},
          {"received", nullable(row.received)},
          {"logged", nullable(row.logged)},
          {"durable", nullable(row.durable)},
          {"applied", nullable(row.applied)},
          {"digest", row.digest},
          {"lag_bytes", nullable(row.lag_bytes)},
          {"lag_seconds", nullable(row.lag_seconds)},
          {"backlog_bytes", nullable(row.backlog_bytes)},
          {"copy", std::move(copy)},
          {"error", row.error ? error_json(*row.error) : Json()}};
}

Json epoch_json(const Epoch& epoch) {
  return {{"number", epoch.number}, {"tag", epoch.tag}};
}

}  // namespace

std::size_t VolumeReport::replicas_in_sync() const {
  return static_cast<std::size_t>(
      std::count_if(members.begin(), members.end(), [](const MemberRow& row) {
        return row.role == "replica" && row.in_sync;
      }));
}

VolumeReport make_volume_report(const std::string& name, const std::vector<MemberReport>& reports) {
  VolumeReport report;
  report.name = name;
  const auto found = find_primary(name, reports);
  report.primary = found ? &*(*found)->volume : nullptr;
  report.view = found ? report.primary : latest_view(reports);
  RD_CHECK(report.view != nullptr);
  report.state = report.primary != nullptr ? report.primary->state : "unknown";
  report.problems = volume_problems(name, reports);
  if (report.view->member(report.view->primary) != nullptr) {
    report.members.push_back(make_row(report.view->primary, report, reports));
  }
  for (const MemberView& member : report.view->members) {
    if (member.host != report.view->primary)
      report.members.push_back(make_row(member.host, report, reports));
  }
  for (const MemberReport& own : reports) {
    if (own.volume && report.view->member(own.host) == nullptr) {
      report.members.push_back(make_row(own.host, report, reports));
    }
  }
  return report;
}

namespace {

/// The record without its primary: who could still take over.
bool can_fail_over(const VolumeReport& report) {
  const auto& record = report.view->vote.record;
  if (!record) return false;
  std::vector<std::string> others;
  bool copy = false;
  for (const MemberRow& row : report.members) {
    if (!row.votes || row.host == record->primary || row.role == "none") continue;
    others.push_back(row.host);
    copy = copy || (row.in_sync && row.role == "replica" && !row.is_short.value_or(false));
  }
  return copy && has_quorum(*record, others, true);
}

}  // namespace

std::string failover_text(const VolumeReport& report) {
  if (can_fail_over(report))
    return fmt::format("possible: `replicactl failover {}` if the primary is lost", report.name);
  if (report.view->members.size() < 2) return "not possible: there is one copy";
  return "not possible now: without the primary there is no majority of the voters, or no replica "
         "in sync";
}

std::string verify_text(const VerifyView& verify) {
  if (verify.state == "running") {
    const VerifyProgress at = progress_of(verify);
    const double part = at.total_bytes == 0 ? 0.0
                                            : static_cast<double>(at.done_bytes) * 100.0 /
                                                  static_cast<double>(at.total_bytes);
    return fmt::format("under way, {:.1f}% of {}", part, format_bytes(at.total_bytes));
  }
  std::string text;
  for (const VerifySideView& side : verify.replicas) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", printable(side.host), side_text(side));
  }
  return fmt::format("{} ({} ago)", text, format_seconds(verify.ended_seconds_ago.value_or(0)));
}

VerifyProgress progress_of(const VerifyView& verify) {
  // One that has not begun has as much to compare as the others.
  std::uint64_t each = 0;
  for (const VerifySideView& side : verify.replicas)
    each = std::max(each, side.total_bytes);
  VerifyProgress at;
  for (const VerifySideView& side : verify.replicas) {
    at.total_bytes += each;
    at.done_bytes += side.error ? each : std::min(side.done_bytes, each);
  }
  return at;
}

std::string side_text(const VerifySideView& side) {
  std::string text;
  if (side.is_equal()) text = "is equal";
  if (side.left_blocks() > 0) text = fmt::format("differs in {} block(s)", side.left_blocks());
  if (side.repaired_blocks > 0)
    text += fmt::format("{}{} repaired", text.empty() ? "" : ", ", side.repaired_blocks);
  if (side.not_compared_blocks > 0) {
    text += fmt::format(
        "{}{} block(s) not compared", text.empty() ? "" : ", ", side.not_compared_blocks);
  }
  if (side.state != "done")
    text += fmt::format("{}not compared to the end", text.empty() ? "" : ", ");
  return text;
}

Json unreadable_json(const std::string& name, const std::vector<MemberReport>& reports) {
  return {{"name", name},
          {"primary_known", false},
          {"state", "unknown"},
          {"members", Json::array()},
          {"problems", volume_problems(name, reports)}};
}

Json status_json(const VolumeReport& report) {
  const VolumeView& view = *report.view;
  Json disks = Json::array();
  for (const DiskView& disk : view.disks) {
    disks.push_back({{"name", disk.name},
                     {"bytes", disk.bytes},
                     {"path", disk.path},
                     {"allocated_bytes", disk.allocated_bytes},
                     {"adopted", disk.adopted}});
  }
  Json members = Json::array();
  for (const MemberRow& row : report.members)
    members.push_back(row_json(row));
  Json nbd;
  Json transfer;
  Json handover;
  const VolumeView& known = report.primary != nullptr ? *report.primary : view;
  if (known.vote.record && known.vote.record->handover) {
    const HandoverState& prepared = *known.vote.record->handover;
    handover = {{"from", prepared.from}, {"to", prepared.to}, {"moved", prepared.term != 0}};
  }
  if (report.primary != nullptr && report.primary->nbd) {
    const ExportView& exported = *report.primary->nbd;
    nbd = {{"uri", exported.uri},
           {"socket", exported.socket},
           {"uris", exported.uris},
           {"pid", exported.pid}};
  }
  if (report.primary != nullptr && report.primary->transfer) {
    transfer = {{"to", report.primary->transfer->to},
                {"epoch", epoch_json(report.primary->transfer->epoch)}};
  }
  Json verify;
  if (report.primary != nullptr && report.primary->verify) verify = report.primary->verify->raw;
  return {{"name", report.name},
          {"uuid", view.uuid},
          {"mode", view.mode},
          {"settings", view.settings},
          {"bytes", view.bytes()},
          {"disks", std::move(disks)},
          {"primary", view.primary},
          {"primary_known", report.primary != nullptr},
          {"state", report.state},
          {"epoch", epoch_json(view.epoch)},
          {"sequence", view.history.sequence},
          {"digest", view.history.digest},
          {"in_sync", view.in_sync},
          {"export", std::move(nbd)},
          {"transfer", std::move(transfer)},
          {"handover", std::move(handover)},
          {"verify", std::move(verify)},
          {"members", std::move(members)},
          {"problems", report.problems},
          {"failover", {{"available", can_fail_over(report)}, {"text", failover_text(report)}}}};
}

}  // namespace replicad::ctl
