#include "tests/unit/repl/primary_world.h"

#include <algorithm>

namespace replicad {

namespace {

constexpr std::uint64_t place_bytes = mib;  ///< requests aim at a few places, so that they overlap

std::vector<std::string> hosts_of(unsigned count) {
  const std::vector<std::string> all{"b", "c", "d"};
  return {all.begin(), all.begin() + count};
}

}  // namespace

// --- the guest and the disk of the primary's host ---

PrimaryWorld::PrimaryWorld(std::uint64_t seed)
    : random_(seed),
      config_([this] {
        PrimaryConfig config;
        config.epoch = {4, 44};
        config.history = {{3, 33}, base_sequence, {7, 8}};
        config.reserved = base_sequence + 100;
        config.disk_bytes = {64 * mib, 64 * mib};
        config.peers = hosts_of(static_cast<unsigned>(1 + draw(3)));
        config.host = "a";
        config.in_sync = {"a"};
        if (chance(70)) {
          config.in_sync.insert(config.in_sync.end(), config.peers.begin(), config.peers.end());
        }
        config.mode = static_cast<Mode>(draw(3));
        config.congestion = chance(75) ? Congestion::throttle : Congestion::detach;
        config.ring_bytes = ring_bytes_min;
        config.ack_timeout = std::chrono::milliseconds(500 + draw(5000));
        config.on_local_error = chance(50) ? OnLocalError::hold : OnLocalError::fail;
        return config;
      }()),
      mode_(config_.mode),
      congestion_(config_.congestion),
      on_local_error_(config_.on_local_error),
      primary_(config_, now_) {
  disk_record_ = {config_.in_sync.begin(), config_.in_sync.end()};
  for (const std::string& host : config_.peers) {
    Replica replica;
    replica.host = host;
    replica.index = primary_.find_peer(host).value();
    replica.logged = replica.durable = replica.applied = base_sequence;
    if (!disk_record_.contains(host) && chance(50)) {
      // It may lack some of what this primary inherited.
      replica.durable = base_sequence - draw(5);
      replica.applied = replica.durable;
      if (chance(30)) --replica.logged;
      replica.durable = std::min(replica.durable, replica.logged);
      replica.applied = replica.durable;
      replica.is_consistent = chance(80);
    }
    replica.ever_received = replica.ever_logged = replica.logged;
    replica.ever_durable = replica.durable;
    replicas_.push_back(std::move(replica));
  }
}

std::uint64_t PrimaryWorld::draw(std::uint64_t below) {
  return random_() % below;
}

void PrimaryWorld::require(bool condition, const std::string& text) const {
  if (!condition) throw Violation{text};
}

HistoryPoint PrimaryWorld::point(Sequence sequence) const {
  if (sequence == base_sequence) return config_.history;
  if (sequence < base_sequence) return {{2, 22}, sequence, {sequence, 1}};
  return history_.at(sequence - base_sequence - 1);
}

PrimaryWorld::Frame& PrimaryWorld::frame(Sequence sequence) {
  return frames_.at(sequence - base_sequence - 1);
}

void PrimaryWorld::step(const PrimaryEvent& event) {
  std::vector<PrimaryEffect> effects;
  primary_.step(event, now_, effects);
  primary_.check_invariants();
  for (const PrimaryEffect& effect : effects) {
    std::visit([this](const auto& e) { on(e); }, effect);
  }
}

void PrimaryWorld::guest_arrives() {
  const auto waits = std::ranges::count_if(
      requests_, [](const auto& entry) { return entry.second.state != GuestRequest::State::done; });
  if (waits >= 12) return;
  GuestRequest request;
  const std::uint64_t kind = draw(100);
  if (kind < 15) {
    request.change = {.kind = FrameType::flush, .flags = 0, .range = {}};
  } else {
    const auto disk = static_cast<DiskIndex>(draw(2));
    const std::uint64_t offset = draw(6) * place_bytes / 2;
    const std::uint64_t length = chance(25) ? data_payload_bytes_max : 512 * (1 + draw(16));
    request.change = {.kind = FrameType::write, .flags = 0, .range = {disk, offset, length}};
    if (kind < 30) request.change.kind = chance(50) ? FrameType::trim : FrameType::zero;
    if (chance(15)) request.change.flags = frame_flag_fua;
  }
  request.wants_answer = chance(85) || request.change.kind == FrameType::flush;
  const RequestId id = next_id_++;
  const Change change = request.change;
  requests_[id] = request;
  step(primary_event::WriteArrived{id, change});
  if (requests_[id].state == GuestRequest::State::arrived) ++counters_.ring_waits;
}

void PrimaryWorld::on(const primary_effect::Admitted& effect) {
  GuestRequest& admitted = requests_.at(effect.id);
  require(admitted.state == GuestRequest::State::arrived, "admitted twice");
  require(!reached_, "admitted while held");
  for (const auto& [id, other] : requests_) {
    if (!overlaps(other.change.range, admitted.change.range) || id == effect.id) continue;
    require(other.state != GuestRequest::State::admitted, "overlapping changes in flight");
    const bool is_earlier = id < effect.id && other.state == GuestRequest::State::arrived;
    require(!is_earlier, "overtook an earlier request for the same bytes");
  }
  for (const Replica& replica : replicas_) {
    require(!replica.copy.is_locked || !overlaps(replica.copy.range, admitted.change.range),
            "admitted into a range locked for a copy");
  }
  admitted.state = GuestRequest::State::admitted;
}

PrimaryWorld::Level PrimaryWorld::level_now(bool lasts) const {
  if (mode_ == Mode::async) return Level::none;
  if (mode_ == Mode::semi_sync) return lasts ? Level::logged : Level::received;
  return lasts ? Level::durable : Level::logged;
}

void PrimaryWorld::guest_writes() {
  for (auto& [id, request] : requests_) {
    if (request.state != GuestRequest::State::admitted || (!healing_ && chance(50))) continue;
    if (!healing_ && chance(5)) {
      request.state = GuestRequest::State::done;
      step(primary_event::Abandoned{id});
      return;
    }
    const bool lasts =
        request.change.kind == FrameType::flush || (request.change.flags & frame_flag_fua) != 0;
    request.level = level_now(lasts);
    step(primary_event::LocalWritten{id, request.wants_answer});
    require(
        request.state == GuestRequest::State::placed || request.state == GuestRequest::State::done,
        "a change that the image has was not numbered");
    if (!request.wants_answer) request.state = GuestRequest::State::done;
    return;
  }
}

void PrimaryWorld::on(const primary_effect::Placed& effect) {
  require(!reached_, "placed while held");
  const std::uint64_t bytes = frame_header_bytes + effect.header.payload_bytes;
  const Sequence expected = base_sequence + frames_.size() + 1;
  require(effect.header.sequence == expected, "sequences are not consecutive");
  require(effect.header.epoch == primary_.epoch(), "a frame of another epoch");
  const std::uint64_t begin = frames_.empty() ? 0 : frames_.back().end_bytes;
  require(effect.ring_offset == begin, "the ring has a gap");
  check_memory_is_free(begin + bytes);
  frames_.push_back({effect.header, begin, begin + bytes, false});
  if (!effect.id) return;
  GuestRequest& request = requests_.at(*effect.id);
  require(request.state == GuestRequest::State::admitted, "placed without being admitted");
  request.state = GuestRequest::State::placed;
  request.sequence = effect.header.sequence;
}

void PrimaryWorld::check_memory_is_free(std::uint64_t end_bytes) const {
  if (end_bytes <= config_.ring_bytes) return;
  const std::uint64_t overwritten_end = end_bytes - config_.ring_bytes;
  for (const Replica& replica : replicas_) {
    require(replica.unsent.empty() || replica.unsent.front().begin_bytes >= overwritten_end,
            "ring memory is reused while it is being sent");
  }
  for (const Frame& frame : frames_) {
    require(frame.is_ready || frame.begin_bytes >= overwritten_end,
            "ring memory is reused while it is being filled");
  }
}

void PrimaryWorld::frame_gets_ready() {
  std::vector<Frame*> open;
  for (Frame& frame : frames_) {
    if (!frame.is_ready) open.push_back(&frame);
  }
  if (open.empty()) return;
  Frame& ready = *open[draw(open.size())];
  ready.is_ready = true;
  if (ready.header.payload_bytes > 0) {
    ready.header.payload_crc32c = static_cast<std::uint32_t>(random_());
  }
  while (history_.size() < frames_.size() && frames_[history_.size()].is_ready) {
    const FrameHeader header = frames_[history_.size()].header;
    const Digest before = history_.empty() ? config_.history.digest : history_.back().digest;
    history_.push_back({header.epoch, header.sequence, extend_digest(before, digest_item(header))});
    step(primary_event::FrameReady{header.sequence, header.payload_crc32c});
    require(primary_.history() == history_.back(), "another digest than the stream's");
  }
}

void PrimaryWorld::flush_is_synced() {
  for (auto& [id, request] : requests_) {
    if (request.change.kind != FrameType::flush || request.synced) continue;
    if (request.state != GuestRequest::State::placed || (!healing_ && chance(50))) continue;
    request.synced = true;
    step(primary_event::LocalSynced{id});
    return;
  }
}

void PrimaryWorld::guest_cancels() {
  for (auto& [id, request] : requests_) {
    if (request.state != GuestRequest::State::arrived &&
        request.state != GuestRequest::State::placed)
      continue;
    if (chance(70)) continue;
    request.state = GuestRequest::State::done;
    step(primary_event::Cancelled{id});
    return;
  }
}

void PrimaryWorld::on(const primary_effect::Answer& effect) {
  GuestRequest& request = requests_.at(effect.id);
  require(request.state != GuestRequest::State::done, "answered twice, or after it was cancelled");
  if (effect.failed) {
    require(primary_.failure().has_value(), "failed for no reason");
    require(on_local_error_ == OnLocalError::fail, "failed where the guest is to wait");
  } else {
    require(!primary_.failure(), "answered as done after a failure");
    require(request.state == GuestRequest::State::placed, "answered before it was written");
    require(request.change.kind != FrameType::flush || request.synced,
            "a flush was answered before the local disk had it");
    check_answer(request);
    ++counters_.answers;
  }
  request.state = GuestRequest::State::done;
}

void PrimaryWorld::check_answer(const GuestRequest& request) const {
  for (const Replica& replica : replicas_) {
    if (!disk_record_.contains(replica.host)) continue;
    const Sequence has = request.level == Level::none       ? request.sequence
                         : request.level == Level::received ? replica.ever_received
                         : request.level == Level::logged   ? replica.ever_logged
                                                            : replica.ever_durable;
    require(has >= request.sequence,
            fmt::format("{} was answered without {}, which is recorded in sync and has {}",
                        request.sequence,
                        replica.host,
                        has));
  }
  auto* self = const_cast<PrimaryWorld*>(this);
  Sequence& highest = request.level == Level::durable  ? self->answered_durable_
                      : request.level == Level::logged ? self->answered_logged_
                                                       : self->answered_received_;
  if (request.level != Level::none) highest = std::max(highest, request.sequence);
}

// --- the local daemon ---

void PrimaryWorld::on(const primary_effect::Record& effect) {
  require(!record_under_way_, "a second record while one is under way");
  require(!is_sealed_, "a record between seal and resume");
  record_under_way_ = {effect.in_sync.begin(), effect.in_sync.end()};
  require(record_under_way_->contains("a"), "a record without the primary");
  is_record_durable_ = false;
  ++counters_.records;
  for (const Replica& replica : replicas_) {
    if (!record_under_way_->contains(replica.host) || disk_record_.contains(replica.host)) continue;
    require(replica.ever_durable >= base_sequence, "joined without what this primary inherited");
    require(replica.ever_received >= answered_received_ &&
                replica.ever_logged >= answered_logged_ &&
                replica.ever_durable >= answered_durable_,
            fmt::format("{} joined without what was answered", replica.host));
    require(!replica.was_found_wrong,
            fmt::format("{} joined though its image was found wrong", replica.host));
  }
}

void PrimaryWorld::record_moves() {
  if (!record_under_way_) return;
  if (!is_record_durable_) {
    disk_record_ = *record_under_way_;
    is_record_durable_ = true;
    if (!healing_ && chance(50)) return;
  }
  record_under_way_.reset();
  step(primary_event::Recorded{});
}

void PrimaryWorld::on(const primary_effect::Reserve& effect) {
  require(!reserve_under_way_, "asked for sequences twice");
  reserve_under_way_ = effect.until;
}

void PrimaryWorld::on(const primary_effect::SyncImages& /*effect*/) {
  ++image_syncs_;
}

void PrimaryWorld::daemon_moves() {
  if (reserve_under_way_ && (healing_ || chance(30))) {
    // Short grants, so that the limit is met often.
    const Sequence last = base_sequence + frames_.size();
    const Sequence granted = std::min<Sequence>(*reserve_under_way_, last + 80 + draw(60));
    reserve_under_way_.reset();
    step(primary_event::ReserveGranted{granted});
  }
  if (image_syncs_ > 0 && (healing_ || chance(50))) {
    --image_syncs_;
    step(primary_event::ImagesSynced{true});
  }
}

void PrimaryWorld::hold_moves() {
  if (!is_held_) {
    std::optional<PeerIndex> target;
    if (chance(70)) target = replicas_[draw(replicas_.size())].index;
    is_held_ = true;
    hold_target_ = target;
    step(primary_event::Hold{target, now_ + std::chrono::milliseconds(draw(20'000))});
    return;
  }
  if (!reached_) return;
  if (!is_sealed_ && chance(70)) {
    is_sealed_ = true;
    step(primary_event::Seal{});
    require(primary_.is_sealed(), "a reached hold was not sealed");
    return;
  }
  std::optional<Epoch> epoch;
  if (is_sealed_ && chance(60)) {
    epoch = Epoch{primary_.epoch().number + 1 + draw(3), static_cast<std::uint32_t>(draw(1000))};
    ++counters_.epochs;
  }
  is_held_ = is_sealed_ = false;
  reached_.reset();
  step(primary_event::Resume{epoch});
}

void PrimaryWorld::on(const primary_effect::HoldReached& effect) {
  require(is_held_ && !reached_, "a hold was reached that nobody asked for");
  require(effect.point == point(base_sequence + frames_.size()),
          "the hold's point is not the end of the history");
  for (const auto& [id, request] : requests_) {
    require(request.state != GuestRequest::State::admitted, "held with a change in flight");
    require(request.state != GuestRequest::State::placed, "held with a request unanswered");
  }
  for (const Replica& replica : replicas_) {
    if (disk_record_.contains(replica.host)) {
      require(replica.ever_durable >= effect.point.sequence, "held without a member's durability");
    }
    if (hold_target_ == replica.index) {
      require(replica.applied >= effect.point.sequence && !replica.has_wrong_image,
              "held while the target's image is not equal");
      require(disk_record_.contains(replica.host), "held for a target that is not in sync");
    }
  }
  reached_ = effect.point;
  ++counters_.holds_reached;
}

void PrimaryWorld::on(const primary_effect::HoldFailed& /*effect*/) {
  require(is_held_, "a hold failed that nobody asked for");
  require(!is_sealed_, "a sealed hold ended by itself");
  is_held_ = false;
  reached_.reset();
}

void PrimaryWorld::settings_change() {
  const Mode before = mode_;
  if (chance(50)) mode_ = static_cast<Mode>(draw(3));
  for (auto& [id, request] : requests_) {
    const bool waits = request.state == GuestRequest::State::placed && !request.synced;
    const bool is_flush = request.change.kind == FrameType::flush;
    if (waits && is_flush && before == Mode::async && request.level == Level::none)
      request.level = level_now(true);
  }
  if (chance(30)) congestion_ = static_cast<Congestion>(draw(2));
  step(primary_event::SettingsChanged{
      mode_, congestion_, std::chrono::milliseconds(500 + draw(5000)), on_local_error_});
}

// --- time, and the two halves of a run ---

void PrimaryWorld::pass(Duration duration) {
  now_ += duration;
  if (now_ - last_tick_ < std::chrono::milliseconds(50)) return;
  last_tick_ = now_;
  step(primary_event::Tick{});
}

void PrimaryWorld::run(int steps) {
  for (int i = 0; i < steps; ++i) {
    Replica& any = replicas_[draw(replicas_.size())];
    const std::uint64_t what = draw(1000);
    if (what < 150) {
      guest_arrives();
    } else if (what < 280) {
      guest_writes();
    } else if (what < 400) {
      frame_gets_ready();
    } else if (what < 430) {
      flush_is_synced();
    } else if (what < 435) {
      guest_cancels();
    } else if (what < 470) {
      record_moves();
    } else if (what < 500) {
      daemon_moves();
    } else if (what < 520) {
      hold_moves();
    } else if (what < 523) {
      settings_change();
    } else if (what < 528) {
      break_link(any);
    } else if (what < 533) {
      crash(any, chance(40));
    } else if (what < 545) {
      if (any.is_closing) lose_session(any);
    } else if (what < 550) {
      step(primary_event::CopyRequested{any.index});
    } else {
      replica_moves(any);
    }
    pass(std::chrono::microseconds(draw(chance(2) ? 2'000'000 : 3'000)));
  }
}

void PrimaryWorld::heal_round() {
  if (is_held_ && reached_) {
    is_held_ = is_sealed_ = false;
    reached_.reset();
    step(primary_event::Resume{});
  }
  guest_writes();
  frame_gets_ready();
  flush_is_synced();
  record_moves();
  daemon_moves();
  for (Replica& replica : replicas_) {
    replica.is_reachable = true;
    if (replica.is_closing) lose_session(replica);
    connect(replica);
    take(replica);
    acknowledge_sent(replica);
    deliver_to_replica(replica);
    work_on_log(replica, false);
    report(replica);
    deliver_to_primary(replica);
    copy_moves(replica);
    // The operator's part.
    step(primary_event::CopyRequested{replica.index});
  }
  pass(std::chrono::milliseconds(5));
}

bool PrimaryWorld::has_converged() const {
  for (const auto& [id, request] : requests_) {
    if (request.state != GuestRequest::State::done) return false;
  }
  if (record_under_way_ || is_held_) return false;
  if (primary_.in_sync().size() != replicas_.size() + 1) return false;
  return std::ranges::all_of(replicas_, [this](const Replica& replica) {
    return replica.logged == base_sequence + frames_.size();
  });
}

std::string PrimaryWorld::describe() const {
  std::string text = fmt::format("{} frames, {} sealed, hold {}, record {}, in sync {};",
                                 frames_.size(),
                                 history_.size(),
                                 static_cast<int>(primary_.hold_phase()),
                                 record_under_way_ ? "under way" : "-",
                                 fmt::join(primary_.in_sync(), "+"));
  for (const auto& [id, request] : requests_) {
    if (request.state == GuestRequest::State::done) continue;
    text += fmt::format(
        " request {} state {} #{};", id, static_cast<int>(request.state), request.sequence);
  }
  for (const Replica& replica : replicas_) {
    const PeerView view = primary_.view(replica.index, now_);
    text += fmt::format(" {} phase {} received {} logged {} durable {} sent {} {};",
                        replica.host,
                        static_cast<int>(view.phase),
                        view.marks.received,
                        view.marks.logged,
                        view.marks.durable,
                        view.sent,
                        view.error ? view.error->message : "");
  }
  return text;
}

void PrimaryWorld::heal() {
  healing_ = true;
  for (int round = 0; round < 20'000 && !has_converged(); ++round)
    heal_round();
  require(has_converged(), "does not converge: " + describe());
  hold_target_ = replicas_[draw(replicas_.size())].index;
  is_held_ = true;
  step(primary_event::Hold{hold_target_, now_ + std::chrono::seconds(30)});
  for (int round = 0; round < 200 && !reached_; ++round) {
    frame_gets_ready();
    daemon_moves();
    for (Replica& replica : replicas_) {
      take(replica);
      acknowledge_sent(replica);
      deliver_to_replica(replica);
      work_on_log(replica, false);
      report(replica);
      deliver_to_primary(replica);
    }
    pass(std::chrono::milliseconds(5));
  }
  require(reached_.has_value(), "a healthy hold is not reached: " + describe());
}

void PrimaryWorld::fail() {
  step(primary_event::Fail{{Errc::io_error, 0, "disk broke", {}}});
  if (on_local_error_ == OnLocalError::hold) {
    for (int round = 0; round < 50; ++round)
      heal_round();
    on_local_error_ = OnLocalError::fail;
    step(primary_event::SettingsChanged{
        mode_, congestion_, std::chrono::milliseconds(500), on_local_error_});
  }
  for (auto& [id, request] : requests_) {
    require(request.state == GuestRequest::State::admitted ||
                request.state == GuestRequest::State::done,
            "a request that waits was not failed");
  }
  healing_ = true;
  for (int round = 0; round < 100; ++round)
    heal_round();
  for (const auto& [id, request] : requests_) {
    require(request.state == GuestRequest::State::done, "a request was not failed");
  }
}

}  // namespace replicad
