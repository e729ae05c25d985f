#include "nbd-plugin/activity_log.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/check.h"
#include "core/base/log.h"
#include "io/file.h"

namespace replicad {

namespace {

constexpr std::uint64_t pages_begin = 2 * activity_header_bytes;
// Regions marked ahead of a write that goes on from a hot region.
constexpr std::uint64_t ahead_regions = 8;
// Beyond so many, regions that are still written to go cold as well: what a crash makes us compare is bounded.
constexpr std::size_t hot_regions_max = 4096;
// Of a member whose bits say nothing yet.
constexpr Sequence unknown_base = counter_max;
// A region that is not written to between two choices goes cold.
constexpr int passes_per_choice = 5;
// Passes that a streaming member is waited for before its lack is put on record.
constexpr int cooling_tries_max = 10;

std::uint64_t regions_in(std::uint64_t disk_bytes) {
  return (disk_bytes + region_bytes - 1) / region_bytes;
}
std::uint64_t pages_in(std::uint64_t disk_bytes) {
  return (regions_in(disk_bytes) + activity_entries_per_page - 1) / activity_entries_per_page;
}

}  // namespace

ActivityLog::ActivityLog(const Setup& setup, Fd file)
    : path_(setup.path), file_(std::move(file)), disk_bytes_(setup.disk_bytes) {
  std::uint64_t page = 0;
  for (const std::uint64_t bytes : disk_bytes_) {
    Disk disk;
    const std::uint64_t regions = regions_in(bytes);
    disk.heat = std::make_unique<std::atomic<Heat>[]>(regions);
    disk.entries.resize(pages_in(bytes) * activity_entries_per_page);
    disk.first_page = page;
    page += pages_in(bytes);
    disks_.push_back(std::move(disk));
  }
}

// --- the beginning

Result<std::unique_ptr<ActivityLog>> ActivityLog::open(const Setup& setup, Known& known) {
  Fd file(::open(setup.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640));
  if (!file.valid()) return tl::unexpected(errno_to_error(errno, "open " + setup.path));
  // Headers take turns, and pages that are not hot are not written again: what is read must be there.
  RD_TRY(secure_file(setup.path));
  std::unique_ptr<ActivityLog> activity(new ActivityLog(setup, std::move(file)));
  RD_TRY(activity->load(setup, known));
  RD_TRY(sync_directory(setup.path.substr(0, setup.path.rfind('/'))));
  return activity;
}

/// Finds out whether the file speaks of the history that goes on now.
Status ActivityLog::load(const Setup& setup, Known& known) {
  std::optional<ActivityHeader> found;
  std::vector<std::byte> bytes(activity_header_bytes);
  std::uint64_t generation = 0;
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{activity_header_bytes}}) {
    if (!read_all_at(file_.get(), bytes, at)) continue;
    auto header = decode_activity_header(bytes);
    if (!header) {
      if (header.error().code == Errc::version_mismatch) return tl::unexpected(header.error());
      continue;
    }
    generation = std::max(generation, header->generation);
    if (!found || header->generation > found->generation) found = std::move(*header);
  }
  bool is_continued =
      found && found->volume_uuid == setup.volume_uuid && found->disk_bytes == setup.disk_bytes;
  if (is_continued && !setup.unclean) is_continued = found->clean == setup.history;
  if (is_continued) {
    header_ = std::move(*found);
    load_pages();
    if (!header_.terms.empty()) header_.terms.back().end = setup.history.sequence;
    // The first one is what the file began behind: another host may have been the primary in it.
    for (const ActivityHeader::Term& term : header_.terms)
      known.terms.push_back({term.epoch, term.end, &term != &header_.terms.front()});
  } else if (::ftruncate(file_.get(), 0) != 0) {
    return fail_errno(errno, "empty {}", path_);
  }
  header_.generation = generation;
  const std::optional<HistoryPoint> origin = is_continued ? header_.trail : setup.history;
  header_.trail.reset();
  if (origin) known.trail = load_trail(setup, *origin);
  if (known.trail) header_.trail = origin;
  cold_through_ = setup.history.sequence;
  inherited_synced_ = !setup.unclean;
  if (setup.unclean) note_unsynced(is_continued, known);
  RD_TRY(begin_term(setup, is_continued));
  if (!is_continued) return {};
  for (std::size_t slot = 0; slot < header_.members.size(); ++slot) {
    const ActivityMember& member = header_.members[slot];
    if (!member.host.empty() && member.base != unknown_base) {
      known.lacks.push_back(lack_of_slot(slot));
    }
  }
  return {};
}

