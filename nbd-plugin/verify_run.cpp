#include "nbd-plugin/verify_run.h"

#include <algorithm>

#include "core/base/log.h"
#include "io/clock.h"

namespace replicad {

namespace {

using nlohmann::json;

constexpr std::size_t ranges_shown_max = 16;
constexpr std::uint64_t rewrite_bytes_max = 16 * block_bytes;

/// Runs `function` with every run of marked blocks, of at most `length_max` bytes each.
template <typename Function>
void for_each_run(const BlockMap& blocks, std::uint64_t length_max, Function function) {
  for (auto run = blocks.next(0, 0, length_max); run;
       run = blocks.next(run->disk, run->end_bytes(), length_max))
    function(*run);
}

double in_seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

VerifyRun::VerifyRun(const Context& context, Request request, Hooks hooks)
    : context_(context),
      request_(std::move(request)),
      hooks_(std::move(hooks)),
      began_(boot_time_now()) {
  for (const Target& target : request_.targets)
    sides_.push_back({.target = target, .job = nullptr, .is_compared = false, .error = {}});
  std::vector<std::uint64_t> disk_bytes;
  for (const DiskImage& image : context_.images)
    disk_bytes.push_back(image.bytes());
  to_rewrite_ = rewritten_ = BlockMap(disk_bytes);
}

void VerifyRun::start() {
  log(LogLevel::info,
      "verify_started",
      "id={} replicas={} repair={}",
      request_.id,
      sides_.size(),
      request_.repair);
  advance();
}

void VerifyRun::stop() {
  if (is_over() || error_) return;
  error_ = Error{Errc::refused, 0, "stopped by request", {}};
  if (next_ < sides_.size() && sides_[next_].job) sides_[next_].job->stop(*error_);
}

void VerifyRun::advance() {
  if (is_over()) return;
  if (error_) return finish(State::stopped);
  for (; next_ < sides_.size(); ++next_) {
    Side& side = sides_[next_];
    if (rechecks_ ? recheck(side) : compare(side)) return;
  }
  if (!sorted_out_) {
    sorted_out_ = true;
    sort_out();
  }
  if (!rechecks_ && request_.repair) {
    rewrite_next();
    return;
  }
  const bool failed =
      std::ranges::any_of(sides_, [](const Side& side) { return side.error.has_value(); });
  finish(failed ? State::failed : State::done);
}

std::optional<Error> VerifyRun::why_not(const Side& side) const {
  const std::string& host = side.target.host;
  PeerLink* link = hooks_.link(side.target.peer);
  if (link == nullptr) return Error{Errc::not_found, 0, host + " is no member any more", {}};
  const PeerView view = context_.bridge.look([&](const Primary& primary) {
    return primary.view(side.target.peer, context_.reactor.now());
  });
  if (view.phase != PeerPhase::streaming) {
    return Error{Errc::refused,
                 0,
                 fmt::format("{} is {}: only a replica that follows the stream is compared",
                             host,
                             peer_state_name(view.phase, view.caught_up, link->was_refused())),
                 "`replicactl status` shows what it waits for"};
  }
  if (!link->can_verify()) {
    return Error{Errc::not_supported,
                 0,
                 host + " runs an older replicad, which cannot compare",
                 "upgrade it (docs/operations.md)"};
  }
  return std::nullopt;
}

/// False: there is nothing to wait for.
bool VerifyRun::compare(Side& side) {
  side.error = why_not(side);
  if (side.error) return false;
  PeerLink* link = hooks_.link(side.target.peer);
  const std::weak_ptr<PeerLink> weak_link = link->weak_from_this();
  const std::weak_ptr<VerifyRun> weak = weak_from_this();
  const VerifyJob::Context context{
      context_.reactor, context_.worker, context_.bridge, context_.images, side.target.peer};
  side.job =
      std::make_shared<VerifyJob>(context,
                                  VerifyJob::Hooks{.on_sums =
                                                       [weak_link](std::vector<std::byte> frame) {
                                                         if (const auto to = weak_link.lock())
                                                           to->send_sums(std::move(frame));
                                                       },
                                                   .on_sync =
                                                       [weak_link] {
                                                         if (const auto to = weak_link.lock())
                                                           to->request_sync();
                                                       },
                                                   .on_end =
                                                       [weak, index = next_] {
                                                         if (const auto self = weak.lock())
                                                           self->on_end(index);
                                                       }});
  link->set_verify(side.job);
  side.job->start();
  return true;
}

void VerifyRun::on_end(std::size_t index) {
  if (is_over() || index != next_) return;
  Side& side = sides_[index];
  side.is_compared = !side.job->error();
  if (!error_) side.error = side.job->error();  // else it was stopped
  ++next_;
  advance();
}

/// Another copy is like the primary's there.
bool VerifyRun::has_confirmation(const Range& block) const {
  return std::ranges::any_of(sides_, [&](const Side& side) {
    return side.is_compared && !side.job->found().overlaps_any(block) &&
           !side.job->not_compared().overlaps_any(block);
  });
}

void VerifyRun::sort_out() {
  BlockMap all(to_rewrite_.disk_bytes());
  for (const Side& side : sides_) {
    if (!side.job) continue;
    for_each_run(side.job->found(), range_bytes_max, [&](const Range& run) { all.mark(run); });
  }
  for_each_run(all, block_bytes, [&](const Range& block) {
    const bool confirmed = has_confirmation(block);
    if (!confirmed) ++alone_blocks_;
    if (confirmed || request_.force) {
      to_rewrite_.mark(block);
    } else {
      ++kept_blocks_;
    }
  });
}

void VerifyRun::rewrite_next() {
  const auto run = to_rewrite_.next(0, 0, rewrite_bytes_max);
  if (!run) {
    rechecks_ = true;
    next_ = 0;
    advance();
    return;
  }
  to_rewrite_.clear(*run);
  context_.worker.post([self = shared_from_this(), run = *run]() mutable {
    const int error = self->context_.bridge.rewrite(run);
    Reactor& reactor = self->context_.reactor;
    reactor.post([self = std::move(self), run, error] { self->on_rewritten(run, error); });
  });
}

void VerifyRun::on_rewritten(const Range& run, int error) {
  if (error == 0) {
    rewritten_.mark(run);
    log(LogLevel::warn,
        "verify_rewritten",
        "disk={} offset={} bytes={}",
        context_.images[run.disk].name(),
        run.offset_bytes,
        run.length_bytes);
    advance();
    return;
  }
  Error failure = errno_to_error(error,
                                 fmt::format("write {} bytes at {} of {} anew",
                                             run.length_bytes,
                                             run.offset_bytes,
                                             context_.images[run.disk].name()));
  log(LogLevel::error, "verify_not_rewritten", "error={}", log_value(failure.message));
  for (Side& side : sides_) {
    if (side.job && !side.error && side.job->found().overlaps_any(run)) side.error = failure;
  }
  advance();
}

/// False: there is nothing to wait for.
bool VerifyRun::recheck(Side& side) {
  if (!side.job) return false;
  BlockMap blocks(rewritten_.disk_bytes());
  for_each_run(side.job->different(), block_bytes, [&](const Range& block) {
    if (rewritten_.overlaps_any(block)) blocks.mark(block);
  });
  if (blocks.empty()) return false;
  // It has gone since.
  if (side.job->error()) side.error = side.job->error();
  if (side.error) return false;
  side.job->recheck(blocks);
  return true;
}

void VerifyRun::finish(State state) {
  state_ = state;
  ended_ = boot_time_now();
  std::uint64_t different = 0;
  for (const Side& side : sides_) {
    PeerLink* link = side.job ? hooks_.link(side.target.peer) : nullptr;
    if (link != nullptr) link->set_verify(nullptr);
    if (side.job) different += side.job->found().blocks();
  }
  log(different > 0 || state != State::done ? LogLevel::error : LogLevel::info,
      "verify_ended",
      "id={} state={} different_blocks={}",
      request_.id,
      state_name(state),
      different);
  hooks_.on_over();
}

const char* VerifyRun::state_name(State state) {
  switch (state) {
    case State::running:
      return "running";
    case State::done:
      return "done";
    case State::failed:
      return "failed";
    case State::stopped:
      return "stopped";
  }
  return "?";
}

json VerifyRun::side_json(std::size_t index) const {
  const Side& side = sides_[index];
  const bool waits = !is_over() && !side.error && (!side.job || index > next_);
  const bool runs = !is_over() && !side.error && index == next_ && side.job;
  const std::optional<Error> error = side.error ? side.error
                                     : side.job ? side.job->read_error()
                                                : std::nullopt;
  const char* state = side.error ? "failed" : waits ? "waiting" : runs ? "running" : "done";
  if (is_over() && !side.error && !side.is_compared) state = "stopped";
  json ranges = json::array();
  if (side.job) {
    for_each_run(side.job->found(), range_bytes_max, [&](const Range& run) {
      if (ranges.size() == ranges_shown_max) return;
      ranges.push_back({{"disk", context_.images[run.disk].name()},
                        {"offset", run.offset_bytes},
                        {"length", run.length_bytes}});
    });
  }
  const VerifyJob* job = side.job.get();
  return {{"host", side.target.host},
          {"state", state},
          {"done_bytes", job != nullptr ? job->done_bytes() : 0},
          {"total_bytes", job != nullptr ? job->total_bytes() : 0},
          {"different_blocks", job != nullptr ? job->found().blocks() : 0},
          {"repaired_blocks", job != nullptr ? job->repaired_blocks() : 0},
          {"not_compared_blocks", job != nullptr ? job->not_compared().blocks() : 0},
          {"ranges", ranges},
          {"error", error ? error_json(*error) : json(nullptr)}};
}

json VerifyRun::describe() const {
  json replicas = json::array();
  for (std::size_t index = 0; index < sides_.size(); ++index)
    replicas.push_back(side_json(index));
  const Instant now = boot_time_now();
  return {{"id", request_.id},
          {"state", state_name(state_)},
          {"repair", request_.repair},
          {"force", request_.force},
          {"seconds", in_seconds((is_over() ? ended_ : now) - began_)},
          {"ended_seconds_ago", is_over() ? json(in_seconds(now - ended_)) : json(nullptr)},
          {"block_bytes", block_bytes},
          {"alone_blocks", alone_blocks_},
          {"kept_blocks", kept_blocks_},
          {"error", error_ ? error_json(*error_) : json(nullptr)},
          {"replicas", replicas}};
}

}  // namespace replicad
