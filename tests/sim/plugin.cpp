#include "tests/sim/plugin.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "tests/sim/cluster.h"

namespace replicad::sim {

namespace {

constexpr Duration tick_interval = std::chrono::milliseconds(50);
constexpr Duration record_retry = std::chrono::milliseconds(500);
constexpr Duration program_delay = std::chrono::microseconds(100);
constexpr Duration cooling_interval = std::chrono::milliseconds(150);

}  // namespace

Plugin::Plugin(Cluster& cluster, HostIndex host)
    : cluster_(cluster),
      world_(cluster.world),
      machine_(*cluster.machines[host]),
      host_(host),
      mode_(cluster.options.mode),
      congestion_(cluster.options.congestion) {}

std::shared_ptr<Daemon> Plugin::daemon() const {
  auto daemon = daemon_.lock();
  return daemon && daemon->is_alive() ? daemon : nullptr;
}

void Plugin::start() {
  join(cluster_.daemons[host_]);
  if (!daemon()) return die();
  asked_at_ = machine_.clock();
  daemon()->claim(shared_from_this(),
                  life_.guard([self = weak_from_this()](const Result<ClaimGrant>& grant) {
                    if (const auto plugin = self.lock()) plugin->on_claimed(grant);
                  }));
}

void Plugin::daemon_died() {
  if (!is_serving()) return die();
  machine_.after(Duration{}, life_.guard([this] {
    for (const auto& [id, done] : std::exchange(asked_, {}))
      done(fail(Errc::unreachable, "replicad is gone"));
  }));
}

/// `done`, once: with replicad's answer, or with an error when it dies before.
std::function<void(Status)> Plugin::asked(std::function<void(Status)> done) {
  const std::uint64_t id = ++last_asked_;
  asked_[id] = std::move(done);
  return life_.guard([this, id](const Status& answer) {
    const auto found = asked_.find(id);
    if (found == asked_.end()) return;
    const auto waiting = std::move(found->second);
    asked_.erase(found);
    waiting(answer);
  });
}

void Plugin::die() {
  if (!life_.is_alive()) return;
  life_.end();
  for (const auto& link : links_)
    link->abandon();
  cluster_.plugin_died(host_);
}

void Plugin::on_claimed(const Result<ClaimGrant>& grant) {
  if (!grant) return die();
  world_.note("{} serves in epoch {} from sequence {}",
              machine_.name,
              grant->epoch.number,
              grant->history.sequence);
  const Options& options = cluster_.options;
  ActivityModel::Setup setup;
  setup.disk_bytes.assign(options.disks, options.blocks * block_bytes);
  for (HostIndex host = 0; host < options.hosts; ++host) {
    if (host != host_) setup.members.push_back(host_name(host));
  }
  setup.epoch = grant->epoch;
  setup.history = grant->history;
  setup.unclean = !grant->was_clean;
  activity_ = std::make_shared<ActivityModel>(world_, machine_, options, life_, std::move(setup));
  activity_->open([this, grant = *grant](int error, const ActivityModel::Known& known) {
    if (error != 0) return die();
    serve(grant, known);
  });
}

void Plugin::serve(const ClaimGrant& grant, ActivityModel::Known known) {
  const Options& options = cluster_.options;
  PrimaryConfig config;
  config.epoch = grant.epoch;
  config.history = grant.history;
  config.reserved = reserved_ = grant.reserved;
  config.terms = std::move(known.terms);
  config.lacks = std::move(known.lacks);
  config.trail = std::move(known.trail);
  config.disk_bytes.assign(options.disks, options.blocks * block_bytes);
  for (HostIndex host = 0; host < options.hosts; ++host) {
    if (host != host_) config.peers.push_back(host_name(host));
  }
  config.in_sync = grant.in_sync;
  if (options.planted != Planted::unwatched_term) config.voters = grant.voters;
  config.asked_at = asked_at_;
  config.on_local_error = OnLocalError::fail;
  config.host = machine_.name;
  config.mode = mode_;
  config.congestion = congestion_;
  config.ring_bytes = options.ring_bytes;
  config.ack_timeout = options.ack_timeout;
  ring_.resize(options.ring_bytes);
  primary_.emplace(config, machine_.clock());
  for (const std::string& peer : config.peers) {
    links_.push_back(
        std::make_shared<PeerLink>(*this, primary_->find_peer(peer).value(), host_index(peer)));
    links_.back()->connect();
  }
  every_tick();
  every_second();
  cool_regularly();
  cluster_.plugin_serves(host_);
}

// --- the core

void Plugin::step(const PrimaryEvent& event) {
  if (!is_serving()) return;
  RD_CHECK(!stepping_);
  seal_ready();
  step_locked(event);
}

void Plugin::step_later(PrimaryEvent event) {
  machine_.after(Duration{}, life_.guard([this, event = std::move(event)] { step(event); }));
}

void Plugin::seal_ready() {
  while (!primary_->ring().all_sealed()) {
    const Sequence next = primary_->ring().next_unsealed();
    const auto ready = filled_.find(next);
    if (ready == filled_.end()) return;
    const Filled frame = std::move(ready->second);
    filled_.erase(ready);
    const HistoryPoint before = primary_->history();
    stepping_ = true;
    std::vector<PrimaryEffect> effects;
    primary_->step(primary_event::FrameReady{next, frame.crc}, machine_.clock(), effects);
    stepping_ = false;
    // The history is extended before anybody can hear of it.
    cluster_.histories.extend(before, primary_->history(), frame.range, frame.stamps);
    for (const PrimaryEffect& effect : effects)
      perform_now(effect, for_reactor_);
  }
  if (!for_reactor_.empty()) turn();
}

void Plugin::step_locked(const PrimaryEvent& event) {
  stepping_ = true;
  std::vector<PrimaryEffect> effects;
  primary_->step(event, machine_.clock(), effects);
  primary_->check_invariants();
  stepping_ = false;
  for (const PrimaryEffect& effect : effects)
    perform_now(effect, for_reactor_);
  if (!for_reactor_.empty()) turn();
}

/// What the plugin does under its lock, and what is left for the reactor.
void Plugin::perform_now(const PrimaryEffect& effect, std::vector<PrimaryEffect>& later) {
  if (const auto* admit = std::get_if<primary_effect::Admitted>(&effect)) {
    admitted(admit->id);
  } else if (const auto* placed = std::get_if<primary_effect::Placed>(&effect)) {
    if (!placed->id) {
      put_frame(placed->header, placed->ring_offset, {});
      return;
    }
    Pending& pending = requests_.at(*placed->id);
    pending.header = placed->header;
    pending.ring_offset = placed->ring_offset;
    pending.placed = true;
    pending.mode = mode_;
    machine_.after(world_.random.delay(program_delay),
                   life_.guard([this, id = *placed->id] { fill(id); }));
  } else if (const auto* done = std::get_if<primary_effect::Answer>(&effect)) {
    answer(done->id, done->failed);
  } else if (const auto* sendable = std::get_if<primary_effect::Sendable>(&effect)) {
    sendable_.insert(sendable->peer);
    turn();
  } else {
    later.push_back(effect);
  }
}

void Plugin::turn() {
  if (turning_) return;
  turning_ = true;
  machine_.after(world_.random.delay(program_delay), life_.guard([this] {
    turning_ = false;
    seal_ready();
    std::vector<PrimaryEffect> effects;
    effects.swap(for_reactor_);
    const std::set<PeerIndex> sendable = std::exchange(sendable_, {});
    for (const PrimaryEffect& effect : effects)
      perform(effect);
    for (const PeerIndex peer : sendable)
      links_[peer]->kick();
  }));
}

void Plugin::perform(const PrimaryEffect& effect) {
  if (const auto* record = std::get_if<primary_effect::Record>(&effect)) {
    world_.note("{} records {}: {}",
                machine_.name,
                fmt::format("{}", fmt::join(record->in_sync, ",")),
                record->reason);
    send_record(record->in_sync);
  } else if (const auto* reserve = std::get_if<primary_effect::Reserve>(&effect)) {
    send_reserve(reserve->until);
  } else if (std::holds_alternative<primary_effect::SyncImages>(effect)) {
    sync_local([this](bool ok) { step(primary_event::ImagesSynced{ok}); });
  } else if (const auto* reached = std::get_if<primary_effect::HoldReached>(&effect)) {
    finish_hold(reached->point);
  } else if (const auto* failed = std::get_if<primary_effect::HoldFailed>(&effect)) {
    finish_hold(tl::unexpected(failed->error));
  } else if (const auto* start = std::get_if<primary_effect::StartPeer>(&effect)) {
    links_[start->peer]->send_start(start->message);
  } else if (const auto* copy = std::get_if<primary_effect::RunCopy>(&effect)) {
    links_[copy->peer]->run_copy(*copy->plan);
  } else if (const auto* locked = std::get_if<primary_effect::CopyLocked>(&effect)) {
    links_[locked->peer]->copy_locked();
  } else if (const auto* close = std::get_if<primary_effect::ClosePeer>(&effect)) {
    world_.note("{} closes peer {}: {}", machine_.name, close->peer, close->error.message);
    links_[close->peer]->close(close->error);
  } else if (const auto* sync = std::get_if<primary_effect::RequestSync>(&effect)) {
    links_[sync->peer]->request_sync();
  } else if (const auto* ping = std::get_if<primary_effect::Ping>(&effect)) {
    links_[ping->peer]->ping();
  }
}

void Plugin::every_tick() {
  step(primary_event::Tick{});
  machine_.after(tick_interval, life_.guard([this] { every_tick(); }));
}

void Plugin::every_second() {
  if (cluster_.options.planted == Planted::unasked_answer) step(primary_event::Recorded{});
  for (const auto& link : links_)
    link->on_second();
  if (!daemon()) {
    // replicad is back, or not yet.
    const auto& next = cluster_.daemons[host_];
    if (next->is_alive()) next->rejoin(shared_from_this());
  }
  machine_.after(std::chrono::milliseconds(heartbeat_ms), life_.guard([this] { every_second(); }));
}

// --- requests of the guest

void Plugin::submit(const GuestOp& op) {
  if (op.kind == GuestOp::Kind::read) {
    machine_.io(
        [] {},
        life_.guard([this, op](int error) {
          const Image& image = machine_.images[op.range.disk];
          const bool is_stale = cluster_.options.planted == Planted::stale_read;
          const Blocks& blocks = is_stale ? image.stable() : image.blocks();
          const auto first = static_cast<std::ptrdiff_t>(op.range.offset_bytes / block_bytes);
          const auto count = static_cast<std::ptrdiff_t>(op.range.length_bytes / block_bytes);
          cluster_.guest.on_read(
              op, error != 0, {blocks.begin() + first, blocks.begin() + first + count});
        }),
        false,
        Program::plugin);
    return;
  }
  Pending pending;
  pending.op = op;
  switch (op.kind) {
    case GuestOp::Kind::write:
      pending.change.kind = FrameType::write;
      break;
    case GuestOp::Kind::zero:
      pending.change.kind = FrameType::zero;
      break;
    case GuestOp::Kind::trim:
      pending.change.kind = FrameType::trim;
      break;
    case GuestOp::Kind::flush:
    case GuestOp::Kind::read:
      pending.change.kind = FrameType::flush;
      break;
  }
  pending.change.range = op.range;
  if (op.fua) pending.change.flags |= frame_flag_fua;
  requests_[op.id] = pending;
  step(primary_event::WriteArrived{op.id, pending.change});
}

void Plugin::admitted(RequestId id) {
  const Pending& pending = requests_.at(id);
  const GuestOp& op = pending.op;
  if (op.kind == GuestOp::Kind::flush) {
    // The frame goes first: the replicas sync while this host does.
    machine_.after(world_.random.delay(program_delay), life_.guard([this, id] {
      step(primary_event::LocalWritten{id, true});
    }));
    return;
  }
  // Another change of the same range is not admitted meanwhile.
  activity_->mark(op.range, life_.guard([this, id](int error) { write_image(id, error); }));
}

/// `error`: of the activity map, before anything was written.
void Plugin::write_image(RequestId id, int error) {
  const GuestOp& op = requests_.at(id).op;
  if (error != 0) {
    world_.reached("the activity map could not be written");
    step(primary_event::Abandoned{id});
    if (requests_.contains(id)) answer(id, true);
    return;
  }
  machine_.io(
      [&image = machine_.images[op.range.disk], op] {
        const std::size_t first = op.range.offset_bytes / block_bytes;
        if (op.fua) {
          image.write_through(first, op.stamps);
        } else {
          image.write(first, op.stamps);
        }
      },
      life_.guard([this, id](int failed) { written(id, failed); }),
      true,
      Program::plugin);
}

void Plugin::cool_regularly() {
  const ActivityModel::Environment environment{
      .core = [this]() -> const Primary& { return *primary_; },
      .sync_images =
          [this](std::function<void(bool)> done) {
            sync_local([this, done = std::move(done)](bool ok) {
              if (!ok) {
                step(primary_event::Fail{Error{Errc::io_error, EIO, "fdatasync of an image", {}}});
              }
              done(ok);
            });
          }};
  // Nothing behind what the end of a clean stop puts on record.
  if (!stopping_) activity_->cool(environment);
  machine_.after(cooling_interval / 2 + world_.random.delay(cooling_interval),
                 life_.guard([this] { cool_regularly(); }));
}

void Plugin::finish_activity(const HistoryPoint& point, std::function<void()> done) {
  std::vector<KnownLack> lacks;
  for (const std::string& host : primary_->member_hosts())
    lacks.push_back(primary_->known_lack(primary_->find_peer(host).value()));
  activity_->finish(point, std::move(lacks), life_.guard(std::move(done)));
}

void Plugin::written(RequestId id, int error) {
  Pending& pending = requests_.at(id);
  if (error == 0) {
    step(primary_event::LocalWritten{id, true});
    return;
  }
  if (error == ENOSPC && pending.op.kind == GuestOp::Kind::write) {
    // What the image holds becomes the write, so that all stay equal; the guest gets the error.
    world_.reached("no space on the primary");
    const Blocks& blocks = machine_.images[pending.op.range.disk].blocks();
    const auto first = static_cast<std::ptrdiff_t>(pending.op.range.offset_bytes / block_bytes);
    std::ranges::copy_n(blocks.begin() + first,
                        static_cast<std::ptrdiff_t>(pending.op.stamps.size()),
                        pending.op.stamps.begin());
    pending.wants_answer = false;
    pending.failed = true;
    step(primary_event::LocalWritten{id, false});
    return;
  }
  world_.reached("the primary's image failed");
  step(primary_event::Fail{errno_to_error(error, "write image")});
  step(primary_event::Abandoned{id});
  if (requests_.contains(id)) answer(id, true);
}

void Plugin::fill(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  const Pending pending = found->second;
  put_frame(pending.header,
            pending.ring_offset,
            pending.change.kind == FrameType::flush ? Blocks{} : pending.op.stamps);
  if (pending.failed) {
    answer(id, true);
  } else if (cluster_.options.planted == Planted::flush_without_effect &&
             pending.op.kind == GuestOp::Kind::flush) {
    step_later(primary_event::LocalSynced{id});
  } else if (pending.op.kind == GuestOp::Kind::flush) {
    sync_local([this, id](bool ok) {
      if (ok) {
        const auto flush = requests_.find(id);
        if (flush != requests_.end()) flush->second.synced = true;
        step(primary_event::LocalSynced{id});
      } else {
        step(primary_event::Fail{Error{Errc::io_error, EIO, "fdatasync of an image", {}}});
      }
    });
  }
  seal_ready();
}

void Plugin::put_frame(FrameHeader header, std::uint64_t offset, const Blocks& stamps) {
  std::vector<std::byte> bytes(frame_header_bytes + header.payload_bytes);
  if (header.payload_bytes > 0) {
    put_stamps(stamps, std::span(bytes).subspan(frame_header_bytes));
    header.payload_crc32c = crc32c(std::span<const std::byte>(bytes).subspan(frame_header_bytes));
  }
  encode_header(header, std::span(bytes).first<frame_header_bytes>());
  const std::size_t at = offset % ring_.size();
  const std::size_t first = std::min(bytes.size(), ring_.size() - at);
  std::memcpy(ring_.data() + at, bytes.data(), first);
  std::memcpy(ring_.data(), bytes.data() + first, bytes.size() - first);
  filled_[header.sequence] = {header.payload_crc32c, header.range, stamps};
  turn();
}

void Plugin::answer(RequestId id, bool failed) {
  const auto found = requests_.find(id);
  RD_CHECK(found != requests_.end());
  const Pending pending = std::move(found->second);
  // A frame that is placed must still reach the ring, whatever its answer.
  const bool unfilled = pending.placed && !filled_.contains(pending.header.sequence) &&
                        primary_->ring().next_unsealed() <= pending.header.sequence;
  if (unfilled) {
    put_frame(pending.header,
              pending.ring_offset,
              pending.change.kind == FrameType::flush ? Blocks{} : pending.op.stamps);
  }
  requests_.erase(found);
  const bool counts =
      !failed && cluster_.check_answer(*this, pending.op, pending.header, pending.mode);
  cluster_.guest.on_answer(pending.op, !counts);
}

std::vector<std::byte> Plugin::ring_bytes(const Primary::SendWindow& window) const {
  const std::size_t count = window.end_bytes - window.begin_bytes;
  const std::span ring(ring_);
  const std::size_t at = window.begin_bytes % ring.size();
  const auto first = ring.subspan(at, std::min(count, ring.size() - at));
  const auto rest = ring.first(count - first.size());
  std::vector<std::byte> bytes;
  bytes.reserve(count);
  bytes.insert(bytes.end(), first.begin(), first.end());
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  return bytes;
}

Primary::SendWindow Plugin::take(PeerIndex peer, std::uint64_t bytes_max) {
  return primary_->take(peer, bytes_max);
}

void Plugin::sync_local(std::function<void(bool)> done) {
  sync_images(
      machine_,
      life_,
      [done = std::move(done)](const Status& status) { done(status.has_value()); },
      true);
}

// --- replicad

void Plugin::send_record(const std::vector<std::string>& in_sync) {
  auto retry = life_.guard([this, in_sync] {
    machine_.after(record_retry, life_.guard([this, in_sync] { send_record(in_sync); }));
  });
  const auto to = daemon();
  if (!to) return retry();
  to->record_in_sync(in_sync, asked([this, retry](const Status& written) mutable {
                       if (written) {
                         step(primary_event::Recorded{});
                       } else {
                         retry();
                       }
                     }));
}

void Plugin::send_reserve(Sequence until) {
  auto retry = life_.guard([this, until] {
    machine_.after(record_retry, life_.guard([this, until] { send_reserve(until); }));
  });
  const auto to = daemon();
  if (!to) return retry();
  to->reserve(until, asked([this, until, retry](const Status& written) mutable {
                if (written) {
                  reserved_ = until;
                  world_.reached("sequences reserved");
                  step(primary_event::ReserveGranted{until});
                } else {
                  retry();
                }
              }));
}

void Plugin::hold(HostIndex target,
                  Duration deadline,
                  std::function<void(Result<HistoryPoint>)> done) {
  if (hold_done_) {
    done(fail(Errc::busy, "another hold is under way"));
    return;
  }
  hold_done_ = std::move(done);
  std::optional<PeerIndex> peer;
  if (target != host_) peer = primary_->find_peer(host_name(target));
  step(primary_event::Hold{peer, machine_.clock() + deadline});
}

void Plugin::finish_hold(Result<HistoryPoint> result) {
  // It may have ended since: then it cannot be sealed.
  if (result && primary_->hold_phase() == Primary::HoldPhase::reached)
    cluster_.check_held(*this, *result);
  if (!hold_done_) return;
  std::exchange(hold_done_, nullptr)(std::move(result));
}

Status Plugin::seal() {
  if (primary_->hold_phase() != Primary::HoldPhase::reached) {
    return fail(Errc::refused, "the hold is over");
  }
  step(primary_event::Seal{});
  return {};
}

bool Plugin::is_outdated() const {
  if (primary_->is_overtaken()) return true;
  return std::ranges::any_of(links_, [](const auto& link) { return link->is_outdated(); });
}

void Plugin::resume(const std::optional<Epoch>& epoch) {
  if (!is_serving() || stopping_) return;
  step(primary_event::Resume{epoch});
}

void Plugin::request_copy(HostIndex host) {
  const auto peer = primary_->find_peer(host_name(host));
  if (!peer) return;
  const PeerView view = primary_->view(*peer, machine_.clock());
  if (view.phase != PeerPhase::detached || view.in_sync) return;
  step(primary_event::CopyRequested{*peer});
}

void Plugin::set_mode(Mode mode, Congestion congestion) {
  // What `async` has not answered by then, members have to have.
  for (auto& [id, pending] : requests_) {
    const bool waits = pending.placed && pending.op.kind == GuestOp::Kind::flush && !pending.synced;
    if (waits && pending.mode == Mode::async) pending.mode = mode;
  }
  mode_ = mode;
  congestion_ = congestion;
  step(primary_event::SettingsChanged{
      mode, congestion, cluster_.options.ack_timeout, OnLocalError::fail});
}

/// A clean stop: hold, report, end.
void Plugin::stop() {
  if (stopping_ || hold_done_) return;
  stopping_ = true;
  hold(host_,
       cluster_.options.ack_timeout + std::chrono::seconds(2),
       life_.guard([this](const Result<HistoryPoint>& point) {
         const auto to = daemon();
         // The deadline must not let anything in behind the point that is on its way to the disk.
         if (!point || !to || !seal()) return die();
         finish_activity(*point, [this, point = *point] {
           const auto agent = daemon();
           if (!agent) return die();
           agent->stopped(point, asked([this](const Status& written) {
                            if (written) world_.reached("clean stop");
                            die();
                          }));
         });
       }));
}

}  // namespace replicad::sim