/// What replicad has left beside this file, if it leads to `covers`.
std::shared_ptr<const Trail> ActivityLog::load_trail(const Setup& setup,
                                                     const HistoryPoint& covers) const {
  const std::string directory = path_.substr(0, path_.rfind('/') + 1);
  const auto file =
      read_file(directory + std::string(trail_file_name), trail_file_bytes(disk_bytes_));
  if (!file) return nullptr;
  auto found = read_trail(std::as_bytes(std::span(*file)), setup.volume_uuid, disk_bytes_, covers);
  return found ? std::make_shared<const Trail>(std::move(found->trail)) : nullptr;
}

/// A region was hot until a sync of the images, or has bits of members if it was hot at a crash before.
void ActivityLog::note_unsynced(bool is_continued, Known& known) const {
  for (DiskIndex disk = 0; disk < disks_.size(); ++disk) {
    for (std::uint64_t index = 0; index < regions_in(disk_bytes_[disk]); ++index) {
      if (!is_continued || disks_[disk].entries[index] != 0)
        known.unsynced.push_back(range_of({disk, index}));
    }
  }
}

/// A page that cannot be read or is damaged says that anything in it may differ.
void ActivityLog::load_pages() {
  std::array<std::byte, activity_page_bytes> bytes{};
  const auto file_size = ::lseek(file_.get(), 0, SEEK_END);
  for (DiskIndex disk = 0; disk < disks_.size(); ++disk) {
    for (std::uint64_t page = 0; page < pages_in(disk_bytes_[disk]); ++page) {
      const std::uint64_t at = pages_begin + (disks_[disk].first_page + page) * activity_page_bytes;
      if (file_size >= 0 && at >= static_cast<std::uint64_t>(file_size)) continue;
      const auto to = disks_[disk].entries.begin() +
                      static_cast<std::ptrdiff_t>(page * activity_entries_per_page);
      const Status read = read_all_at(file_.get(), bytes, at);
      const auto entries = read
                               ? decode_activity_page(disk, static_cast<std::uint32_t>(page), bytes)
                               : Result<std::vector<ActivityEntry>>(tl::unexpected(read.error()));
      if (entries) {
        std::ranges::copy(*entries, to);
      } else {
        log(LogLevel::warn, "activity_damaged", "error={}", log_value(entries.error().message));
        std::fill_n(to, activity_entries_per_page, activity_all);
      }
    }
  }
}

KnownLack ActivityLog::lack_of_slot(std::size_t slot) const {
  const ActivityMember& member = header_.members[slot];
  KnownLack lack{member.host, member.base, BlockMap(disk_bytes_), BlockMap(disk_bytes_)};
  for (DiskIndex disk = 0; disk < disks_.size(); ++disk) {
    for (std::uint64_t index = 0; index < regions_in(disk_bytes_[disk]); ++index) {
      if ((disks_[disk].entries[index] >> slot & 1) != 0)
        lack.suspect.mark(range_of({disk, index}));
    }
  }
  return lack;
}

/// What was hot when the term before ended may differ at every member.
Status ActivityLog::begin_term(const Setup& setup, bool is_continued) {
  const auto all_slots = static_cast<ActivityEntry>(activity_hot - 1);
  Pages pages;
  for (DiskIndex disk = 0; disk < disks_.size(); ++disk) {
    for (std::uint64_t index = 0; index < disks_[disk].entries.size(); ++index) {
      ActivityEntry& entry = disks_[disk].entries[index];
      if ((entry & activity_hot) == 0) continue;
      entry = all_slots;
      note_page({disk, index}, pages);
    }
  }
  if (!is_continued) {
    header_.volume_uuid = setup.volume_uuid;
    header_.disk_bytes = setup.disk_bytes;
    for (const std::string& host : setup.members)
      header_.members.push_back({host, setup.history.sequence});
    // A member may stand where the term of another primary ended.
    if (setup.history.epoch != setup.epoch) {
      header_.terms.push_back({setup.history.epoch, setup.history.sequence});
    }
  }
  RD_TRY(write_pages(pages));
  Pages assigned;
  assign_slots(setup.members, assigned);
  RD_TRY(write_pages(assigned));
  if (setup.unclean) header_.clean.reset();
  header_.terms.push_back({setup.epoch, 0});
  if (header_.terms.size() > activity_terms_max) header_.terms.erase(header_.terms.begin());
  return write_header();
}

