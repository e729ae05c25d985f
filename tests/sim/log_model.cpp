#include "tests/sim/log_model.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "core/base/check.h"

namespace replicad::sim {

namespace {

constexpr std::size_t batch_bytes_max = 16 * kib;
constexpr std::size_t spares_max = 2;
constexpr std::size_t changes_in_flight_max = 8;

}  // namespace

LogModel::LogModel(World& world, Machine& machine, const Options& options, Life life, Hooks hooks)
    : world_(world),
      machine_(machine),
      options_(options),
      life_(std::move(life)),
      hooks_(std::move(hooks)) {}

void LogModel::adopt(const FoundLog& found) {
  for (const FoundSegment& part : found.segments) {
    segments_.push_back(std::make_shared<Segment>(
        Segment{part.name, machine_.log.find(part.name), part.before, part.end_bytes, false}));
  }
  spares_ = found.spares;
  next_spare_ = found.next_spare;
  logged_ = found.logged;
  durable_ = logged_.sequence;
  while (spares_.size() > spares_max) {
    machine_.log.remove(spares_.back());
    spares_.pop_back();
  }
}

void LogModel::io(Machine::Action effect, Machine::IoDone done, bool takes_space) {
  ++in_flight_;
  machine_.io(std::move(effect),
              life_.guard([self = shared_from_this(), done = std::move(done)](int error) {
                done(error);
                self->end_operation();
              }),
              takes_space);
}

void LogModel::end_operation() {
  if (--in_flight_ > 0 || !stop_done_) return;
  queue_.clear();
  std::exchange(stop_done_, nullptr)();
}

void LogModel::stop(std::function<void()> done) {
  stopped_ = true;
  stop_done_ = std::move(done);
  ++in_flight_;
  machine_.after(Duration{}, life_.guard([self = shared_from_this()] { self->end_operation(); }));
}

void LogModel::fail(const Error& error) {
  if (failure_) return;
  failure_ = error;
  if (!stopped_) hooks_.on_error(error);
}

// --- appending

void LogModel::append(std::vector<std::byte> bytes, const HistoryPoint& after) {
  if (stopped_ || failure_) return;
  queue_.push_back({std::move(bytes), after});
  if (pump_scheduled_) return;
  pump_scheduled_ = true;
  machine_.after(Duration{}, life_.guard([self = shared_from_this()] {
    self->pump_scheduled_ = false;
    self->pump();
  }));
}

void LogModel::pump() {
  if (writing_ || queue_.empty() || stopped_ || failure_) return;
  const bool has_room =
      !segments_.empty() &&
      segments_.back()->end_bytes + queue_.front().bytes.size() <= segments_.back()->file->size();
  if (!has_room && !roll()) return;
  write_batch();
}

bool LogModel::roll() {
  if (names_syncing_ || creating_ || waits_for_space_) return false;
  if (spares_.empty()) {
    if (segments_.size() < options_.log_segments) {
      prepare_spare();
    } else {
      wait_for_space();
    }
    return false;
  }
  auto segment = std::make_shared<Segment>();
  segment->file = machine_.log.find(spares_.back());
  segment->name = segment_file_name(logged_.sequence + 1);
  segment->before = logged_;
  machine_.log.rename(spares_.back(), segment->name);
  spares_.pop_back();
  header_unwritten_ = true;
  segments_.push_back(std::move(segment));
  sync_names_later();
  return true;
}

void LogModel::write_batch() {
  const std::shared_ptr<Segment> tail = segments_.back();
  std::vector<std::byte> bytes;
  std::uint64_t offset = tail->end_bytes;
  if (header_unwritten_) {
    offset = 0;
    bytes.resize(segment_header_bytes);
    encode_segment_header({.volume_uuid = volume_uuid,
                           .before = tail->before,
                           .segment_bytes = segment_bytes_min,
                           .durable = durable_},
                          std::span(bytes).first<segment_header_bytes>());
  }
  std::size_t frames = 0;
  for (const Queued& frame : queue_) {
    const std::uint64_t end = offset + bytes.size() + frame.bytes.size();
    if (end > tail->file->size() || (frames > 0 && bytes.size() > batch_bytes_max)) break;
    bytes.insert(bytes.end(), frame.bytes.begin(), frame.bytes.end());
    ++frames;
  }
  RD_CHECK(frames > 0);
  writing_ = true;
  const std::uint64_t end = offset + bytes.size();
  io([file = tail->file, offset, bytes = std::move(bytes)] { file->write(offset, bytes); },
     [this, tail, end, frames](int error) {
       if (error == 0) return on_written(tail, end, frames);
       writing_ = false;
       fail(errno_to_error(error, "append to " + tail->name));
     });
}

void LogModel::on_written(const std::shared_ptr<Segment>& segment,
                          std::uint64_t end,
                          std::size_t frames) {
  writing_ = false;
  header_unwritten_ = false;
  segment->dirty = true;
  segment->end_bytes = end;
  logged_ = queue_[frames - 1].after;
  queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(frames));
  if (!stopped_) hooks_.on_logged(logged_.sequence);
  pump();
}

