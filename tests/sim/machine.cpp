#include "tests/sim/machine.h"

#include <algorithm>
#include <cerrno>

namespace replicad::sim {

std::string host_name(HostIndex index) {
  return {static_cast<char>('a' + static_cast<char>(index))};
}

HostIndex host_index(std::string_view name) {
  return static_cast<HostIndex>(name.front() - 'a');
}

Machine::Machine(World& world, const Options& options, HostIndex host)
    : index(host), name(host_name(host)), world_(world), options_(options) {
  // A witness has none.
  for (unsigned disk = 0; disk < options.disks && host < options.hosts; ++disk)
    images.emplace_back(options.blocks);
}

Watermarks Machine::told_since(std::uint64_t epoch) const {
  Watermarks most;
  for (auto at = told.lower_bound(epoch); at != told.end(); ++at) {
    most.received = std::max(most.received, at->second.received);
    most.logged = std::max(most.logged, at->second.logged);
    most.durable = std::max(most.durable, at->second.durable);
  }
  return most;
}

bool Machine::draw_error() {
  return world_.now() < errors_until_ && world_.random.chance(25);
}

void Machine::io(Action effect, IoDone done, bool takes_space, Program owner) {
  Duration delay = world_.random.delay(options_.io_max);
  if (world_.now() < slow_until_) delay += world_.random.delay(2 * options_.ack_timeout);
  ++io_in_flight_[static_cast<std::size_t>(owner)];
  const std::size_t slot = ios_.take();
  ios_[slot] = {std::move(effect), std::move(done), takes_space, owner};
  world_.after(delay, [this, boot = gate_.boot, slot] {
    Io& io = ios_[slot];
    if (boot == gate_.boot) finish_io(io);
    io.effect.clear();
    io.done = nullptr;
    ios_.give_back(slot);
  });
}

void Machine::finish_io(Io& io) {
  --io_in_flight_[static_cast<std::size_t>(io.owner)];
  int error = 0;
  if (io.takes_space && is_full()) error = ENOSPC;
  if (draw_error()) error = EIO;
  if (error == 0) io.effect();
  // When the program hears of it, others may have been done that were begun later.
  after(world_.random.delay(options_.io_max / 2),
        [error, done = std::move(io.done)] { done(error); });
}

void Machine::lose_power() {
  powered_ = false;
  ++gate_.boot;
  io_in_flight_ = {};
  gate_.paused_until = {};
  // A guest may rely on sectors; what a replica applies is written again.
  const bool garbage = options_.garbage && state.primary != name;
  for (Image& image : images)
    image.lose_power(world_.random, garbage);
  log.lose_power(world_.random, options_.garbage);
}

void Machine::back_up() {
  if (options_.fault_weights[static_cast<std::size_t>(Fault::disk_swap)] == 0) return;
  if (!backup_.empty() && !world_.random.chance(5)) return;
  backup_.clear();
  for (const Image& image : images)
    backup_.push_back(image.stable());
}

void Machine::swap_disk() {
  for (std::size_t disk = 0; disk < backup_.size(); ++disk)
    images[disk] = Image(backup_[disk]);
  ++images_made_;
  old_images_ = true;
}

std::string Machine::image_identity() const {
  return fmt::format("inode={}", images_made_);
}

std::optional<std::string> Machine::why_other_images() const {
  for (const DiskState& disk : state.disks) {
    const ImageLook look{image_identity(), std::nullopt, {}};
    if (auto why = why_another_image(disk.mark, look, {})) return why;
  }
  return std::nullopt;
}

void Machine::heal() {
  errors_until_ = full_until_ = slow_until_ = {};
}

std::string Machine::boot_id() const {
  return fmt::format("{}-{}", name, gate_.boot);
}

void put_trail(TrailRecord& record, Trail trail, const HistoryPoint& covers) {
  record = {};
  const Trail::Changes changes = trail.take_changed();
  for (const auto& [disk, page] : changes.pages) {
    if (record.pages.size() <= disk) record.pages.resize(disk + std::size_t{1});
    if (record.pages[disk].size() <= page) record.pages[disk].resize(page + std::size_t{1});
    record.pages[disk][page] = trail.entries(disk, page);
  }
  TrailHeader header = trail.header(covers);
  header.generation = 1;
  record.headers[1] = header;
}

std::optional<TrailFound> find_trail(const TrailRecord& record,
                                     const std::vector<std::uint64_t>& disk_bytes,
                                     const HistoryPoint& covers) {
  const std::optional<TrailHeader>* found = nullptr;
  for (const std::optional<TrailHeader>& header : record.headers) {
    if (!header || header->covers != covers) continue;
    if (found == nullptr || header->generation > (*found)->generation) found = &header;
  }
  if (found == nullptr) return std::nullopt;
  TrailFound result{Trail(disk_bytes, small_region_bytes), (*found)->generation};
  result.trail.adopt(**found);
  for (DiskIndex disk = 0; disk < record.pages.size(); ++disk) {
    for (std::uint32_t page = 0; page < record.pages[disk].size(); ++page)
      result.trail.adopt_page(disk, page, record.pages[disk][page]);
  }
  return result;
}

}  // namespace replicad::sim
