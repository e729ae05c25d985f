#include "core/vote/changes.h"

#include <algorithm>

#include "core/base/limits.h"

namespace replicad {

namespace {

bool lists(const std::vector<std::string>& hosts, std::string_view host) {
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

tl::unexpected<Error> another_primary(const Record& base) {
  return with_hint(
      fail(Errc::stale_epoch, "{} is the primary since epoch {}", base.primary, base.epoch.number),
      "this host follows it by itself");
}

/// A handover goes on only between two hosts that are in sync.
void drop_broken_handover(Record& record) {
  if (!record.handover) return;
  const bool whole =
      lists(record.in_sync, record.handover->from) && lists(record.in_sync, record.handover->to);
  if (!whole) record.handover.reset();
}

tl::unexpected<Error> another_term(const Record& base, const Epoch& expected) {
  return fail(Errc::stale_epoch,
              "epoch {} is over: {} is the primary in epoch {}",
              expected.number,
              base.primary,
              base.epoch.number);
}

}  // namespace

RecordChange change_nothing() {
  return [](const Record& base, const Epoch& /*fence*/) -> Result<Record> { return base; };
}

RecordChange change_version() {
  return [](const Record& base, const Epoch& /*fence*/) -> Result<Record> {
    return successor(base, base);
  };
}

RecordChange change_claim(ClaimTerm claim) {
  return [claim = std::move(claim)](const Record& base, const Epoch& fence) -> Result<Record> {
    if (base.primary != claim.host) return another_primary(base);
    const bool mine = base.epoch.tag == claim.tag && base.epoch.number > claim.epoch_min;
    if (mine) return base;
    Record next = base;
    next.epoch = {std::max({base.epoch.number, fence.number, claim.epoch_min}) + 1, claim.tag};
    if (!claim.keep_in_sync) next.in_sync = {claim.host};
    const bool moved = next.handover && next.handover->term != 0;
    if (moved && base.epoch.number != next.handover->term) next.handover.reset();
    drop_broken_handover(next);
    return successor(base, std::move(next));
  };
}

RecordChange change_in_sync(std::string host, Epoch epoch, std::vector<std::string> in_sync) {
  return [host = std::move(host), epoch, in_sync = std::move(in_sync)](
             const Record& base, const Epoch& /*fence*/) -> Result<Record> {
    if (base.primary != host) return another_primary(base);
    if (base.epoch != epoch) return another_term(base, epoch);
    // Whoever is no data member any more was removed while this was under way.
    Record next = base;
    next.in_sync.clear();
    for (const MemberState& member : base.members) {
      if (!member.witness && lists(in_sync, member.host)) next.in_sync.push_back(member.host);
    }
    if (!lists(next.in_sync, host))
      return fail(Errc::invalid_argument, "the in-sync set lacks the primary {}", host);
    if (next.in_sync == base.in_sync) return base;
    drop_broken_handover(next);
    return successor(base, std::move(next));
  };
}

namespace {

/// What becomes of the handover on record when the role moves to `target`.
Result<std::optional<HandoverState>> handover_after(const Record& base,
                                                    const Promotion& promotion) {
  if (!promotion.handover) return std::optional<HandoverState>();
  if (!base.handover || base.handover->id != *promotion.handover)
    return fail(Errc::refused, "the handover to {} is not on record any more", promotion.target);
  HandoverState next = *base.handover;
  if (promotion.target != (next.term == 0 ? next.to : next.from))
    return fail(Errc::refused, "the handover does not move the role to {} now", promotion.target);
  if (next.term != 0) return std::optional<HandoverState>();
  next.term = promotion.epoch.number;
  return std::optional<HandoverState>(next);
}

}  // namespace

RecordChange change_prepare_handover(Epoch epoch, HandoverState handover) {
  return [epoch, handover = std::move(handover)](const Record& base,
                                                 const Epoch& /*fence*/) -> Result<Record> {
    if (base.primary != handover.from) return another_primary(base);
    if (base.epoch != epoch) return another_term(base, epoch);
    if (base.handover == handover) return base;
    if (base.handover)
      return fail(Errc::busy, "a handover to {} is on record already", base.handover->to);
    if (!lists(base.in_sync, handover.to))
      return fail(Errc::refused, "{} is not in the in-sync set", handover.to);
    Record next = base;
    next.handover = handover;
    return successor(base, std::move(next));
  };
}

RecordChange change_end_handover(std::string host, Epoch epoch, std::uint32_t id) {
  return [host = std::move(host), epoch, id](const Record& base,
                                             const Epoch& /*fence*/) -> Result<Record> {
    if (base.primary != host) return another_primary(base);
    if (base.epoch != epoch) return another_term(base, epoch);
    if (!base.handover || base.handover->id != id) return base;
    Record next = base;
    next.handover.reset();
    return successor(base, std::move(next));
  };
}

RecordChange change_promote(Promotion promotion) {
  return [promotion = std::move(promotion)](const Record& base,
                                            const Epoch& /*fence*/) -> Result<Record> {
    if (base.epoch == promotion.epoch && base.primary == promotion.target) return base;
    if (base.epoch != promotion.from) return another_term(base, promotion.from);
    if (!lists(base.in_sync, promotion.target))
      return fail(Errc::refused, "{} is not in the in-sync set", promotion.target);
    if (promotion.epoch.number <= base.epoch.number) {
      return fail(Errc::stale_epoch,
                  "epoch {} is not above epoch {}",
                  promotion.epoch.number,
                  base.epoch.number);
    }
    auto handover = handover_after(base, promotion);
    if (!handover) return tl::unexpected(handover.error());
    Record next = base;
    next.primary = promotion.target;
    next.epoch = promotion.epoch;
    next.handover = std::move(*handover);
    return successor(base, std::move(next));
  };
}

RecordChange change_failover(Failover failover) {
  return
      [failover = std::move(failover)](const Record& base, const Epoch& fence) -> Result<Record> {
        const bool mine = base.primary == failover.target && base.epoch.tag == failover.tag &&
                          base.epoch.number > failover.from.number;
        if (mine) return base;
        if (base.epoch != failover.from) return another_term(base, failover.from);
        if (!is_data_member(base, failover.target))
          return fail(Errc::refused, "{} has no images of the volume", failover.target);
        if (!failover.any_member && !lists(base.in_sync, failover.target)) {
          return fail(Errc::refused,
                      "{} is not in the in-sync set: it may lack acknowledged writes",
                      failover.target);
        }
        Record next = base;
        next.primary = failover.target;
        next.epoch = {std::max(base.epoch.number, fence.number) + 1, failover.tag};
        next.in_sync = {failover.target};
        next.handover.reset();
        return successor(base, std::move(next));
      };
}

RecordChange change_add_member(std::string host, MemberState member) {
  return [host = std::move(host), member = std::move(member)](
             const Record& base, const Epoch& /*fence*/) -> Result<Record> {
    if (base.primary != host) return another_primary(base);
    if (const MemberState* there = find_member(base.members, member.host)) {
      if (*there == member) return base;
      return fail(Errc::exists, "{} is a member already, with other addresses", member.host);
    }
    if (base.members.size() >= members_max)
      return fail(Errc::refused, "{} members, the most a volume can have", members_max);
    Record next = base;
    next.members.push_back(member);
    return successor(base, std::move(next));
  };
}

RecordChange change_remove_member(std::string host, std::string member) {
  return [host = std::move(host), member = std::move(member)](
             const Record& base, const Epoch& /*fence*/) -> Result<Record> {
    if (base.primary != host) return another_primary(base);
    if (member == host) return fail(Errc::refused, "{} is the primary", host);
    if (find_member(base.members, member) == nullptr) return base;
    Record next = base;
    std::erase_if(next.members, [&](const MemberState& item) { return item.host == member; });
    std::erase(next.in_sync, member);
    drop_broken_handover(next);
    return successor(base, std::move(next));
  };
}

Result<Record> forced_record(const Record& base,
                             const std::string& target,
                             const std::vector<std::string>& kept,
                             const Epoch& epoch) {
  if (!is_data_member(base, target) || !lists(kept, target))
    return fail(Errc::refused, "{} has no images of the volume", target);
  Record next = base;
  next.primary = target;
  next.in_sync = {target};
  next.epoch = epoch;
  next.fork = epoch.tag;
  next.handover.reset();
  std::erase_if(next.members, [&](const MemberState& member) { return !lists(kept, member.host); });
  next = successor(base, std::move(next));
  next.before.reset();
  return next;
}

}  // namespace replicad