void LogModel::prepare_spare() {
  if (creating_ || stopped_ || failure_) return;
  creating_ = true;
  const std::string name = spare_file_name(next_spare_++);
  io([this, name] { machine_.log.create(name, std::make_shared<File>(options_.segment_bytes)); },
     [this, name](int error) {
       creating_ = false;
       if (error == 0) {
         spares_.push_back(name);
         pump();
       } else if (error == ENOSPC && segments_.size() > 1) {
         wait_for_space();
       } else {
         fail(errno_to_error(error, "create " + name));
       }
     },
     true);
}

void LogModel::wait_for_space() {
  if (waits_for_space_) return;
  waits_for_space_ = true;
  world_.reached("log full: the stream waits");
  hooks_.on_full();
}

// --- durability

void LogModel::sync_names_later() {
  names_syncing_ = true;
  const std::size_t begun = machine_.log.begin_sync();
  io([this, begun] { machine_.log.end_sync(begun); },
     [this](int error) {
       names_syncing_ = false;
       if (error != 0) fail(errno_to_error(error, "sync log directory"));
       for (const auto& job : std::exchange(names_waiters_, {})) {
         if (error != 0) job->error = errno_to_error(error, "sync log directory");
         finish_sync(job);
       }
       pump();
     });
}

void LogModel::sync(SyncDone done) {
  auto job = std::make_shared<SyncJob>();
  job->through = logged_.sequence;
  job->done = std::move(done);
  job->error = failure_;
  job->waits = 1;
  syncs_.push_back(job);
  if (options_.planted == Planted::sync_without_effect) return finish_sync(job);
  if (names_syncing_) {
    ++job->waits;
    names_waiters_.push_back(job);
  }
  for (const auto& segment : segments_) {
    if (!segment->dirty) continue;
    segment->dirty = false;
    ++job->waits;
    sync_segment(segment, job);
  }
  finish_sync(job);
}

void LogModel::sync_segment(const std::shared_ptr<Segment>& segment,
                            const std::shared_ptr<SyncJob>& job) {
  const std::uint64_t begun = segment->file->begin_sync();
  io([segment, begun] { segment->file->end_sync(begun); },
     [this, segment, begun, job](int error) {
       if (error != 0) {
         segment->file->lose_sync(begun);
         world_.reached("fdatasync of the log failed");
         job->error = errno_to_error(error, "fdatasync " + segment->name);
       }
       finish_sync(job);
     });
}

void LogModel::finish_sync(const std::shared_ptr<SyncJob>& job) {
  if (--job->waits > 0) return;
  // In the order of the calls: what one is to promise another one before it may still be at work on.
  while (!syncs_.empty() && syncs_.front()->waits == 0) {
    const std::shared_ptr<SyncJob> ended = syncs_.front();
    syncs_.pop_front();
    if (ended->error) {
      if (!syncs_.empty()) syncs_.front()->error = ended->error;
      fail(*ended->error);
      ended->done(tl::unexpected(*ended->error));
      continue;
    }
    durable_ = std::max(durable_, ended->through);
    ended->done(ended->through);
  }
}

// --- space

void LogModel::recycle(Sequence through) {
  if (stopped_ || failure_) return;
  while (segments_.size() > 1 && segments_[1]->before.sequence <= through) {
    const std::string name = segments_.front()->name;
    segments_.pop_front();
    if (spares_.size() < spares_max) {
      const std::string spare = spare_file_name(next_spare_++);
      machine_.log.rename(name, spare);
      spares_.push_back(spare);
      world_.reached("log segment used again");
    } else {
      machine_.log.remove(name);
    }
  }
  if (waits_for_space_) {
    waits_for_space_ = false;
    pump();
  }
}

