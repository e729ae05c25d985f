#include "tests/sim/activity_model.h"

#include <algorithm>
#include <cerrno>

#include "tests/sim/log_model.h"

namespace replicad::sim {

namespace {

constexpr Sequence unknown_base = counter_max;
constexpr int passes_per_choice = 2;
constexpr int cooling_tries_max = 4;

std::uint64_t regions_in(std::uint64_t disk_bytes) {
  return (disk_bytes + small_region_bytes - 1) / small_region_bytes;
}

}  // namespace

ActivityModel::ActivityModel(
    World& world, Machine& machine, const Options& options, Life life, Setup setup)
    : world_(world),
      machine_(machine),
      planted_(options.planted),
      life_(std::move(life)),
      setup_(std::move(setup)) {
  for (const std::uint64_t bytes : setup_.disk_bytes) {
    entries_.emplace_back(regions_in(bytes));
    heat_.emplace_back(regions_in(bytes), Heat::cold);
  }
}

// --- one after the other

/// A job that waits here must not hold this object, which would then never end.
void ActivityModel::enqueue(Job job) {
  jobs_.push_back(std::move(job));
  if (!running_) run_next();
}

void ActivityModel::run_next() {
  running_ = !jobs_.empty();
  if (!running_) return;
  const Job job = std::move(jobs_.front());
  jobs_.pop_front();
  job([self = shared_from_this()] { self->run_next(); });
}

void ActivityModel::write_pages(std::function<void(int)> done) {
  machine_.io([&machine = machine_, entries = entries_] { machine.activity.entries = entries; },
              life_.guard(std::move(done)),
              true,
              Program::plugin);
}

void ActivityModel::write_header(std::function<void(int)> done) {
  ++header_.generation;
  machine_.io([&machine = machine_, header = header_] { machine.activity.header = header; },
              life_.guard(std::move(done)),
              true,
              Program::plugin);
}

// --- the beginning

void ActivityModel::open(std::function<void(int, Known)> done) {
  const ActivityRecord& found = machine_.activity;
  bool is_continued = found.header.has_value() && !found.entries.empty();
  if (is_continued && !setup_.unclean) is_continued = found.header->clean == setup_.history;
  Known known;
  if (is_continued) {
    world_.reached("activity map of the term before goes on");
    header_ = *found.header;
    entries_ = found.entries;
    if (!header_.terms.empty()) header_.terms.back().end = setup_.history.sequence;
    for (const ActivityHeader::Term& term : header_.terms)
      known.terms.push_back({term.epoch, term.end, &term != &header_.terms.front()});
  }
  const std::optional<HistoryPoint> origin = is_continued ? header_.trail : setup_.history;
  header_.trail.reset();
  if (origin) {
    if (auto trail = find_trail(machine_.trail, setup_.disk_bytes, *origin)) {
      world_.reached("an export begins with a trail");
      known.trail = std::make_shared<const Trail>(std::move(trail->trail));
      header_.trail = origin;
    }
  }
  cold_through_ = setup_.history.sequence;
  inherited_synced_ = !setup_.unclean;
  for (auto& disk : entries_) {
    for (ActivityEntry& one : disk) {
      if ((one & activity_hot) != 0) one = static_cast<ActivityEntry>(activity_hot - 1);
    }
  }
  if (!is_continued) {
    header_.disk_bytes = setup_.disk_bytes;
    for (const std::string& host : setup_.members)
      header_.members.push_back({host, setup_.history.sequence});
    if (setup_.history.epoch != setup_.epoch) {
      header_.terms.push_back({setup_.history.epoch, setup_.history.sequence});
    }
  }
  if (setup_.unclean) header_.clean.reset();
  header_.terms.push_back({setup_.epoch, 0});
  for (std::size_t slot = 0; is_continued && slot < header_.members.size(); ++slot) {
    const ActivityMember& member = header_.members[slot];
    if (member.base == unknown_base) continue;
    KnownLack lack{
        member.host, member.base, BlockMap(setup_.disk_bytes), BlockMap(setup_.disk_bytes)};
    for (DiskIndex disk = 0; disk < entries_.size(); ++disk) {
      for (std::uint64_t index = 0; index < entries_[disk].size(); ++index) {
        if ((entries_[disk][index] >> slot & 1) != 0) lack.suspect.mark(range_of({disk, index}));
      }
    }
    known.lacks.push_back(std::move(lack));
  }
  if (!is_continued) empty_file(done);
  enqueue([this, done, known](const std::function<void()>& over) {
    const auto self = shared_from_this();
    self->write_pages([self, done, known, over](int error) {
      if (error != 0) return done(error, {});
      self->write_header([done, known, over](int failed) {
        done(failed, known);
        over();
      });
    });
  });
}

/// Before the first page of another history: the header that stands there does not speak of it.
void ActivityModel::empty_file(const std::function<void(int, Known)>& done) {
  enqueue([this, done](const std::function<void()>& over) {
    machine_.io([&machine = machine_] { machine.activity = {}; },
                life_.guard([done, over](int error) {
                  if (error != 0) return done(error, {});
                  over();
                }),
                false,
                Program::plugin);
  });
}

// --- marking

Range ActivityModel::range_of(const Region& region) const {
  const std::uint64_t offset = region.index * small_region_bytes;
  return {
      region.disk, offset, std::min(small_region_bytes, setup_.disk_bytes[region.disk] - offset)};
}

std::vector<ActivityModel::Region> ActivityModel::regions_of(const Range& range) const {
  std::vector<Region> regions;
  for (std::uint64_t index = range.offset_bytes / small_region_bytes;
       index * small_region_bytes < range.end_bytes();
       ++index)
    regions.push_back({range.disk, index});
  return regions;
}

bool ActivityModel::is_hot(const Range& range) {
  bool all = true;
  for (const Region& region : regions_of(range)) {
    Heat& heat = heat_[region.disk][region.index];
    if (heat == Heat::left_alone) heat = Heat::written;
    all = all && heat == Heat::written;
  }
  return all;
}

void ActivityModel::mark(const Range& range, std::function<void(int)> done) {
  if (range.length_bytes == 0 || is_hot(range)) return done(0);
  if (planted_ == Planted::unmarked_writes) return done(0);
  enqueue([this, range, done = std::move(done)](const std::function<void()>& over) {
    const auto self = shared_from_this();
    self->mark_in_job(range, [done, over](int error) {
      done(error);
      over();
    });
  });
}

void ActivityModel::mark_in_job(const Range& range, std::function<void(int)> done) {
  if (is_hot(range)) return done(0);
  if (header_.clean) {
    header_.clean.reset();
    write_header([self = shared_from_this(), range, done](int error) {
      if (error == 0) return self->mark_in_job(range, done);
      self->header_.clean = HistoryPoint{};
      done(error);
    });
    return;
  }
  std::vector<Region> heated;
  for (const Region& region : regions_of(range)) {
    if ((entry(region) & activity_hot) != 0) continue;
    entry(region) |= activity_hot;
    heated.push_back(region);
  }
  hot_.insert(hot_.end(), heated.begin(), heated.end());
  write_pages([self = shared_from_this(), range, heated, done](int error) {
    for (const Region& region : heated) {
      if (error == 0) break;
      self->entry(region) &= static_cast<ActivityEntry>(~activity_hot);
      std::erase(self->hot_, region);
    }
    for (const Region& region : self->regions_of(range)) {
      if (error == 0) self->heat_[region.disk][region.index] = Heat::written;
    }
    done(error);
  });
}

// --- going cold

void ActivityModel::cool(const Environment& environment) {
  if (is_cooling_) return;
  is_cooling_ = true;
  enqueue([this, environment](const std::function<void()>& end) {
    const auto self = shared_from_this();
    const std::function<void()> over = [self, end] {
      self->is_cooling_ = false;
      end();
    };
    if (++self->passes_ % passes_per_choice == 0) self->choose_cooling();
    if (self->cooling_.empty() && self->passes_ % passes_per_choice != 0) return over();
    const Primary& primary = environment.core();
    bool wants_sync = !self->inherited_synced_;
    for (Cooling& cooling : self->cooling_) {
      if (cooling.through == 0 && !primary.is_being_written(self->range_of(cooling.region))) {
        cooling.through = primary.ring().next() - 1;
      }
      wants_sync = wants_sync || (cooling.through != 0 && !cooling.synced);
    }
    if (!wants_sync) return self->settle(environment, over);
    environment.sync_images([self, environment, over](bool ok) {
      if (!ok) return over();
      self->inherited_synced_ = true;
      for (Cooling& cooling : self->cooling_)
        cooling.synced = cooling.through != 0;
      self->settle(environment, over);
    });
  });
}

void ActivityModel::choose_cooling() {
  for (const Region& region : hot_) {
    Heat& heat = heat_[region.disk][region.index];
    if (heat == Heat::cold) continue;
    if (heat == Heat::written) {
      heat = Heat::left_alone;
      continue;
    }
    heat = Heat::cold;
    cooling_.push_back({region, 0, false, 0});
  }
}

/// Everything is decided on what the core says at one moment.
void ActivityModel::settle(const Environment& environment, std::function<void()> over) {
  const Primary& primary = environment.core();
  Settlement settlement;
  settlement.lacking.resize(cooling_.size());
  settlement.is_waiting.resize(cooling_.size());
  bool has_changed = false;
  for (std::size_t slot = 0; slot < header_.members.size(); ++slot) {
    ActivityMember& member = header_.members[slot];
    const auto peer = primary.find_peer(member.host);
    if (!peer) continue;
    const Sequence base = primary.lack_base(*peer);
    const bool has_all = primary.has_everything(*peer) && base >= cold_through_;
    if (has_all) settlement.whole_slots.push_back(slot);
    const auto bit = static_cast<ActivityEntry>(1U << slot);
    for (std::size_t i = 0; i < cooling_.size(); ++i) {
      const Cooling& cooling = cooling_[i];
      if (primary.has_durably(*peer, range_of(cooling.region), cooling.through)) continue;
      if (planted_ == Planted::cold_too_early) continue;
      settlement.lacking[i] |= bit;
      const bool may_come = primary.is_streaming(*peer) && cooling.tries < cooling_tries_max;
      if (may_come) settlement.is_waiting[i] = true;
    }
    if (member.base == unknown_base && !has_all) continue;
    const Sequence raised = member.base == unknown_base ? base : std::max(member.base, base);
    has_changed = has_changed || raised != member.base;
    member.base = raised;
  }
  if (!has_changed) return settle_regions(settlement, std::move(over));
  // Before new bits are set: those are of changes that it may not have.
  write_header([self = shared_from_this(), settlement, over](int error) {
    if (error != 0) return over();
    self->settle_regions(settlement, over);
  });
}

void ActivityModel::settle_regions(const Settlement& settlement, std::function<void()> over) {
  for (const std::size_t slot : settlement.whole_slots)
    clear_slot(slot);
  std::vector<Cooling> kept;
  for (std::size_t i = 0; i < cooling_.size(); ++i) {
    Cooling& cooling = cooling_[i];
    const Region& region = cooling.region;
    if (heat_[region.disk][region.index] != Heat::cold) continue;  // written again
    ++cooling.tries;
    if (settlement.is_waiting[i] || cooling.through == 0) {
      kept.push_back(cooling);
      continue;
    }
    const ActivityEntry lacking = settlement.lacking[i];
    entry(region) = static_cast<ActivityEntry>((entry(region) & ~activity_hot) | lacking);
    std::erase(hot_, region);
    cold_through_ = std::max(cold_through_, cooling.through);
    world_.reached(lacking == 0 ? "a region goes cold" : "a region goes cold, lacks on record");
  }
  cooling_ = std::move(kept);
  write_pages([over](int /*error*/) { over(); });
}

void ActivityModel::finish(const HistoryPoint& point,
                           std::vector<KnownLack> lacks,
                           std::function<void()> done) {
  enqueue([this, point, lacks = std::move(lacks), done](const std::function<void()>& over) {
    const auto self = shared_from_this();
    for (const Region& region : self->hot_)
      self->entry(region) &= static_cast<ActivityEntry>(~activity_hot);
    for (const KnownLack& lack : lacks) {
      const std::size_t slot = self->slot_of(lack.host);
      self->clear_slot(slot);
      self->header_.members[slot].base = lack.base;
      for (DiskIndex disk = 0; disk < self->entries_.size(); ++disk) {
        for (std::uint64_t index = 0; index < self->entries_[disk].size(); ++index) {
          const Range range = self->range_of({disk, index});
          if (!lack.dirty.overlaps_any(range) && !lack.suspect.overlaps_any(range)) continue;
          self->entry({disk, index}) |= static_cast<ActivityEntry>(1U << slot);
        }
      }
    }
    self->write_pages([self, point, done, over](int error) {
      if (error != 0) {
        done();
        return over();
      }
      self->header_.clean = point;
      self->header_.terms.back().end = point.sequence;
      self->write_header([done, over](int /*error*/) {
        done();
        over();
      });
    });
  });
}

std::size_t ActivityModel::slot_of(const std::string& host) const {
  const auto found = std::ranges::find(header_.members, host, &ActivityMember::host);
  return static_cast<std::size_t>(found - header_.members.begin());
}

void ActivityModel::clear_slot(std::size_t slot) {
  const auto bit = static_cast<ActivityEntry>(1U << slot);
  for (auto& disk : entries_) {
    for (ActivityEntry& one : disk)
      one &= static_cast<ActivityEntry>(~bit);
  }
}

}  // namespace replicad::sim