// --- marking

Range ActivityLog::range_of(const Region& region) const {
  const std::uint64_t offset = region.index * region_bytes;
  return {region.disk, offset, std::min(region_bytes, disk_bytes_[region.disk] - offset)};
}

bool ActivityLog::is_hot(const Range& range) {
  Disk& disk = disks_[range.disk];
  bool all = true;
  for (std::uint64_t at = range.offset_bytes / region_bytes; at * region_bytes < range.end_bytes();
       ++at) {
    Heat heat = disk.heat[at].load(std::memory_order_acquire);
    if (heat == Heat::left_alone &&
        disk.heat[at].compare_exchange_strong(heat, Heat::written, std::memory_order_acq_rel)) {
      heat = Heat::written;
    }
    all = all && heat == Heat::written;
  }
  return all;
}

int ActivityLog::mark(const Range& range) {
  if (range.length_bytes == 0 || is_hot(range)) return 0;
  return mark_slowly(range);
}

std::vector<ActivityLog::Region> ActivityLog::regions_of(const Range& range) const {
  const Disk& disk = disks_[range.disk];
  const std::uint64_t first = range.offset_bytes / region_bytes;
  std::uint64_t end = (range.end_bytes() + region_bytes - 1) / region_bytes;
  const bool goes_on = first > 0 && disk.heat[first - 1].load() != Heat::cold;
  if (goes_on) end = std::min(end + ahead_regions, regions_in(disk_bytes_[range.disk]));
  std::vector<Region> regions;
  for (std::uint64_t index = first; index < end; ++index)
    regions.push_back({range.disk, index});
  return regions;
}

int ActivityLog::mark_slowly(const Range& range) {
  const std::vector<Region> mine = regions_of(range);
  {
    const std::lock_guard lock(wanted_mutex_);
    wanted_.insert(wanted_.end(), mine.begin(), mine.end());
  }
  const std::lock_guard lock(mutex_);
  if (is_hot(range)) return 0;
  std::vector<Region> regions = mine;
  {
    const std::lock_guard wanted_lock(wanted_mutex_);
    regions.insert(regions.end(), wanted_.begin(), wanted_.end());
    wanted_.clear();
  }
  if (header_.clean) {
    header_.clean.reset();
    if (const Status written = write_header(); !written) {
      header_.clean = HistoryPoint{};  // on the disk the old one may still count
      return written.error().sys_errno != 0 ? written.error().sys_errno : EIO;
    }
  }
  Pages pages;
  const std::size_t hot_before = hot_.size();
  for (const Region& region : regions) {
    ActivityEntry& entry = disks_[region.disk].entries[region.index];
    if ((entry & activity_hot) != 0) continue;
    entry |= activity_hot;
    hot_.push_back(region);
    note_page(region, pages);
  }
  if (const Status written = write_pages(pages); !written) {
    // What the disk holds is not known: the next one writes it again.
    for (std::size_t i = hot_before; i < hot_.size(); ++i)
      disks_[hot_[i].disk].entries[hot_[i].index] &= static_cast<ActivityEntry>(~activity_hot);
    hot_.resize(hot_before);
    const Error& error = written.error();
    log(LogLevel::error, "activity_not_written", "error={}", log_value(error.message));
    return error.sys_errno != 0 ? error.sys_errno : EIO;
  }
  for (const Region& region : regions)
    disks_[region.disk].heat[region.index].store(Heat::written);
  hot_count_ = hot_.size();
  return 0;
}

// --- going cold

void ActivityLog::cool(const Environment& environment) {
  {
    const std::lock_guard lock(mutex_);
    if (++passes_ % passes_per_choice == 0) choose_cooling();
  }
  if (cooling_.empty() && passes_ % passes_per_choice != 0) return;
  // From here on a writer that is admitted finds its region cold, and heats it again.
  environment.look([this](const Primary& primary) {
    const Sequence last = primary.ring().next() - 1;
    for (Cooling& cooling : cooling_) {
      if (cooling.through != 0) continue;
      cooling.through = primary.is_being_written(range_of(cooling.region)) ? 0 : last;
    }
  });
  const auto wants_sync = [](const Cooling& cooling) {
    return cooling.through != 0 && !cooling.synced;
  };
  if (!inherited_synced_ || std::ranges::any_of(cooling_, wants_sync)) {
    if (!environment.sync_images()) return;
    inherited_synced_ = true;
    for (Cooling& cooling : cooling_)
      cooling.synced = cooling.through != 0;
  }
  settle_cooling(environment);
}

