#include "tests/sim/guest.h"

#include <algorithm>
#include <utility>

#include "tests/sim/cluster.h"

namespace replicad::sim {

namespace {

// A few places are written more often than others, so that requests overlap.
constexpr unsigned hot_percent = 60;
constexpr std::uint64_t hot_blocks = 12;
constexpr unsigned moving_hot_percent = 95;
constexpr std::size_t recent_max = 6;
constexpr Duration slow_reads = std::chrono::milliseconds(50);

}  // namespace

Guest::Guest(Cluster& cluster, World& world, const Options& options, GuestHistory& history)
    : cluster_(cluster), world_(world), options_(options), history_(history) {}

void Guest::start() {
  think();
}

void Guest::think() {
  if (thinking_ || finished_ || open_.size() >= options_.depth) return;
  thinking_ = true;
  // When all is written it still reads, without haste.
  const Duration most = has_written_all() ? options_.think_max + slow_reads : options_.think_max;
  world_.after(world_.random.delay(most), [this] {
    thinking_ = false;
    if (!finished_) issue();
    think();
  });
}

void Guest::issue() {
  Random& random = world_.random;
  GuestOp op;
  op.id = next_id_++;
  const auto draw = random.below(100);
  if (draw < 12) {
    op.kind = GuestOp::Kind::flush;
  } else if (draw < 30) {
    op.kind = GuestOp::Kind::read;
  } else if (draw < 36) {
    op.kind = GuestOp::Kind::zero;
  } else if (draw < 42) {
    op.kind = GuestOp::Kind::trim;
  }
  const bool is_change = op.kind != GuestOp::Kind::flush && op.kind != GuestOp::Kind::read;
  if (is_change && has_written_all()) return;
  if (op.kind != GuestOp::Kind::flush) op.range = draw_range();
  if (op.kind == GuestOp::Kind::write && options_.cleaned_percent > 0) clean_up(op);
  if (is_change) {
    ++written_;
    ++world_.counts["guest writes"];
    op.fua = random.chance(8);
    const std::uint64_t blocks = op.range.length_bytes / block_bytes;
    for (std::uint64_t i = 0; i < blocks; ++i)
      op.stamps.push_back(op.kind == GuestOp::Kind::write ? (op.id << 8 | i) : 0);
  }
  history_.issued(op);
  open_[op.id] = op;
  send(op);
}

Range Guest::draw_range() {
  Random& random = world_.random;
  const unsigned near = options_.guest_moves ? moving_hot_percent : hot_percent;
  const std::uint64_t area =
      random.chance(near) ? std::min<std::uint64_t>(hot_blocks, options_.blocks) : options_.blocks;
  const std::uint64_t first = (origin_ + random.below(area)) % options_.blocks;
  const std::uint64_t count =
      std::min(1 + random.below(options_.write_blocks_max), options_.blocks - first);
  return {static_cast<DiskIndex>(random.below(options_.disks)),
          first * block_bytes,
          count * block_bytes};
}

/// Makes it the end of what a recent write wrote, or remembers it.
void Guest::clean_up(GuestOp& op) {
  Random& random = world_.random;
  if (!recent_.empty() && random.chance(options_.cleaned_percent)) {
    const auto which = static_cast<std::ptrdiff_t>(random.below(recent_.size()));
    op.kind = GuestOp::Kind::trim;
    op.range = recent_[static_cast<std::size_t>(which)];
    recent_.erase(recent_.begin() + which);
    return;
  }
  recent_.push_back(op.range);
  if (recent_.size() > recent_max) recent_.pop_front();
}

/// What was asked for and not answered may have been done or not.
void Guest::begin_anew() {
  for (const auto& [id, op] : std::exchange(open_, {}))
    history_.answered(op, true);
  origin_ = world_.random.below(options_.blocks);
  think();
}

void Guest::send(const GuestOp& op) {
  const auto plugin = plugin_.lock();
  if (!plugin || !plugin->is_serving()) return;
  plugin->machine().after(world_.random.delay(std::chrono::microseconds(50)),
                          plugin->life().guard([plugin, op] { plugin->submit(op); }));
}

void Guest::connect(const std::shared_ptr<Plugin>& plugin) {
  plugin_ = plugin;
  const bool has_moved = host_ && *host_ != plugin->host();
  host_ = plugin->host();
  if (options_.guest_moves && has_moved) begin_anew();
  for (const auto& [id, op] : open_)
    send(op);
}

void Guest::disconnect(const Plugin* plugin) {
  if (plugin_.lock().get() == plugin) plugin_.reset();
}

void Guest::close(const GuestOp& op, bool failed) {
  history_.answered(op, failed);
  open_.erase(op.id);
  think();
  ++world_.counts[failed ? "answers with an error" : "answers"];
}

void Guest::on_answer(const GuestOp& op, bool failed) {
  if (!open_.contains(op.id)) return;
  // Stamps may have been replaced by what a full disk left: the guest knows what it asked for.
  const GuestOp asked = open_.at(op.id);
  world_.note("answer {} {}", op.id, failed ? "failed" : "done");
  close(asked, failed);
}

void Guest::on_read(const GuestOp& op, bool failed, const std::vector<Stamp>& got) {
  if (!open_.contains(op.id)) return;
  if (!failed) history_.check_read(op, got);
  close(op, failed);
}

std::string Guest::describe() const {
  std::string text = fmt::format("guest: {} writes", written_);
  for (const auto& [id, op] : open_)
    text += fmt::format(", waits for {} (kind {})", id, static_cast<int>(op.kind));
  return text;
}

}  // namespace replicad::sim
