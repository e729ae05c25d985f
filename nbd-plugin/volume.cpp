#include "nbd-plugin/volume.h"

#include <sys/prctl.h>
#include <unistd.h>

#include "core/base/check.h"
#include "core/base/log.h"
#include "io/clock.h"
#include "nbd-plugin/write_back.h"

namespace replicad {

namespace {

using nlohmann::json;

constexpr auto tick_interval = std::chrono::milliseconds(50);
constexpr auto status_interval = std::chrono::milliseconds(500);
constexpr auto cooling_interval = std::chrono::seconds(1);
/// A stop while a record is waited for, all in all.
constexpr Duration stop_without_quorum = std::chrono::seconds(1);
constexpr auto report_deadline = std::chrono::seconds(3);

PrimaryConfig config_from(const Grant& grant) {
  PrimaryConfig config;
  config.epoch = grant.epoch;
  config.history = grant.history;
  config.reserved = grant.reserved;
  for (const DiskGrant& disk : grant.disks)
    config.disk_bytes.push_back(disk.bytes);
  for (const MemberGrant& member : grant.members) {
    if (member.host != grant.host) config.peers.push_back(member.host);
  }
  config.in_sync = grant.in_sync;
  config.voters = grant.voters;
  config.asked_at = grant.asked_at;
  config.host = grant.host;
  config.mode = grant.settings.mode;
  config.congestion = grant.settings.congestion;
  config.on_local_error = grant.settings.on_local_error;
  config.ring_bytes = grant.settings.ring_bytes;
  config.ack_timeout = std::chrono::milliseconds(grant.settings.ack_timeout_ms);
  return config;
}

/// Why an `async` volume holds the guest's requests.
Error cut_off_error(bool overtaken) {
  if (overtaken) {
    return {Errc::stale_epoch,
            0,
            "a member knows of a later epoch: another host may have become the primary",
            "the guest waits until the voters have said who it is"};
  }
  return {Errc::unreachable,
          0,
          "no majority of the voters has been heard for ack-timeout: another host may have become "
          "the primary",
          "the guest waits until enough of them answer"};
}

/// What was written last, for replicad to recognise the images by.
json recent_writes(const Primary& primary) {
  constexpr std::size_t recent_max = 256;
  json recent = json::array();
  const RingIndex& ring = primary.ring();
  for (Sequence at = ring.next(); at > ring.first() && recent.size() < recent_max; --at) {
    const DigestItem& item = ring.at(at - 1).item;
    if (item.range_bytes > 0)
      recent.push_back({{"disk", item.disk}, {"offset", item.offset_bytes}});
  }
  return recent;
}

double seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Result<std::unique_ptr<Exported>> Volume::open(const std::string& name,
                                               Hooks hooks,
                                               Grant granted,
                                               std::shared_ptr<AgentClient> agent) {
  std::unique_ptr<Volume> volume(new Volume(name, std::move(hooks)));
  volume->grant_ = std::move(granted);
  volume->agent_ = std::move(agent);
  const Grant& grant = volume->grant_;
  for (const DiskGrant& disk : grant.disks) {
    auto image = DiskImage::open(disk, failed_sync_mark(grant.directory));
    if (!image) return tl::unexpected(std::move(image).error());
    volume->images_.push_back(std::move(*image));
  }
  auto ring = MirroredBuffer::create(grant.settings.ring_bytes);
  if (!ring) return tl::unexpected(std::move(ring).error());
  PrimaryConfig config = config_from(grant);
  volume->ack_timeout_ = config.ack_timeout;
  ActivityLog::Known known;
  auto activity = ActivityLog::open({.path = grant.directory + "/activity",
                                     .volume_uuid = grant.uuid,
                                     .disk_bytes = config.disk_bytes,
                                     .members = config.peers,
                                     .epoch = grant.epoch,
                                     .history = grant.history,
                                     .unclean = grant.unclean},
                                    known);
  if (!activity) return tl::unexpected(std::move(activity).error());
  volume->activity_ = std::move(*activity);
  RD_TRY(write_back_again(failed_sync_mark(grant.directory), volume->images_, known.unsynced));
  config.terms = std::move(known.terms);
  config.lacks = std::move(known.lacks);
  config.trail = std::move(known.trail);
  volume->quorum_timeout_ = std::chrono::milliseconds(grant.settings.quorum_timeout_ms);
  volume->bridge_ = std::make_unique<Bridge>(config, std::move(*ring), volume->images_);
  volume->bridge_->set_activity(volume->activity_.get());
  return std::unique_ptr<Exported>(std::move(volume));
}

Volume::~Volume() = default;

Status Volume::start() {
  // In the foreground nbdkit asks to be ended with its parent. When that is replicad, the export serves on.
  if (::getppid() == agent_->daemon_pid()) ::prctl(PR_SET_PDEATHSIG, 0);
  auto reactor = Reactor::create();
  if (!reactor) return tl::unexpected(std::move(reactor).error());
  reactor_ = std::move(*reactor);
  resolver_ = Worker::create();
  syncer_ = Worker::create();
  cooler_ = Worker::create();
  bridge_->set_hooks([this] { reactor_->wake(); }, hooks_.stopping);
  reactor_->set_turn_hook([this] { turn(); });
  reactor_->post([this] { start_on_reactor(); });
  thread_ = std::thread([this] { reactor_->run(); });
  return {};
}

void Volume::start_on_reactor() {
  agent_->start(
      *reactor_,
      {.on_request = [this](const std::string& op,
                            const json& fields,
                            const AgentClient::Reply& reply) { on_request(op, fields, reply); },
       .rejoin_fields =
           [this] {
             const auto epoch =
                 bridge_->look([](const Primary& primary) { return primary.epoch(); });
             return json{{"volume", name_},
                         {"pid", ::getpid()},
                         {"epoch", epoch_json(epoch)},
                         {"reserved", grant_.reserved}};
           },
       .on_fenced = [this](const Error& error) { on_fenced(error); }});
  agent_->request(
      "serving",
      {{"pid", ::getpid()}, {"export", grant_.disks.front().name}},
      [](const Result<json>& result) {
        if (!result)
          log(LogLevel::error, "serving_refused", "error={}", log_value(result.error().message));
      });
  for (const MemberGrant& member : grant_.members) {
    const auto peer =
        bridge_->look([&](const Primary& primary) { return primary.find_peer(member.host); });
    if (peer) add_link(*peer, member);
  }
  schedule_tick();
  schedule_status();
  schedule_second();
  schedule_cooling();
}

void Volume::add_link(PeerIndex peer, const MemberGrant& member) {
  const LinkContext context{
      *reactor_, *resolver_, *bridge_, images_, name_, grant_.uuid, grant_.host};
  const auto link = std::make_shared<PeerLink>(context, peer, member);
  links_[peer] = link;
  link->start();
}

PeerLink* Volume::link(PeerIndex peer) {
  const auto found = links_.find(peer);
  return found == links_.end() ? nullptr : found->second.get();
}

void Volume::turn() {
  while (bridge_->drain(effects_)) {
    std::vector<PrimaryEffect> current;
    current.swap(effects_);
    for (const PrimaryEffect& effect : current)
      handle(effect);
    effects_.swap(current);
  }
  const auto at = bridge_->due_at();
  if (!at || pace_timer_ || *at < reactor_->now()) return;
  pace_timer_ = true;
  reactor_->add_timer(*at - reactor_->now(), [this] { pace_timer_ = false; });
}

void Volume::handle(const PrimaryEffect& effect) {
  if (const auto* record = std::get_if<primary_effect::Record>(&effect))
    return send_record(*record);
  if (const auto* reserve = std::get_if<primary_effect::Reserve>(&effect))
    return send_reserve(*reserve);
  if (std::holds_alternative<primary_effect::SyncImages>(effect)) return sync_images();
  if (const auto* reached = std::get_if<primary_effect::HoldReached>(&effect))
    return finish_hold(reached->point);
  if (const auto* failed = std::get_if<primary_effect::HoldFailed>(&effect)) {
    return finish_hold(tl::unexpected(failed->error));
  }
  if (const auto* sendable = std::get_if<primary_effect::Sendable>(&effect)) {
    if (PeerLink* peer = link(sendable->peer)) peer->kick();
  } else if (const auto* start = std::get_if<primary_effect::StartPeer>(&effect)) {
    if (PeerLink* peer = link(start->peer)) peer->send_start(start->message);
  } else if (const auto* copy = std::get_if<primary_effect::RunCopy>(&effect)) {
    if (PeerLink* peer = link(copy->peer)) peer->run_copy(copy->plan);
  } else if (const auto* locked = std::get_if<primary_effect::CopyLocked>(&effect)) {
    if (PeerLink* peer = link(locked->peer)) peer->copy_locked();
  } else if (const auto* close = std::get_if<primary_effect::ClosePeer>(&effect)) {
    log(LogLevel::warn,
        "peer_closed",
        "peer={} error={}",
        close->peer,
        log_value(close->error.message));
    if (PeerLink* peer = link(close->peer)) {
      peer->close(close->error);
    } else {
      bridge_->step(primary_event::PeerLost{close->peer, close->error});
    }
  } else if (const auto* sync = std::get_if<primary_effect::RequestSync>(&effect)) {
    if (PeerLink* peer = link(sync->peer)) peer->request_sync();
  } else if (const auto* ping = std::get_if<primary_effect::Ping>(&effect)) {
    if (PeerLink* peer = link(ping->peer)) peer->ping();
  }
}

void Volume::send_record(const primary_effect::Record& record) {
  log(LogLevel::info,
      "record_in_sync",
      "count={} reason={}",
      record.in_sync.size(),
      log_value(record.reason));
  const primary_effect::Record copy = record;
  if (!record_since_) record_since_ = boot_time_now();
  agent_->request(
      "record_in_sync",
      {{"in_sync", record.in_sync}, {"reason", record.reason}},
      [this, copy](const Result<json>& result) {
        if (result) {
          record_since_.reset();
          record_error_.reset();
          check_quorum();
          bridge_->step(primary_event::Recorded{});
          return;
        }
        record_error_ = result.error();
        if (result.error().code == Errc::stale_epoch) return on_fenced(result.error());
        // Nothing may be answered without the record: try again until a quorum takes it.
        log(LogLevel::error, "record_failed", "error={}", log_value(result.error().message));
        reactor_->add_timer(std::chrono::milliseconds(500), [this, copy] { send_record(copy); });
      });
}

void Volume::send_reserve(const primary_effect::Reserve& reserve) {
  const Sequence until = reserve.until;
  agent_->request("reserve", {{"until", until}}, [this, until](const Result<json>& result) {
    if (result) {
      grant_.reserved = until;
      bridge_->step(primary_event::ReserveGranted{until});
      return;
    }
    log(LogLevel::error, "reserve_failed", "error={}", log_value(result.error().message));
    reactor_->add_timer(std::chrono::milliseconds(500), [this, until] { send_reserve({until}); });
  });
}

void Volume::sync_images() {
  syncer_->post([this] {
    bool ok = true;
    for (const DiskImage& image : images_) {
      if (const int error = image.sync(); error != 0) {
        log(LogLevel::error, "local_sync_failed", "disk={} errno={}", image.name(), error);
        ok = false;
      }
    }
    reactor_->post([this, ok] {
      bridge_->step(primary_event::ImagesSynced{ok});
      turn();
    });
  });
}

/// Requests that wait for a quorum fail after quorum-timeout, and those that come meanwhile too.
void Volume::check_quorum() {
  const Instant now = boot_time_now();
  const auto is_over = [&](const std::optional<Instant>& since) {
    return since && quorum_timeout_ > Duration{} && now - *since >= quorum_timeout_;
  };
  const auto cut_off =
      bridge_->look([](const Primary& primary) { return primary.cut_off_since(); });
  bridge_->set_quorum_lost(is_over(record_since_) || is_over(cut_off));
}

void Volume::finish_hold(Result<HistoryPoint> result) {
  if (!hold_done_) return;
  const auto done = std::move(hold_done_);
  hold_done_ = nullptr;
  done(std::move(result));
}

void Volume::schedule_tick() {
  reactor_->add_timer(tick_interval, [this] {
    bridge_->step(primary_event::Tick{});
    check_quorum();
    schedule_tick();
  });
}

void Volume::schedule_status() {
  agent_->send_event("status", status_json());
  reactor_->add_timer(status_interval, [this] { schedule_status(); });
}

void Volume::schedule_second() {
  const Duration silence_max = std::max<Duration>(2 * ack_timeout_, std::chrono::seconds(5));
  for (const auto& [peer, link] : links_)
    link->on_second(silence_max);
  reactor_->add_timer(std::chrono::milliseconds(heartbeat_ms), [this] { schedule_second(); });
}

void Volume::schedule_cooling() {
  reactor_->add_timer(cooling_interval, [this] {
    if (!cooling_ && !stopping_) {
      cooling_ = true;
      cooler_->post([this] {
        cool_regions();
        reactor_->post([this] { cooling_ = false; });
      });
    }
    schedule_cooling();
  });
}

/// On the cooler's thread.
void Volume::cool_regions() {
  activity_->cool({.look =
                       [this](const std::function<void(const Primary&)>& function) {
                         bridge_->look([&](const Primary& primary) {
                           function(primary);
                           return true;
                         });
                       },
                   .sync_images =
                       [this] {
                         for (const DiskImage& image : images_) {
                           const int error = image.sync();
                           if (error == 0) continue;
                           Error failure = errno_to_error(error, "fdatasync of " + image.path());
                           failure.hint = "what was not durable may be lost: repair the disk";
                           bridge_->step(primary_event::Fail{std::move(failure)});
                           return false;
                         }
                         return true;
                       }});
}

/// Puts on record what members lack, then reports the stop.
void Volume::finish_activity(const HistoryPoint& point) {
  const auto lacks = bridge_->look([](const Primary& primary) {
    std::vector<KnownLack> all;
    for (const std::string& host : primary.member_hosts())
      all.push_back(primary.known_lack(primary.find_peer(host).value()));
    return all;
  });
  cooler_->post([this, point, lacks] {
    if (const Status finished = activity_->finish(point, lacks); !finished) {
      log(LogLevel::error, "activity_not_written", "error={}", log_value(finished.error().message));
    }
    reactor_->post([this, point] { report_stopped(point); });
  });
}

json Volume::replicas_json() {
  json replicas = json::array();
  const Instant now = boot_time_now();
  for (const auto& [peer, link] : links_) {
    const PeerView view = bridge_->look(
        [&, index = peer](const Primary& primary) { return primary.view(index, now); });
    json copy = nullptr;
    if (const CopyJob* job = link->copy()) {
      const CopyJob::Progress progress = job->progress();
      copy = {{"done_bytes", progress.done_bytes},
              {"total_bytes", progress.total_bytes},
              {"sent_bytes", progress.sent_bytes},
              {"blocks_left", progress.blocks_left}};
    }
    json disks = json::array();
    for (const DiskLag& lag : view.disks) {
      disks.push_back({{"disk", images_[lag.disk].name()},
                       {"writes", lag.writes},
                       {"bytes", lag.bytes},
                       {"seconds", seconds(lag.lag)}});
    }
    const bool connected = view.phase != PeerPhase::disconnected;
    const std::optional<Error>& error =
        connected || !link->last_error() ? view.error : link->last_error();
    replicas.push_back({{"host", view.host},
                        {"state", peer_state_name(view.phase, view.caught_up, link->was_refused())},
                        {"in_sync", view.in_sync},
                        {"sent", view.sent},
                        {"received", view.marks.received},
                        {"logged", view.marks.logged},
                        {"durable", view.marks.durable},
                        {"applied", view.marks.applied},
                        {"digest", to_hex(view.marks.applied_digest)},
                        {"lag_bytes", view.lag_bytes},
                        {"lag_seconds", seconds(view.lag)},
                        {"lag_disks", disks},
                        {"copy", copy},
                        {"error", error ? error_json(*error) : json(nullptr)}});
  }
  return replicas;
}

json Volume::status_json() {
  struct Snapshot {
    HistoryPoint history;
    bool held;
    bool sealed;
    std::optional<Error> failure;
    std::vector<std::string> in_sync;
    bool cut_off;
    bool overtaken;
  };
  const Snapshot now = bridge_->look([](const Primary& primary) {
    return Snapshot{primary.history(),
                    primary.hold_phase() != Primary::HoldPhase::none,
                    primary.is_sealed(),
                    primary.failure(),
                    primary.in_sync(),
                    primary.cut_off_since().has_value(),
                    primary.is_overtaken()};
  });
  const bool no_quorum = record_since_ && record_error_;
  const std::optional<Error> trouble = bridge_->local_trouble().current();
  const bool held = now.held || trouble || no_quorum || now.cut_off;
  const char* state = now.failure ? "failed" : now.sealed ? "sealed" : held ? "held" : "serving";
  std::optional<Error> error = now.failure ? now.failure : trouble;
  if (!error && no_quorum) error = record_error_;
  if (!error && now.cut_off) error = cut_off_error(now.overtaken);
  const Bridge::Counters& counters = bridge_->counters();
  std::uint64_t copied_bytes = 0;
  for (const auto& [peer, link] : links_)
    copied_bytes += link->copied_bytes();
  return {{"state", state},
          {"history", point_json(now.history)},
          {"in_sync", now.in_sync},
          {"overtaken", now.overtaken},
          {"replicas", replicas_json()},
          {"verify", verify_ ? verify_->describe() : json(nullptr)},
          {"counters",
           {{"writes", counters.writes.load()},
            {"written_bytes", counters.written_bytes.load()},
            {"flushes", counters.flushes.load()},
            {"zeroes", counters.zeroes.load()},
            {"copied_bytes", copied_bytes},
            {"hot_regions", activity_->hot_regions()}}},
          {"error", error ? error_json(*error) : json(nullptr)}};
}

std::string Volume::describe() {
  const std::size_t in_sync =
      bridge_->look([](const Primary& primary) { return primary.in_sync().size(); });
  return fmt::format("volume {}, primary {}, {} of {} members in sync",
                     name_,
                     grant_.host,
                     in_sync,
                     grant_.members.size());
}

void Volume::stop() {
  if (!thread_.joinable()) return;
  reactor_->post([this] { begin_clean_stop(); });
  {
    std::unique_lock lock(stop_mutex_);
    stop_condition_.wait(lock, [this] { return stopped_; });
  }
  reactor_->stop();
  thread_.join();
  // Connections go before the reactor that they belong to.
  agent_.reset();
  links_.clear();
  verify_.reset();
  verifier_.reset();
  resolver_.reset();
  syncer_.reset();
  flusher_.reset();
  cooler_.reset();
}

void Volume::begin_clean_stop() {
  if (stopping_) return;
  stopping_ = true;
  const bool failed =
      bridge_->look([](const Primary& primary) { return primary.failure().has_value(); });
  if (failed || hold_done_) {
    // A failed volume, or one in the middle of a switchover, cannot be stopped cleanly.
    end_run();
    return;
  }
  hold_done_ = [this](Result<HistoryPoint> result) {
    // From here on the hold's deadline lets nothing in behind the point that is about to be recorded.
    bridge_->step(primary_event::Seal{});
    const bool sealed = bridge_->look([](const Primary& primary) { return primary.is_sealed(); });
    if (result && sealed) {
      finish_activity(*result);
      return;
    }
    const std::string why = result ? "the hold is over" : result.error().message;
    log(LogLevel::error, "unclean_stop", "error={}", log_value(why));
    end_run();
  };
  // Without a quorum nothing can be drained: the stop is unclean, and soon.
  const Duration patience =
      record_since_ ? stop_without_quorum : ack_timeout_ + std::chrono::seconds(2);
  const Instant deadline = boot_time_now() + patience;
  bridge_->step(primary_event::Hold{std::nullopt, deadline});
}

void Volume::report_stopped(const HistoryPoint& point) {
  agent_->send_event("status", status_json());
  const auto in_sync = bridge_->look([](const Primary& primary) { return primary.in_sync(); });
  agent_->request(
      "stopped",
      {{"history", point_json(point)},
       {"in_sync", in_sync},
       {"recent", bridge_->look([](const Primary& primary) { return recent_writes(primary); })}},
      [this](const Result<json>& result) {
        if (!result)
          log(LogLevel::error, "unclean_stop", "error={}", log_value(result.error().message));
        end_run();
      });
  reactor_->add_timer(report_deadline, [this] {
    log(LogLevel::error, "unclean_stop", "error=\"replicad did not answer\"");
    end_run();
  });
}

void Volume::end_run() {
  // Requests that came during the stop are not answered: their clients reconnect and send them again.
  if (exit_when_stopped_) ::_exit(0);
  agent_->stop();
  for (const auto& [peer, link] : links_)
    link->stop();
  const std::lock_guard lock(stop_mutex_);
  stopped_ = true;
  stop_condition_.notify_all();
}

}  // namespace replicad