void ActivityLog::choose_cooling() {
  std::size_t left = hot_.size();
  for (const Region& region : hot_) {
    std::atomic<Heat>& heat = disks_[region.disk].heat[region.index];
    Heat was = heat.load();
    if (was == Heat::cold) continue;  // it is in cooling_
    if (was == Heat::written && left <= hot_regions_max) {
      heat.compare_exchange_strong(was, Heat::left_alone);
      continue;
    }
    heat.store(Heat::cold);
    cooling_.push_back({region, 0, false, 0});
    --left;
  }
}

/// Regions whose last change every member has durable, or is on record as lacking, go cold on the disk.
void ActivityLog::settle_cooling(const Environment& environment) {
  struct Standing {
    std::string host;
    Sequence base = 0;
    bool has_all = false;
    ActivityEntry bit = 0;
  };
  std::vector<Standing> members;
  std::vector<ActivityEntry> lacking(cooling_.size());
  std::vector<bool> is_waiting(cooling_.size());
  Pages pages;
  const std::lock_guard lock(mutex_);
  std::vector<std::string> hosts;
  environment.look([&](const Primary& primary) { hosts = primary.member_hosts(); });
  assign_slots(hosts, pages);
  if (!write_pages(pages)) return;
  pages.clear();
  environment.look([&](const Primary& primary) {
    for (const std::string& host : hosts) {
      const auto peer = primary.find_peer(host);
      if (!peer) continue;
      const std::size_t slot = slot_of(host);
      Standing standing{host, primary.lack_base(*peer), primary.has_everything(*peer), 0};
      // It may stream and not have come yet to the change for which its bit was set.
      standing.has_all = standing.has_all && standing.base >= cold_through_;
      if (slot < activity_slots) standing.bit = static_cast<ActivityEntry>(1U << slot);
      members.push_back(standing);
      for (std::size_t i = 0; i < cooling_.size(); ++i) {
        const Cooling& cooling = cooling_[i];
        if (primary.has_durably(*peer, range_of(cooling.region), cooling.through)) continue;
        lacking[i] |= standing.bit;
        const bool may_come = primary.is_streaming(*peer) && cooling.tries < cooling_tries_max;
        if (may_come || standing.bit == 0) is_waiting[i] = true;
      }
    }
  });
  bool has_changed = false;
  for (const Standing& standing : members) {
    if (standing.bit == 0) continue;
    ActivityMember& member = header_.members[slot_of(standing.host)];
    const bool is_known = member.base != unknown_base;
    if (!is_known && !standing.has_all) continue;
    const Sequence base = is_known ? std::max(member.base, standing.base) : standing.base;
    has_changed = has_changed || member.base != base;
    member.base = base;
  }
  if ((has_changed || !header_written_) && !write_header()) return;
  // Before new bits are set: those are of changes that it may not have.
  for (const Standing& standing : members) {
    if (standing.has_all && standing.bit != 0) clear_slot(slot_of(standing.host), pages);
  }
  std::vector<Cooling> kept;
  for (std::size_t i = 0; i < cooling_.size(); ++i) {
    Cooling& cooling = cooling_[i];
    const Region& region = cooling.region;
    if (disks_[region.disk].heat[region.index].load() != Heat::cold) continue;  // written again
    ++cooling.tries;
    if (is_waiting[i] || cooling.through == 0) {
      kept.push_back(cooling);
      continue;
    }
    ActivityEntry& entry = disks_[region.disk].entries[region.index];
    entry = static_cast<ActivityEntry>((entry & ~activity_hot) | lacking[i]);
    std::erase(hot_, region);
    cold_through_ = std::max(cold_through_, cooling.through);
    note_page(region, pages);
  }
  cooling_ = std::move(kept);
  hot_count_ = hot_.size();
  if (const Status written = write_pages(pages); !written) {
    log(LogLevel::error, "activity_not_written", "error={}", log_value(written.error().message));
  }
}

