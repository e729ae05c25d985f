#pragma once
// A primary with its activity log, for tests: one Term from claim to crash or
// stop.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/check.h"
#include "io/clock.h"
#include "nbd-plugin/activity_log.h"

namespace replicad {

class TempPath {
 public:
  TempPath() {
    std::string name = std::filesystem::exists("/dev/shm") ? "/dev/shm/replicad-activity-XXXXXX"
                                                           : "/tmp/replicad-activity-XXXXXX";
    RD_CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  TempPath(const TempPath&) = delete;
  TempPath& operator=(const TempPath&) = delete;
  ~TempPath() { std::filesystem::remove_all(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file() const { return path_ + "/activity"; }

 private:
  std::string path_;
};

/// A primary with its activity log; peers are "b" and "c".
struct PrimaryTerm {
  ActivityLog::Known known;
  std::unique_ptr<ActivityLog> activity;
  std::unique_ptr<Primary> primary;
  std::vector<PrimaryEffect> effects;
  RequestId next_id = 1;
  bool can_sync = true;  ///< what a sync of the images comes to

  static constexpr std::uint64_t disk = 256 * mib;

  PrimaryTerm(const TempPath& temp,
              std::uint64_t number,
              const HistoryPoint& history,
              bool unclean,
              std::uint64_t ring_bytes = 16 * mib) {
    ActivityLog::Setup setup;
    setup.path = temp.file();
    setup.volume_uuid = "uuid";
    setup.disk_bytes = {disk};
    setup.members = {"b", "c"};
    setup.epoch = {number, 1};
    setup.history = history;
    setup.unclean = unclean;
    auto opened = ActivityLog::open(setup, known);
    REQUIRE(opened.has_value());
    activity = std::move(*opened);
    PrimaryConfig config;
    config.epoch = setup.epoch;
    config.history = history;
    config.reserved = history.sequence + 1'000'000;
    config.disk_bytes = {disk};
    config.peers = {"b", "c"};
    config.in_sync = {"a"};
    config.host = "a";
    config.mode = Mode::async;
    config.ring_bytes = ring_bytes;
    config.ack_timeout = std::chrono::seconds(5);
    config.terms = known.terms;
    config.lacks = known.lacks;
    primary = std::make_unique<Primary>(config, boot_time_now());
  }
  void step(const PrimaryEvent& event) {
    effects.clear();
    primary->step(event, boot_time_now(), effects);
  }
  void attach(const std::string& host) {
    AttachedMessage message;
    message.logged = primary->history();
    message.durable = message.applied = message.logged.sequence;
    step(primary_event::PeerAttached{primary->find_peer(host).value(), message});
  }
  void lose(const std::string& host) {
    step(primary_event::PeerLost{primary->find_peer(host).value(),
                                 {Errc::unreachable, 0, "gone", {}}});
  }
  /// Everything is durable at `host`.
  void settle(const std::string& host) {
    const PeerIndex peer = primary->find_peer(host).value();
    const auto window = primary->take(peer, 1 * gib);
    step(primary_event::PeerSent{peer, window.end_bytes - window.begin_bytes});
    const HistoryPoint point = primary->history();
    const Sequence all = point.sequence;
    step(primary_event::PeerMarks{peer, {all, all, all, all, point.digest, point.digest}});
  }
  /// False if the ring has no room.
  bool write(std::uint64_t offset, std::uint64_t length = 4096) {
    const RequestId id = next_id++;
    const Range range{0, offset, length};
    step(primary_event::WriteArrived{id, {.kind = FrameType::write, .flags = 0, .range = range}});
    const bool is_admitted = std::ranges::any_of(effects, [](const PrimaryEffect& effect) {
      return std::holds_alternative<primary_effect::Admitted>(effect);
    });
    if (!is_admitted) {
      step(primary_event::Cancelled{id});
      return false;
    }
    CHECK(activity->mark(range) == 0);
    step(primary_event::LocalWritten{id, true});
    step(primary_event::FrameReady{primary->ring().next() - 1, 5});
    return true;
  }
  void cool(int passes) {
    for (int i = 0; i < passes; ++i) {
      activity->cool({.look = [this](const auto& function) { function(*primary); },
                      .sync_images = [this] { return can_sync; }});
    }
  }
  [[nodiscard]] const KnownLack& lack(const std::string& host) const {
    const auto found = std::ranges::find(known.lacks, host, &KnownLack::host);
    REQUIRE(found != known.lacks.end());
    return *found;
  }
  Status finish() {
    std::vector<KnownLack> lacks;
    for (const std::string& host : primary->member_hosts())
      lacks.push_back(primary->known_lack(primary->find_peer(host).value()));
    return activity->finish(primary->history(), lacks);
  }
};

inline HistoryPoint behind_crash(std::uint64_t number) {
  return {{number, 1}, number * 1'000'000, {number, number}};
}

}  // namespace replicad
