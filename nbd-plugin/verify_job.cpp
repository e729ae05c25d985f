#include "nbd-plugin/verify_job.h"

#include <algorithm>

#include "core/base/log.h"
#include "core/wire/messages.h"

namespace replicad {

namespace {

// Pieces of the first pass that are being read, or whose checksums are not answered; and one run of the second.
constexpr std::size_t sweeps_max = 8;
static_assert(sweeps_max + 1 <= compares_in_flight_max);
constexpr std::uint64_t sweep_bytes_max = compare_blocks_max * compare_block_bytes;
/// Writes to it wait meanwhile.
constexpr std::uint64_t probe_bytes_max = 16 * compare_block_bytes;

}  // namespace

VerifyJob::VerifyJob(const Context& context, Hooks hooks)
    : context_(context), hooks_(std::move(hooks)) {
  std::vector<std::uint64_t> disk_bytes;
  for (const DiskImage& image : context_.images) {
    disk_bytes.push_back(image.bytes());
    total_bytes_ += image.bytes();
  }
  suspects_ = again_ = found_ = different_ = not_compared_ = BlockMap(disk_bytes);
}

void VerifyJob::start() {
  next();
}

void VerifyJob::recheck(const BlockMap& blocks) {
  over_ = false;
  rechecks_ = true;
  round_ = 1;
  for (auto run = blocks.next(0, 0, range_bytes_max); run;
       run = blocks.next(run->disk, run->end_bytes(), range_bytes_max)) {
    suspects_.mark(*run);
    different_.clear(*run);
  }
  next();
}

std::uint64_t VerifyJob::done_bytes() const {
  const std::uint64_t open = (suspects_.blocks() + again_.blocks()) * block_bytes;
  return swept_bytes_ - std::min(open, swept_bytes_);
}

void VerifyJob::next() {
  if (over_) return;
  if (!error_) begin_sweeps();
  if (reads_in_flight_ > 0 || !unanswered_.empty() || probe_) return;
  if (suspects_.empty() && !again_.empty()) {
    std::swap(suspects_, again_);
    if (++round_ > rounds_max) {
      not_compared_.merge(suspects_);
      suspects_.clear_all();
    }
  }
  if (error_ || suspects_.empty()) return end();
  begin_probe();
}

void VerifyJob::end() {
  over_ = true;
  // Not from within the caller, whom it may concern.
  context_.reactor.post([self = shared_from_this()] { self->hooks_.on_end(); });
}

void VerifyJob::stop(const Error& error) {
  if (over_ || error_) return;
  error_ = error;
  unlock();
  next();
}

void VerifyJob::lost(const Error& error) {
  if (!error_) error_ = error;
  if (probe_) {
    probe_->locked = false;  // it went with the connection
    unlock();
  }
  probe_.reset();
  unanswered_.clear();
  if (!over_) end();
}

void VerifyJob::read(const Range& range, std::function<void(MediumSums)> then) {
  ++reads_in_flight_;
  context_.worker.post([self = shared_from_this(), range, then = std::move(then)]() mutable {
    const auto reader =
        self->readers_.try_emplace(range.disk, self->context_.images[range.disk].fd()).first;
    MediumSums sums = reader->second.read(range.offset_bytes, range.length_bytes);
    Reactor& reactor = self->context_.reactor;
    reactor.post([self = std::move(self), range, then = std::move(then), sums = std::move(sums)] {
      --self->reads_in_flight_;
      if (sums.sys_errno != 0) {
        self->read_error_ = errno_to_error(
            sums.sys_errno,
            fmt::format(
                "read {} at {}", self->context_.images[range.disk].path(), range.offset_bytes));
      }
      then(sums);
      self->next();
    });
  });
}

// --- the first pass

std::optional<Range> VerifyJob::next_piece() {
  if (rechecks_) return std::nullopt;
  while (disk_ < context_.images.size()) {
    const std::uint64_t bytes = context_.images[disk_].bytes();
    if (offset_bytes_ < bytes) {
      const Range piece{disk_, offset_bytes_, std::min(sweep_bytes_max, bytes - offset_bytes_)};
      offset_bytes_ = piece.end_bytes();
      return piece;
    }
    ++disk_;
    offset_bytes_ = 0;
  }
  return std::nullopt;
}

void VerifyJob::begin_sweeps() {
  while (!swept_ && reads_in_flight_ + unanswered_.size() < sweeps_max) {
    const auto piece = next_piece();
    if (!piece) {
      swept_ = true;
      return;
    }
    read(*piece, [this, range = *piece](MediumSums sums) { on_swept(range, std::move(sums)); });
  }
}

void VerifyJob::on_swept(const Range& range, MediumSums sums) {
  if (over_ || error_) return;
  // Behind the read: what was numbered by now is all that it can have seen, but for writes under way.
  const Sequence after = context_.bridge.look(
      [&](const Primary& primary) { return primary.changed_through(context_.peer, range); });
  unanswered_.push_back({range, std::move(sums.unreadable)});
  hooks_.on_sums(encode_block_sums(range, sums.sums, after));
}

Status VerifyJob::on_diffs(const Range& range, std::span<const std::byte> payload) {
  if (probe_ && probe_->sent && probe_->range == range) {
    end_probe(payload);
    next();
    return {};
  }
  const auto asked = std::ranges::find(unanswered_, range, &Sweep::range);
  if (asked == unanswered_.end()) return fail(Errc::protocol, "block_diffs for nothing asked");
  for (const Range& different : decode_block_diffs(range, payload))
    suspects_.mark(different);
  take_unreadable(range, asked->unreadable, suspects_);
  unanswered_.erase(asked);
  swept_bytes_ += range.length_bytes;
  next();
  return {};
}

/// What cannot be read here was not compared, whatever was answered.
void VerifyJob::take_unreadable(const Range& range,
                                const std::vector<bool>& unreadable,
                                BlockMap& from) {
  for (std::size_t i = 0; i < unreadable.size(); ++i) {
    if (!unreadable[i]) continue;
    const std::uint64_t at = i * compare_block_bytes;
    const Range block{range.disk,
                      range.offset_bytes + at,
                      std::min(compare_block_bytes, range.length_bytes - at)};
    from.clear(block);
    not_compared_.mark(block);
  }
}

// --- the second pass

void VerifyJob::begin_probe() {
  probe_.emplace();
  probe_->range = *suspects_.next(0, 0, probe_bytes_max);
  context_.bridge.step(primary_event::CopyLock{context_.peer, probe_->range});
}

void VerifyJob::on_locked() {
  if (!probe_ || probe_->locked) return;
  probe_->locked = true;
  if (error_) {
    unlock();
    probe_.reset();
    next();
    return;
  }
  probe_->timer =
      context_.reactor.add_timer(lock_hold_max, [self = shared_from_this()] { self->unlock(); });
  read(probe_->range, [this](MediumSums sums) { on_probed(std::move(sums)); });
}

void VerifyJob::on_probed(MediumSums sums) {
  if (!probe_) return;
  if (error_) {
    unlock();
    probe_.reset();
    return;
  }
  struct Stand {
    Sequence after;
    Sequence applied;
  };
  const Stand stand = context_.bridge.look([&](const Primary& primary) {
    return Stand{primary.changed_through(context_.peer, probe_->range),
                 primary.applied(context_.peer)};
  });
  probe_->sent = true;
  probe_->unreadable = std::move(sums.unreadable);
  hooks_.on_sums(encode_block_sums(probe_->range, sums.sums, stand.after));
  if (stand.after > stand.applied) hooks_.on_sync();
}

/// Once; the probe goes on without it. Not before it is granted: the grant may be on its way.
void VerifyJob::unlock() {
  if (!probe_) return;
  if (probe_->timer) context_.reactor.cancel_timer(*probe_->timer);
  probe_->timer.reset();
  if (!probe_->locked) return;
  probe_->locked = false;
  context_.bridge.step(primary_event::CopyUnlock{context_.peer});
}

void VerifyJob::end_probe(std::span<const std::byte> payload) {
  const bool proven = probe_->locked;
  unlock();
  const Probe probe = *std::exchange(probe_, std::nullopt);
  suspects_.clear(probe.range);
  BlockMap differs(found_.disk_bytes());
  for (const Range& different : decode_block_diffs(probe.range, payload))
    differs.mark(different);
  take_unreadable(probe.range, probe.unreadable, differs);
  if (rechecks_) {
    const auto readable = std::ranges::count(probe.unreadable, false);
    repaired_blocks_ += static_cast<std::uint64_t>(readable) - differs.blocks();
  }
  if (!proven) {
    again_.merge(differs);
    return;
  }
  found_.merge(differs);
  different_.merge(differs);
  if (different_.blocks() > different_blocks_max && !error_) {
    error_ =
        Error{Errc::diverged,
              0,
              fmt::format("more than {} blocks differ: this is no bit rot", different_blocks_max),
              "find out which copy is right before anything else; `replicactl "
              "remove-replica` and `add-replica` copy a replica anew"};
  }
}

}  // namespace replicad