Status ActivityLog::finish(const HistoryPoint& point, const std::vector<KnownLack>& lacks) {
  const std::lock_guard lock(mutex_);
  Pages pages;
  std::vector<std::string> hosts;
  hosts.reserve(lacks.size());
  for (const KnownLack& lack : lacks)
    hosts.push_back(lack.host);
  assign_slots(hosts, pages);
  for (const Region& region : hot_) {
    disks_[region.disk].entries[region.index] &= static_cast<ActivityEntry>(~activity_hot);
    note_page(region, pages);
  }
  for (const KnownLack& lack : lacks) {
    const std::size_t slot = slot_of(lack.host);
    if (slot == activity_slots) continue;
    clear_slot(slot, pages);
    header_.members[slot].base = lack.base;
    for (const BlockMap* map : {&lack.dirty, &lack.suspect}) {
      for (auto run = map->next(0, 0, region_bytes); run;
           run = map->next(
               run->disk, (run->offset_bytes / region_bytes + 1) * region_bytes, region_bytes)) {
        const Region region{run->disk, run->offset_bytes / region_bytes};
        disks_[region.disk].entries[region.index] |= static_cast<ActivityEntry>(1U << slot);
        note_page(region, pages);
      }
    }
  }
  RD_TRY(write_pages(pages));
  header_.clean = point;
  header_.terms.back().end = point.sequence;
  return write_header();
}

// --- slots and the file

std::size_t ActivityLog::slot_of(const std::string& host) const {
  for (std::size_t slot = 0; slot < header_.members.size(); ++slot) {
    if (header_.members[slot].host == host) return slot;
  }
  return activity_slots;
}

/// Frees the slots of hosts that are members no more and gives one to each new host. Its bit means nothing yet,
/// so it is cleared; the header that names it comes later.
void ActivityLog::assign_slots(const std::vector<std::string>& hosts, Pages& pages) {
  for (ActivityMember& member : header_.members) {
    if (std::ranges::find(hosts, member.host) == hosts.end()) member = {};
  }
  for (const std::string& host : hosts) {
    if (slot_of(host) < activity_slots) continue;
    auto free = std::ranges::find(header_.members, std::string(), &ActivityMember::host);
    if (free == header_.members.end()) {
      if (header_.members.size() == activity_slots) continue;
      header_.members.emplace_back();
      free = std::prev(header_.members.end());
    }
    clear_slot(static_cast<std::size_t>(free - header_.members.begin()), pages);
    *free = {host, unknown_base};
  }
}

void ActivityLog::clear_slot(std::size_t slot, Pages& pages) {
  const auto bit = static_cast<ActivityEntry>(1U << slot);
  for (DiskIndex disk = 0; disk < disks_.size(); ++disk) {
    for (std::uint64_t index = 0; index < disks_[disk].entries.size(); ++index) {
      ActivityEntry& entry = disks_[disk].entries[index];
      if ((entry & bit) == 0) continue;
      entry &= static_cast<ActivityEntry>(~bit);
      note_page({disk, index}, pages);
    }
  }
}

void ActivityLog::note_page(const Region& region, Pages& pages) const {
  pages.emplace(region.disk, region.index / activity_entries_per_page);
}

Status ActivityLog::write_pages(const Pages& pages) {
  if (pages.empty()) return {};
  std::array<std::byte, activity_page_bytes> bytes{};
  for (const auto& [disk, page] : pages) {
    const auto entries = std::span(disks_[disk].entries)
                             .subspan(page * activity_entries_per_page, activity_entries_per_page);
    encode_activity_page(disk, static_cast<std::uint32_t>(page), entries, bytes);
    RD_TRY(write_all_at(
        file_.get(), bytes, pages_begin + (disks_[disk].first_page + page) * activity_page_bytes));
  }
  if (::fdatasync(file_.get()) != 0) return fail_errno(errno, "fdatasync of {}", path_);
  return {};
}

Status ActivityLog::write_header() {
  header_written_ = false;
  ++header_.generation;
  const auto bytes = encode_activity_header(header_);
  const std::uint64_t at = header_.generation % 2 == 0 ? 0 : activity_header_bytes;
  RD_TRY(write_all_at(file_.get(), bytes, at));
  if (::fdatasync(file_.get()) != 0) return fail_errno(errno, "fdatasync of {}", path_);
  header_written_ = true;
  return {};
}

}  // namespace replicad
