#include "core/vote/record.h"

#include <algorithm>
#include <set>

#include "core/base/limits.h"
#include "core/base/names.h"

namespace replicad {

namespace {

bool names(const std::vector<std::string>& hosts, std::string_view host) {
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

Status check_record_members(const Record& record) {
  if (record.members.empty() || record.members.size() > members_max) {
    return fail(Errc::invalid_argument,
                "a record of {} members, 1 to {} allowed",
                record.members.size(),
                members_max);
  }
  std::set<std::string_view> hosts;
  for (const MemberState& member : record.members) {
    if (!is_valid_name(member.host) || !hosts.insert(member.host).second) {
      return fail(Errc::invalid_argument, "a record with a bad or repeated member");
    }
  }
  return {};
}

Status check_voters_before(const VoterSet& before) {
  if (before.hosts.empty() || before.hosts.size() > members_max) {
    return fail(Errc::invalid_argument, "a record with {} voters before", before.hosts.size());
  }
  std::set<std::string_view> hosts;
  for (const std::string& host : before.hosts) {
    if (!is_valid_name(host) || !hosts.insert(host).second)
      return fail(Errc::invalid_argument, "a record with a bad or repeated voter before");
  }
  if (!before.tie_break.empty() && !names(before.hosts, before.tie_break))
    return fail(Errc::invalid_argument, "the tie-break before is not among the voters before");
  return {};
}

Status check_handover(const Record& record) {
  const HandoverState& handover = *record.handover;
  if (handover.id == 0 || handover.from == handover.to || handover.term > record.epoch.number)
    return fail(Errc::invalid_argument, "a record with a bad handover");
  if (!names(record.in_sync, handover.from) || !names(record.in_sync, handover.to))
    return fail(Errc::invalid_argument, "a record whose handover names a host that is not in sync");
  if (record.primary != (handover.term == 0 ? handover.from : handover.to))
    return fail(Errc::invalid_argument, "a record whose handover has another primary");
  return {};
}

}  // namespace

const MemberState* find_member(const std::vector<MemberState>& members, std::string_view host) {
  const auto found = std::find_if(
      members.begin(), members.end(), [&](const auto& member) { return member.host == host; });
  return found == members.end() ? nullptr : &*found;
}

bool is_data_member(const Record& record, std::string_view host) {
  const MemberState* member = find_member(record.members, host);
  return member != nullptr && !member->witness;
}

VoterSet voters_of(const Record& record) {
  VoterSet voters;
  for (const MemberState& member : record.members)
    voters.hosts.push_back(member.host);
  voters.tie_break = record.tie_break;
  return voters;
}

bool has_quorum(const VoterSet& voters, const std::vector<std::string>& yes) {
  std::size_t votes = 0;
  std::size_t total = 0;
  for (const std::string& host : voters.hosts) {
    const std::size_t weight = host == voters.tie_break ? 2 : 1;
    total += weight;
    if (names(yes, host)) votes += weight;
  }
  return votes * 2 > total;
}

bool has_quorum(const Record& record, const std::vector<std::string>& yes, bool known_chosen) {
  if (!known_chosen && record.before && !has_quorum(*record.before, yes)) return false;
  return has_quorum(voters_of(record), yes);
}

std::vector<std::string> hosts_to_ask(const Record& record) {
  std::vector<std::string> hosts = voters_of(record).hosts;
  if (!record.before) return hosts;
  for (const std::string& host : record.before->hosts) {
    if (!names(hosts, host)) hosts.push_back(host);
  }
  return hosts;
}

Record successor(const Record& base, Record changed) {
  changed.version = base.version + 1;
  changed.tie_break = changed.members.size() % 2 == 0 ? changed.primary : std::string();
  const VoterSet before = voters_of(base);
  const bool same_voters = before == voters_of(changed);
  changed.before = same_voters ? std::nullopt : std::optional<VoterSet>(before);
  return changed;
}

Record first_record(std::string primary,
                    std::vector<std::string> in_sync,
                    std::vector<MemberState> members) {
  Record record;
  record.primary = std::move(primary);
  record.in_sync = std::move(in_sync);
  record.members = std::move(members);
  record = successor({}, record);
  record.before.reset();
  return record;
}

Status check_record(const Record& record) {
  RD_TRY(check_record_members(record));
  if (record.version == 0 || record.version > counter_max || record.epoch.number > counter_max)
    return fail(Errc::invalid_argument, "a record with a version or epoch out of range");
  if (!is_data_member(record, record.primary)) {
    return fail(Errc::invalid_argument, "a record whose primary has no images");
  }
  std::set<std::string_view> hosts;
  for (const std::string& host : record.in_sync) {
    if (!is_data_member(record, host) || !hosts.insert(host).second)
      return fail(Errc::invalid_argument, "a record with a bad or repeated in-sync member");
  }
  if (!names(record.in_sync, record.primary)) {
    return fail(Errc::invalid_argument, "a record whose in-sync set lacks the primary");
  }
  if (!record.tie_break.empty() && find_member(record.members, record.tie_break) == nullptr)
    return fail(Errc::invalid_argument, "a record whose tie-break is no member");
  if (record.before) RD_TRY(check_voters_before(*record.before));
  if (record.handover) return check_handover(record);
  return {};
}

std::string describe(const Record& record) {
  return fmt::format(
      "version {}, epoch {}, primary {}", record.version, record.epoch.number, record.primary);
}

}  // namespace replicad