void LogModel::drop(std::function<void(Status)> done) {
  RD_CHECK(queue_.empty() || stopped_ || failure_);
  auto status = std::make_shared<Status>();
  io(
      [this, status] {
        RecoveryFiles files(machine_.log, [this] { return machine_.draw_error(); });
        *status = remove_log_files(files);
      },
      [this, status, done = std::move(done)](int error) {
        if (error != 0) *status = tl::unexpected(errno_to_error(error, "remove log"));
        if (*status) {
          segments_.clear();
          spares_.clear();
          logged_ = {};
          header_unwritten_ = false;
        } else {
          fail(status->error());
        }
        done(*status);
      });
}

void LogModel::restart(const HistoryPoint& point) {
  logged_ = point;
  durable_ = point.sequence;
}

// --- images

WriterModel::Tag WriterModel::add(const FrameHeader& header, std::span<const std::byte> payload) {
  auto change = std::make_shared<Change>();
  change->tag = ++last_;
  change->range = header.range;
  if (header.type == FrameType::write || header.type == FrameType::copy_data) {
    change->stamps = stamps_of(payload);
  } else {
    change->stamps.assign(header.range.length_bytes / block_bytes, 0);
  }
  changes_.push_back(std::move(change));
  if (changes_.size() == 1 || in_flight_ == 0) {
    machine_.after(Duration{}, life_.guard([self = shared_from_this()] { self->pump(); }));
  }
  return last_;
}

void WriterModel::pump() {
  if (stopped_ || failed_) return;
  for (std::size_t i = 0; i < changes_.size() && in_flight_ < changes_in_flight_max; ++i) {
    if (changes_[i]->begun) continue;
    const std::shared_ptr<Change> change = changes_[i];
    for (std::size_t j = 0; j < i; ++j) {
      if (overtakes_ || changes_[j]->finished) continue;
      if (overlaps(changes_[j]->range, change->range)) return;
    }
    change->begun = true;
    ++in_flight_;
    auto effect = [&machine = machine_, change] {
      if (change->stamps.empty()) return;
      machine.images[change->range.disk].write(change->range.offset_bytes / block_bytes,
                                               change->stamps);
    };
    if (hooks_.check) hooks_.check();
    machine_.io(std::move(effect), life_.guard([self = shared_from_this(), change](int error) {
      --self->in_flight_;
      change->finished = true;
      if (error != 0 && !self->failed_) {
        self->failed_ = true;
        if (!self->stopped_) self->hooks_.on_error(errno_to_error(error, "write image"));
      }
      if (!self->failed_) self->advance();
      if (self->in_flight_ == 0 && self->stop_done_) std::exchange(self->stop_done_, nullptr)();
    }));
  }
}

void WriterModel::advance() {
  Tag reached = 0;
  while (!changes_.empty() && changes_.front()->finished) {
    reached = changes_.front()->tag;
    changes_.pop_front();
  }
  if (reached != 0 && !stopped_) hooks_.on_progress(reached);
  if (changes_.empty() && idle_done_) std::exchange(idle_done_, nullptr)();
  pump();
}

void WriterModel::when_idle(std::function<void()> done) {
  if (!changes_.empty()) {
    idle_done_ = std::move(done);
    return;
  }
  machine_.after(Duration{}, life_.guard(std::move(done)));
}

void WriterModel::stop(std::function<void()> done) {
  stopped_ = true;
  idle_done_ = nullptr;
  if (in_flight_ > 0) {
    stop_done_ = std::move(done);
    return;
  }
  machine_.after(Duration{}, life_.guard(std::move(done)));
}

void sync_images(Machine& machine,
                 const Life& life,
                 std::function<void(Status)> done,
                 bool keeps_on_error) {
  auto begun = std::make_shared<std::vector<std::uint64_t>>();
  for (const Image& image : machine.images)
    begun->push_back(image.begin_sync());
  machine.io(
      [&machine, begun] {
        for (std::size_t i = 0; i < machine.images.size(); ++i)
          machine.images[i].end_sync((*begun)[i]);
      },
      life.guard([&machine, begun, keeps_on_error, done = std::move(done)](int error) {
        if (error == 0) return done({});
        for (std::size_t i = 0; i < machine.images.size() && !keeps_on_error; ++i)
          machine.images[i].lose_sync((*begun)[i]);
        done(fail_errno(error, "fdatasync images"));
      }),
      false,
      keeps_on_error ? Program::plugin : Program::daemon);
}

}  // namespace replicad::sim
