#include "core/store/trail.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/endian.h"
#include "core/store/region_file.h"

namespace replicad {

namespace {

using nlohmann::json;

// The tables in docs/disk-format.md are the master.
constexpr RegionFileFormat trail_format{.header_magic = 0x54485052,  // "RPHT"
                                        .page_magic = 0x54415052,    // "RPAT"
                                        .version = 1,
                                        .header_bytes = trail_header_bytes,
                                        .name = "a trail"};
static_assert(region_page_at_entries + 8 * trail_entries_per_page == trail_page_bytes);

TrailHeader trail_header_from(const json& body) {
  TrailHeader header;
  header.volume_uuid = body.at("uuid").get<std::string>();
  header.disk_bytes = region_disk_bytes(body);
  header.base = region_counter(body, "base");
  for (const json& term : body.at("terms"))
    header.terms.push_back({region_epoch(term.at("epoch")), region_counter(term, "first")});
  if (header.terms.size() > trail_terms_max) throw RegionFileError{"a list is too long"};
  header.covers = region_point(body.at("covers"));
  if (header.base > header.covers.sequence) throw RegionFileError{"it begins behind its end"};
  return header;
}

}  // namespace

std::vector<std::byte> encode_trail_header(const TrailHeader& header) {
  json terms = json::array();
  for (const TrailTerm& term : header.terms)
    terms.push_back({{"epoch", region_json(term.epoch)}, {"first", term.first}});
  return encode_region_header(trail_format,
                              header.generation,
                              {{"uuid", header.volume_uuid},
                               {"disk_bytes", header.disk_bytes},
                               {"base", header.base},
                               {"terms", terms},
                               {"covers", region_json(header.covers)}});
}

Result<TrailHeader> decode_trail_header(std::span<const std::byte> from) {
  TrailHeader header;
  const auto generation = decode_region_header(
      trail_format, from, [&](const json& body) { header = trail_header_from(body); });
  if (!generation) return tl::unexpected(generation.error());
  header.generation = *generation;
  return header;
}

void encode_trail_page(DiskIndex disk,
                       std::uint32_t page,
                       std::span<const Sequence> entries,
                       std::span<std::byte, trail_page_bytes> to) {
  RD_CHECK(entries.size() == trail_entries_per_page);
  for (std::size_t i = 0; i < entries.size(); ++i)
    store_le(to.data() + region_page_at_entries + 8 * i, entries[i]);
  seal_region_page(trail_format, disk, page, to);
}

Result<std::vector<Sequence>> decode_trail_page(DiskIndex disk,
                                                std::uint32_t page,
                                                std::span<const std::byte, trail_page_bytes> from) {
  std::vector<Sequence> entries(trail_entries_per_page);
  const auto is_written = is_region_page(trail_format, disk, page, from);
  if (!is_written) return tl::unexpected(is_written.error());
  for (std::size_t i = 0; *is_written && i < entries.size(); ++i)
    entries[i] = load_le<std::uint64_t>(from.data() + region_page_at_entries + 8 * i);
  return entries;
}

// --- Trail

Trail::Trail(std::vector<std::uint64_t> disk_bytes, std::uint64_t bytes_per_region)
    : disk_bytes_(std::move(disk_bytes)), region_bytes_(bytes_per_region) {
  for (std::size_t disk = 0; disk < disk_bytes_.size(); ++disk)
    last_.emplace_back(regions(disk));
}

std::uint64_t Trail::regions(std::size_t disk) const {
  return (disk_bytes_[disk] + region_bytes_ - 1) / region_bytes_;
}

std::uint32_t Trail::pages(DiskIndex disk) const {
  return static_cast<std::uint32_t>((regions(disk) + trail_entries_per_page - 1) /
                                    trail_entries_per_page);
}

std::uint64_t Trail::file_page(DiskIndex disk, std::uint32_t page) const {
  std::uint64_t before = 0;
  for (DiskIndex other = 0; other < disk; ++other)
    before += pages(other);
  return before + page;
}

void Trail::Changes::add(const Changes& others) {
  pages.insert(others.pages.begin(), others.pages.end());
  anew = anew || others.anew;
}

void Trail::begin(const HistoryPoint& point) {
  changed_.anew = true;
  base_ = point.sequence;
  terms_.clear();
  if (point.epoch.number > 0) terms_.push_back({point.epoch, point.sequence});
  for (DiskIndex disk = 0; disk < last_.size(); ++disk) {
    std::ranges::fill(last_[disk], 0);
    for (std::uint32_t page = 0; page < pages(disk); ++page)
      changed_.pages.emplace(disk, page);
  }
}

void Trail::note(const FrameHeader& header) {
  const bool is_new = terms_.empty() || header.sequence >= terms_.back().first;
  if (is_new && (terms_.empty() || terms_.back().epoch != header.epoch)) {
    terms_.push_back({header.epoch, header.sequence});
    if (terms_.size() > trail_terms_max) {
      terms_.erase(terms_.begin());
      base_ = std::max(base_, terms_.front().first);
    }
  }
  const Range& range = header.range;
  if (header.type == FrameType::flush || range.length_bytes == 0) return;
  RD_CHECK(range.disk < last_.size());
  RD_CHECK(fits(range, disk_bytes_[range.disk]));
  for (std::uint64_t at = range.offset_bytes / region_bytes_;
       at * region_bytes_ < range.end_bytes();
       ++at) {
    Sequence& last = last_[range.disk][at];
    if (header.sequence <= last) continue;
    last = header.sequence;
    changed_.pages.emplace(range.disk, static_cast<std::uint32_t>(at / trail_entries_per_page));
  }
}

void Trail::adopt(const TrailHeader& header) {
  RD_CHECK(header.disk_bytes == disk_bytes_);
  base_ = header.base;
  terms_ = header.terms;
  covers_ = header.covers;
  // What an earlier process wrote may not be on the disk: all of it is written again.
  for (DiskIndex disk = 0; disk < last_.size(); ++disk) {
    for (std::uint32_t page = 0; page < pages(disk); ++page)
      changed_.pages.emplace(disk, page);
  }
}

void Trail::adopt_page(DiskIndex disk, std::uint32_t page, std::span<const Sequence> entries) {
  std::vector<Sequence>& last = last_.at(disk);
  const std::size_t first = std::size_t{page} * trail_entries_per_page;
  const std::size_t end = std::min(first + trail_entries_per_page, last.size());
  for (std::size_t at = first; at < end; ++at)
    last[at] = entries.empty() ? counter_max : entries[at - first];
}

TrailHeader Trail::header(const HistoryPoint& point) const {
  TrailHeader header;
  header.disk_bytes = disk_bytes_;
  header.base = base_;
  header.terms = terms_;
  header.covers = point;
  return header;
}

std::vector<Sequence> Trail::entries(DiskIndex disk, std::uint32_t page) const {
  const std::vector<Sequence>& last = last_.at(disk);
  const std::size_t first = std::size_t{page} * trail_entries_per_page;
  const std::size_t end = std::min(first + trail_entries_per_page, last.size());
  std::vector<Sequence> entries(trail_entries_per_page);
  std::copy(last.begin() + static_cast<std::ptrdiff_t>(first),
            last.begin() + static_cast<std::ptrdiff_t>(end),
            entries.begin());
  return entries;
}

std::vector<Trail::Past> Trail::past() const {
  std::vector<Past> past;
  for (std::size_t i = 0; i < terms_.size(); ++i) {
    if (terms_[i].first > covers_.sequence) break;
    const bool is_last = i + 1 == terms_.size() || terms_[i + 1].first > covers_.sequence;
    past.push_back({terms_[i].epoch, is_last ? covers_.sequence : terms_[i + 1].first - 1});
  }
  return past;
}

void Trail::note_any(DiskIndex disk, std::uint64_t region) {
  last_.at(disk).at(region) = counter_max;
  changed_.pages.emplace(disk, static_cast<std::uint32_t>(region / trail_entries_per_page));
}

std::optional<Trail::Parting> Trail::parting(const std::vector<HistoryTerm>& theirs,
                                             Sequence last) const {
  for (std::size_t i = terms_.size(); i-- > 0;) {
    const auto other = std::ranges::find(theirs, terms_[i].epoch, &HistoryTerm::epoch);
    if (other == theirs.end()) continue;
    const Sequence end = i + 1 == terms_.size() ? last : terms_[i + 1].first - 1;
    const Sequence sequence = std::min(end, other->end);
    if (sequence < std::max(base_, terms_[i].first)) return std::nullopt;
    return Parting{terms_[i].epoch, sequence};
  }
  return std::nullopt;
}

Trail::Changes Trail::take_changed() {
  Changes changes = std::exchange(changed_, {});
  if (!taken_.empty()) changes.add(taken_.back());  // which has those before it
  taken_.push_back(changes);
  return changes;
}

void Trail::end_save(bool written) {
  RD_CHECK(!taken_.empty());
  if (!written) changed_.add(taken_.front());
  taken_.pop_front();
}

std::vector<Range> Trail::changed_since(Sequence sequence) const {
  RD_CHECK(sequence >= base_);
  std::vector<Range> ranges;
  for (DiskIndex disk = 0; disk < last_.size(); ++disk) {
    for (std::uint64_t at = 0; at < last_[disk].size(); ++at) {
      if (last_[disk][at] <= sequence) continue;
      const std::uint64_t offset = at * region_bytes_;
      const std::uint64_t length = std::min(region_bytes_, disk_bytes_[disk] - offset);
      const bool goes_on =
          !ranges.empty() && ranges.back().disk == disk && ranges.back().end_bytes() == offset;
      if (goes_on) {
        ranges.back().length_bytes += length;
      } else {
        ranges.push_back({disk, offset, length});
      }
    }
  }
  return ranges;
}

std::optional<AttachedMessage::Parted> tell_parting(const Trail& trail,
                                                    const std::vector<HistoryTerm>& theirs,
                                                    const HistoryPoint& standing) {
  const auto parting = trail.parting(theirs, standing.sequence);
  if (!parting || parting->sequence == standing.sequence) return std::nullopt;
  AttachedMessage::Parted parted{
      parting->epoch, parting->sequence, trail.changed_since(parting->sequence)};
  if (parted.ranges.size() > parted_ranges_max) return std::nullopt;
  return parted;
}

std::optional<Trail> trail_of_activity(const ActivityHeader& activity,
                                       const std::vector<std::vector<ActivityEntry>>& entries,
                                       const HistoryPoint& covers,
                                       std::uint64_t bytes_per_region) {
  // A region that is neither hot nor lacking at anybody was changed last by what every member had durable, and that is
  // on record, too.
  std::optional<Sequence> base;
  for (const ActivityMember& member : activity.members) {
    if (member.host.empty() || member.base == counter_max) continue;
    base = std::max(base.value_or(0), member.base);
  }
  if (!base || *base > covers.sequence || activity.terms.empty()) return std::nullopt;
  TrailHeader header;
  header.disk_bytes = activity.disk_bytes;
  header.base = *base;
  header.covers = covers;
  Sequence first = 0;
  for (const ActivityHeader::Term& term : activity.terms) {
    header.terms.push_back({term.epoch, first});
    first = term.end + 1;
  }
  Trail trail(activity.disk_bytes, bytes_per_region);
  trail.begin(covers);
  trail.adopt(header);
  for (DiskIndex disk = 0; disk < entries.size(); ++disk) {
    for (std::uint64_t region = 0; region < entries[disk].size(); ++region) {
      if (entries[disk][region] != 0) trail.note_any(disk, region);
    }
  }
  return trail;
}

std::uint64_t trail_file_bytes(const std::vector<std::uint64_t>& disk_bytes) {
  const Trail trail(disk_bytes);
  std::uint64_t pages = 0;
  for (DiskIndex disk = 0; disk < disk_bytes.size(); ++disk)
    pages += trail.pages(disk);
  return trail_page_offset(pages);
}

std::optional<TrailFound> read_trail(std::span<const std::byte> file,
                                     std::string_view volume_uuid,
                                     const std::vector<std::uint64_t>& disk_bytes,
                                     const HistoryPoint& covers) {
  std::optional<TrailHeader> found;
  for (const std::size_t at : {std::size_t{0}, trail_header_bytes}) {
    if (file.size() < at + trail_header_bytes) continue;
    auto header = decode_trail_header(file.subspan(at, trail_header_bytes));
    if (!header || header->volume_uuid != volume_uuid || header->disk_bytes != disk_bytes) continue;
    if (header->covers != covers) continue;
    if (!found || header->generation > found->generation) found = std::move(*header);
  }
  if (!found) return std::nullopt;
  TrailFound result{Trail(disk_bytes), found->generation};
  result.trail.adopt(*found);
  for (DiskIndex disk = 0; disk < disk_bytes.size(); ++disk) {
    for (std::uint32_t page = 0; page < result.trail.pages(disk); ++page) {
      const std::uint64_t at = trail_page_offset(result.trail.file_page(disk, page));
      // All of them were written before the header.
      if (file.size() < at + trail_page_bytes) {
        result.trail.adopt_page(disk, page, {});
        continue;
      }
      const auto entries =
          decode_trail_page(disk, page, file.subspan(at).first<trail_page_bytes>());
      result.trail.adopt_page(disk, page, entries ? *entries : std::vector<Sequence>{});
    }
  }
  return result;
}

}  // namespace replicad
