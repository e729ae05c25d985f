#include "tests/sim/oracle.h"

#include <algorithm>

namespace replicad::sim {

namespace {

constexpr Sequence snapshot_interval = 64;

}  // namespace

void apply_stamps(Images& images, const Range& range, const std::vector<Stamp>& stamps) {
  if (stamps.empty()) return;
  const auto first = static_cast<std::ptrdiff_t>(range.offset_bytes / block_bytes);
  std::ranges::copy(stamps, images[range.disk].begin() + first);
}

// --- histories

Histories::Histories(World& world, unsigned disks, unsigned blocks)
    : world_(world), empty_(disks, Blocks(blocks)) {
  begin(HistoryPoint{}, empty_);
}

void Histories::begin(const HistoryPoint& point, const Images& images) {
  nodes_[point.digest] = {point, nullptr, {}, {}, std::make_shared<const Images>(images)};
}

void Histories::extend(const HistoryPoint& before,
                       const HistoryPoint& after,
                       const Range& range,
                       std::vector<Stamp> stamps) {
  const Node* const previous = find(before);
  world_.require(previous != nullptr, "P2 history: a frame follows a point that is on no history");
  Node node{after, previous, range, std::move(stamps), nullptr};
  if (after.sequence % snapshot_interval == 0) {
    Images images = at(before);
    apply_stamps(images, range, node.stamps);
    node.images = std::make_shared<const Images>(std::move(images));
  }
  nodes_[after.digest] = std::move(node);
}

const Histories::Node* Histories::find(const HistoryPoint& point) const {
  const auto found = nodes_.find(point.digest);
  return found != nodes_.end() && found->second.point == point ? &found->second : nullptr;
}

const Histories::Node& Histories::node(const HistoryPoint& point) const {
  const Node* const found = find(point);
  if (found == nullptr) {
    world_.violate(
        fmt::format("P2 history: sequence {} of epoch {} with digest {} is on no history",
                    point.sequence,
                    point.epoch.number,
                    to_hex(point.digest)));
  }
  return *found;
}

Images Histories::at(const HistoryPoint& point) const {
  std::vector<const Node*> path;
  const Node* current = &node(point);
  while (!current->images) {
    path.push_back(current);
    current = current->before;
  }
  Images images = *current->images;
  for (auto node = path.rbegin(); node != path.rend(); ++node)
    apply_stamps(images, (*node)->range, (*node)->stamps);
  return images;
}

bool Histories::is_prefix(const HistoryPoint& point, const HistoryPoint& of) const {
  const Node* current = &node(of);
  while (current->point.sequence > point.sequence && current->before != nullptr)
    current = current->before;
  return current->point == point;
}

// --- the guest

GuestHistory::GuestHistory(World& world, unsigned disks, unsigned blocks)
    : world_(world), disks_(disks, std::vector<Block>(blocks)) {
  for (auto& disk : disks_) {
    for (Block& block : disk)
      block.push_back({.stamp = 0, .issued = 0, .answered = 1, .flushed = true, .op = 0});
  }
  clock_ = 1;
}

void GuestHistory::issued(GuestOp& op) {
  op.issued = world_.now();
  begun_[op.id] = ++clock_;
  const std::size_t first = op.range.offset_bytes / block_bytes;
  for (std::size_t i = 0; i < op.stamps.size(); ++i) {
    disks_[op.range.disk][first + i].push_back(
        {.stamp = op.stamps[i], .issued = clock_, .answered = 0, .flushed = false, .op = op.id});
  }
}

void GuestHistory::answered(const GuestOp& op, bool failed) {
  const std::uint64_t begun = begun_.at(op.id);
  begun_.erase(op.id);
  if (failed) return;
  ++clock_;
  const std::size_t first = op.range.offset_bytes / block_bytes;
  for (std::size_t i = 0; i < op.stamps.size(); ++i) {
    for (Write& write : disks_[op.range.disk][first + i]) {
      if (write.op != op.id) continue;
      write.answered = clock_;
      write.flushed = op.fua;
    }
  }
  if (op.kind != GuestOp::Kind::flush) {
    if (!op.stamps.empty() && !op.fua) unflushed_.push_back({op.id, clock_, op.range});
    return;
  }
  std::erase_if(unflushed_, [&](const Answered& answered) {
    if (answered.at >= begun) return false;
    mark_flushed(answered);
    return true;
  });
}

void GuestHistory::mark_flushed(const Answered& answered) {
  const std::size_t first = answered.range.offset_bytes / block_bytes;
  for (std::size_t i = 0; i < answered.range.length_bytes / block_bytes; ++i) {
    for (Write& write : disks_[answered.range.disk][first + i])
      write.flushed = write.flushed || (write.op == answered.op && write.answered != 0);
  }
}

void GuestHistory::lose_unflushed() {
  for (auto& disk : disks_) {
    for (Block& block : disk) {
      for (Write& write : block) {
        if (!write.flushed) write.answered = 0;
      }
    }
  }
}

void GuestHistory::lose_all() {
  for (auto& disk : disks_) {
    for (Block& block : disk) {
      for (Write& write : block) {
        if (write.op != 0) write.answered = 0;
      }
    }
  }
}

void GuestHistory::check_block(
    DiskIndex disk, std::size_t block, Stamp got, std::uint64_t begun, std::string_view where) {
  const Block& writes = disks_[disk][block];
  bool known = false;
  for (const Write& write : writes) {
    if (write.stamp != got) continue;
    known = true;
    // Over, if another write began after it was answered and was answered before this read began.
    const bool over =
        write.answered != 0 && std::ranges::any_of(writes, [&](const Write& later) {
          return later.issued > write.answered && later.answered != 0 && later.answered < begun;
        });
    if (!over) return;
  }
  const auto last = std::ranges::max_element(writes, {}, &Write::answered);
  world_.violate(fmt::format("{}: block {} of disk {} has {} {:#x}; answered last: {:#x}{}",
                             where,
                             block,
                             disk,
                             known ? "the old content" : "a content nobody wrote,",
                             got,
                             last->stamp,
                             last->flushed ? " (flushed)" : ""));
}

void GuestHistory::check_read(const GuestOp& op, const std::vector<Stamp>& got) {
  const std::size_t first = op.range.offset_bytes / block_bytes;
  for (std::size_t i = 0; i < got.size(); ++i)
    check_block(op.range.disk, first + i, got[i], begun_.at(op.id), "P5 read");
}

void GuestHistory::check_images(const Images& images, std::string_view where) {
  for (std::size_t disk = 0; disk < images.size(); ++disk) {
    for (std::size_t block = 0; block < images[disk].size(); ++block)
      check_block(static_cast<DiskIndex>(disk), block, images[disk][block], clock_ + 1, where);
  }
}

}  // namespace replicad::sim
