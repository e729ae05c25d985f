#include "nbd-plugin/bridge.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "core/base/check.h"
#include "core/base/log.h"
#include "io/clock.h"

namespace replicad {

namespace {

/// For want of space nothing else is wrong with an image.
bool is_full(int error) {
  return error == ENOSPC || error == EDQUOT;
}

/// Placed frames that are not sealed yet never lie further apart than the ring index has entries.
std::size_t ready_slots(const Primary& primary) {
  return primary.ring().entries_max();
}

}  // namespace

Bridge::Bridge(const PrimaryConfig& config,
               std::unique_ptr<MirroredBuffer> ring,
               const std::vector<DiskImage>& images)
    : images_(images),
      ring_(std::move(ring)),
      local_trouble_(config.on_local_error),
      primary_(config, boot_time_now()) {
  ready_ = std::vector<ReadyMark>(ready_slots(primary_));
}

void Bridge::set_hooks(std::function<void()> wake, std::function<bool()> stopping) {
  wake_ = std::move(wake);
  stopping_ = std::move(stopping);
  give_up_ = [this] { return reason_to_give_up() != 0; };
}

int Bridge::reason_to_give_up() const {
  if (stopping_()) return ESHUTDOWN;
  return quorum_lost_.load(std::memory_order_relaxed) ? EIO : 0;
}

void Bridge::step(const PrimaryEvent& event) {
  std::unique_lock lock(mutex_);
  const Instant now = boot_time_now();
  seal_ready(now);
  step_locked(event, now);
  note_due(now);
  unlock_and_wake(lock);
}

/// Under the mutex, after whatever may have changed it.
void Bridge::note_due(Instant now) {
  crowd_ = std::max(crowd_, primary_.requests_under_way());
  pacers_.resize(primary_.peer_count());
  bool due = false;
  for (PeerIndex peer = 0; peer < pacers_.size(); ++peer) {
    const auto backlog = primary_.backlog(peer);
    if (!backlog) {
      pacers_[peer] = {};
      continue;
    }
    pacers_[peer].look(*backlog, now);
    due = due || pacers_[peer].is_due(*backlog, primary_.mode(), crowd_, now);
  }
  due_ = due;
}

bool Bridge::is_due(PeerIndex peer, Instant now) const {
  const auto backlog = primary_.backlog(peer);
  return backlog && pacers_[peer].is_due(*backlog, primary_.mode(), crowd_, now);
}

std::optional<Instant> Bridge::due_at() {
  const std::lock_guard lock(mutex_);
  std::optional<Instant> at;
  // A crowd of two never waits for each other.
  if (primary_.mode() != Mode::async && crowd_ <= 2) return at;
  for (const SendPacer& pacer : pacers_) {
    const Instant until = pacer.until();
    if (until != Instant{} && until != Instant::max() && (!at || until < *at)) at = until;
  }
  return at;
}

/// Those that were woken would only wait for the mutex if it were still held.
void Bridge::unlock_and_wake(std::unique_lock<BriefMutex>& lock) {
  std::vector<GuestRequest*> sleepers;
  if (!sleepers_.empty()) sleepers.swap(sleepers_);
  lock.unlock();
  for (GuestRequest* sleeper : sleepers)
    sleeper->wake();
}

void Bridge::settle(GuestRequest& request, GuestRequest::State state) {
  if (request.set(state)) sleepers_.push_back(&request);
}

void Bridge::seal_ready(Instant now) {
  while (!primary_.ring().all_sealed()) {
    const Sequence next = primary_.ring().next_unsealed();
    const ReadyMark& mark = ready_[next % ready_.size()];
    if (mark.sequence != next) return;
    step_locked(primary_event::FrameReady{next, mark.payload_crc32c}, now);
  }
}

/// If no peer is to have it at once, a finished frame is sealed by whoever comes next: the acknowledgement that makes
/// it due, or the tick.
void Bridge::finish_frame() {
  // Either this thread sees what drain() has found due, or drain() sees the frame of this thread: both the mark of a
  // ready frame and `due_` are sequentially consistent.
  if (due_) wake_();
}

void Bridge::step_locked(const PrimaryEvent& event, Instant now) {
  scratch_.clear();
  primary_.step(event, now, scratch_);
  bool for_reactor = false;
  for (PrimaryEffect& effect : scratch_) {
    if (const auto* admitted = std::get_if<primary_effect::Admitted>(&effect)) {
      settle(GuestRequest::from_id(admitted->id), GuestRequest::State::admitted);
    } else if (const auto* placed = std::get_if<primary_effect::Placed>(&effect)) {
      if (placed->id) {
        GuestRequest& request = GuestRequest::from_id(*placed->id);
        request.header = placed->header;
        request.ring_offset = placed->ring_offset;
      } else {
        fill(placed->header, placed->ring_offset, {});
        for_reactor = true;
      }
    } else if (const auto* answer = std::get_if<primary_effect::Answer>(&effect)) {
      settle(GuestRequest::from_id(answer->id),
             answer->failed ? GuestRequest::State::failed : GuestRequest::State::answered);
    } else if (const auto* sendable = std::get_if<primary_effect::Sendable>(&effect)) {
      if (sendable_.size() <= sendable->peer) sendable_.resize(sendable->peer + 1, false);
      sendable_[sendable->peer] = true;
    } else {
      for_reactor_.push_back(std::move(effect));
      for_reactor = true;
    }
  }
  if (for_reactor) wake_();
}

bool Bridge::drain(std::vector<PrimaryEffect>& effects) {
  effects.clear();
  std::unique_lock lock(mutex_);
  const Instant now = boot_time_now();  // the core's time does not go back
  note_due(now);
  seal_ready(now);
  effects.swap(for_reactor_);
  for (PeerIndex peer = 0; peer < sendable_.size(); ++peer) {
    if (!sendable_[peer] || !is_due(peer, now)) continue;
    sendable_[peer] = false;
    effects.push_back(primary_effect::Sendable{peer});
  }
  unlock_and_wake(lock);
  return !effects.empty();
}

Primary::SendWindow Bridge::take(PeerIndex peer, std::uint64_t bytes_max) {
  const Instant now = boot_time_now();
  const std::lock_guard lock(mutex_);
  if (!is_due(peer, now)) {
    if (sendable_.size() > peer) sendable_[peer] = true;
    return {};
  }
  // It had to be sent as time was up: they are fewer now that come back.
  if (pacers_[peer].until() <= now) crowd_ = primary_.requests_under_way();
  const auto window = primary_.take(peer, bytes_max);
  if (window.end_bytes > window.begin_bytes) pacers_[peer].sent(primary_.mode(), now);
  note_due(now);
  return window;
}

std::span<const std::byte> Bridge::ring_bytes(const Primary::SendWindow& window) const {
  return ring_->at(window.begin_bytes, window.end_bytes - window.begin_bytes);
}

int Bridge::admit(GuestRequest& request, const Change& change) {
  step(primary_event::WriteArrived{request.id(), change});
  if (!request.wait_while(GuestRequest::State::arrived, give_up_)) {
    std::unique_lock lock(mutex_);
    // It may have been admitted in the meantime; then it goes on as usual.
    if (request.state() == GuestRequest::State::arrived) {
      step_locked(primary_event::Cancelled{request.id()}, boot_time_now());
      unlock_and_wake(lock);
      return stopping_() ? ESHUTDOWN : EIO;
    }
  }
  return request.state() == GuestRequest::State::failed ? EIO : 0;
}

/// Admitted, and marked as about to be written to.
int Bridge::admit_write(GuestRequest& request, const Change& change) {
  while (true) {
    if (const int error = admit(request, change); error != 0) return error;
    if (activity_ == nullptr) return 0;
    const int error = mark_activity(change.range);
    if (error == 0) return 0;
    step(primary_event::Abandoned{request.id()});
    // Nothing was written yet: when it only made way for a hold, it arrives anew behind that.
    if (stopping_() || local_trouble_.policy() == OnLocalError::fail) return error;
    static_cast<void>(request.set(GuestRequest::State::arrived));  // its own thread does not sleep
  }
}

/// Each attempt writes the pages anew, so that what a failed sync lost is no matter.
int Bridge::mark_activity(const Range& range) {
  return local_trouble_.persist(
      [&] { return activity_->mark(range); },
      [&] {
        return LocalTrouble::Terms{
            .describe = [this, range](int error) { return describe_activity(range, error); },
            .give_up = [this](int /*error*/) { return stopping_() || is_hold_under_way(); }};
      });
}

Error Bridge::describe_activity(const Range& range, int error) const {
  Error failure = errno_to_error(
      error, fmt::format("activity map of {}, before a write", images_[range.disk].path()));
  failure.hint =
      "the guest waits: make room in replicad's state-dir or repair that disk, or switch to "
      "another member; with `replicactl set VOLUME on-local-error=fail` it gets the error";
  return failure;
}

int Bridge::wait_for_answer(GuestRequest& request) {
  if (!request.wait_while(GuestRequest::State::admitted, give_up_)) {
    std::unique_lock lock(mutex_);
    if (request.state() == GuestRequest::State::admitted) {
      step_locked(primary_event::Cancelled{request.id()}, boot_time_now());
      unlock_and_wake(lock);
      return stopping_() ? ESHUTDOWN : EIO;
    }
  }
  return request.state() == GuestRequest::State::answered ? 0 : EIO;
}

void Bridge::place(GuestRequest& request, bool wants_answer) {
  step(primary_event::LocalWritten{request.id(), wants_answer});
}

void Bridge::fill(const FrameHeader& placed,
                  std::uint64_t ring_offset,
                  std::span<const std::byte> payload) {
  RD_CHECK(payload.size() == placed.payload_bytes);
  const auto frame = ring_->at(ring_offset, frame_header_bytes + payload.size());
  FrameHeader header = placed;
  if (!payload.empty()) {
    // Of the source, which is in the processor's cache; nobody else writes to nbdkit's buffer.
    header.payload_crc32c = crc32c(payload);
    std::memcpy(frame.data() + frame_header_bytes, payload.data(), payload.size());
  }
  encode_header(header, frame.first<frame_header_bytes>());
  ReadyMark& mark = ready_[header.sequence % ready_.size()];
  mark.payload_crc32c = header.payload_crc32c;
  mark.sequence = header.sequence;
}

int Bridge::write(DiskIndex disk, std::span<const std::byte> data, std::uint64_t offset, bool fua) {
  counters_.writes.fetch_add(1, std::memory_order_relaxed);
  counters_.written_bytes.fetch_add(data.size(), std::memory_order_relaxed);
  while (!data.empty()) {
    const auto piece = data.first(std::min(data.size(), data_payload_bytes_max));
    const bool last = piece.size() == data.size();
    const int error = write_piece(disk, piece, offset, fua, last);
    if (error != 0) return error;
    data = data.subspan(piece.size());
    offset += piece.size();
  }
  return 0;
}

int Bridge::write_piece(
    DiskIndex disk, std::span<const std::byte> data, std::uint64_t offset, bool fua, bool last) {
  const Change change{.kind = FrameType::write,
                      .flags = fua && last ? frame_flag_fua : std::uint16_t{0},
                      .range = {disk, offset, data.size()}};
  while (true) {
    GuestRequest& request = GuestRequest::of_this_thread();
    if (const int error = admit_write(request, change); error != 0) return error;
    const int error = write_image(change.range, data, fua);
    if (error == 0) {
      place(request, last);
      fill(request.header, request.ring_offset, data);
      finish_frame();
      return last ? wait_for_answer(request) : 0;
    }
    // A switchover or a stop did not wait for space: what the image holds now is streamed, and the
    // write arrives anew, behind the hold. Where it is served next it can still be made.
    const bool put_back =
        is_full(error) && !stopping_() && local_trouble_.policy() == OnLocalError::hold;
    if (!put_back || !stream_present(request, change.range, false)) {
      return recover_failed_write(request, change.range, error);
    }
  }
}

int Bridge::write_image(const Range& range, std::span<const std::byte> data, bool fua) {
  const DiskImage& image = images_[range.disk];
  return local_trouble_.persist([&] { return image.write(data, range.offset_bytes, fua); },
                                [&] {
                                  return terms("write", range, [this, fua](int error) {
                                    if (is_full(error)) return is_hold_under_way();
                                    // The kernel tells but once that an earlier write did not reach the disk.
                                    return fua;
                                  });
                                });
}

int Bridge::read(DiskIndex disk, std::span<std::byte> to, std::uint64_t offset) {
  const DiskImage& image = images_[disk];
  return local_trouble_.persist(
      [&] { return image.read(to, offset); },
      [&] {
        return terms("read", {disk, offset, to.size()}, [](int /*error*/) { return false; });
      });
}

LocalTrouble::Terms Bridge::terms(const char* what,
                                  const Range& range,
                                  std::function<bool(int)> give_up) {
  return {.describe = [this, what, range](int error) { return describe(what, range, error); },
          .give_up = [this, give_up = std::move(give_up)](
                         int error) { return stopping_() || give_up(error); }};
}

Error Bridge::describe(const char* what, const Range& range, int error) const {
  const DiskImage& image = images_[range.disk];
  Error failure = errno_to_error(error,
                                 fmt::format("{} of {} bytes at {} of {}",
                                             what,
                                             range.length_bytes,
                                             range.offset_bytes,
                                             image.path()));
  failure.hint = is_full(error)
                     ? "the guest waits: make room there, or switch to another member; with "
                       "`replicactl set VOLUME on-local-error=fail` it gets the error"
                     : "the guest waits: repair the disk, or let another member take over; with "
                       "`replicactl set VOLUME on-local-error=fail` it gets the error";
  return failure;
}

bool Bridge::is_hold_under_way() {
  return look(
      [](const Primary& primary) { return primary.hold_phase() != Primary::HoldPhase::none; });
}

/// What the image holds in the range of a write that failed becomes the write, so that all members stay equal.
/// False if it cannot be read.
bool Bridge::stream_present(GuestRequest& request, const Range& range, bool wants_answer) {
  std::vector<std::byte> present(range.length_bytes);
  if (images_[range.disk].read(present, range.offset_bytes) != 0) return false;
  place(request, wants_answer);
  fill(request.header, request.ring_offset, present);
  finish_frame();
  return true;
}

int Bridge::rewrite(const Range& range) {
  GuestRequest& request = GuestRequest::of_this_thread();
  const Change change{.kind = FrameType::write, .flags = 0, .range = range};
  if (const int error = admit_write(request, change); error != 0) return error;
  // Nothing else is written there until the frame has its number.
  if (stream_present(request, range, true)) return wait_for_answer(request);
  step(primary_event::Abandoned{request.id()});
  return EIO;
}

int Bridge::recover_failed_write(GuestRequest& request, const Range& range, int error) {
  log(LogLevel::error,
      "local_write_failed",
      "disk={} offset={} bytes={} errno={}",
      images_[range.disk].name(),
      range.offset_bytes,
      range.length_bytes,
      error);
  // Part of the range may hold new bytes. After any other error than want of space the image is not trusted.
  if (is_full(error) && stream_present(request, range, false)) return error;
  return fail_volume(request, range, "write", error);
}

int Bridge::fail_volume(GuestRequest& request, const Range& range, const char* what, int error) {
  Error failure = describe(what, range, error);
  failure.hint = "the image is not trusted any more: " + failure.hint;
  {
    std::unique_lock lock(mutex_);
    step_locked(primary_event::Fail{std::move(failure)}, boot_time_now());
    step_locked(primary_event::Abandoned{request.id()}, boot_time_now());
    unlock_and_wake(lock);
  }
  local_trouble_.wait_out(stopping_);
  return error;
}

int Bridge::zero(DiskIndex disk,
                 FrameType kind,
                 std::uint64_t offset,
                 std::uint64_t length,
                 bool may_trim,
                 bool fua) {
  counters_.zeroes.fetch_add(1, std::memory_order_relaxed);
  while (length > 0) {
    const std::uint64_t piece = std::min(length, range_bytes_max);
    const bool last = piece == length;
    std::uint16_t flags =
        kind == FrameType::zero && may_trim ? frame_flag_may_trim : std::uint16_t{0};
    if (fua && last) flags |= frame_flag_fua;
    GuestRequest& request = GuestRequest::of_this_thread();
    const Change change{.kind = kind, .flags = flags, .range = {disk, offset, piece}};
    if (const int error = admit_write(request, change); error != 0) return error;
    const bool may_punch = may_trim || kind == FrameType::trim;
    if (const int error = zero_image(change.range, may_punch, fua); error != 0) {
      return fail_volume(request, change.range, "zeroing", error);
    }
    place(request, last);
    fill(request.header, request.ring_offset, {});
    finish_frame();
    if (last) return wait_for_answer(request);
    length -= piece;
    offset += piece;
  }
  return 0;
}

int Bridge::zero_image(const Range& range, bool may_punch, bool fua) {
  const DiskImage& image = images_[range.disk];
  const int error = local_trouble_.persist(
      [&] { return image.zero(range.offset_bytes, range.length_bytes, may_punch); },
      [&] { return terms("zeroing", range, [](int /*error*/) { return false; }); });
  return error == 0 && fua ? image.sync() : error;
}

int Bridge::flush(DiskIndex disk) {
  counters_.flushes.fetch_add(1, std::memory_order_relaxed);
  GuestRequest& request = GuestRequest::of_this_thread();
  const Change change{.kind = FrameType::flush, .flags = 0, .range = {}};
  if (const int error = admit(request, change); error != 0) return error;
  // The frame goes first: the replicas sync while this host does.
  place(request, true);
  fill(request.header, request.ring_offset, {});
  finish_frame();
  if (const int error = images_[disk].sync(); error != 0) {
    // Trying again would prove nothing: the kernel tells such a loss once.
    Error failure = errno_to_error(error, fmt::format("fdatasync of {}", images_[disk].path()));
    failure.hint =
        "what was not durable may be lost, and the guest waits: let another member take over; with "
        "`replicactl set VOLUME on-local-error=fail` it gets the error";
    step(primary_event::Fail{std::move(failure)});
    static_cast<void>(wait_for_answer(request));
    return error;
  }
  step(primary_event::LocalSynced{request.id()});
  return wait_for_answer(request);
}

}  // namespace replicad
