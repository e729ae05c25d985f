#pragma once
// A Replica with a pretended log, image and state file around it: effects wait until the test completes them, in
// any order the rules of replica.h allow. Checks those rules at every effect.

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "core/repl/replica.h"

namespace replicad {

constexpr std::uint64_t stage_bytes_of_test = 4096 + 640;
constexpr std::uint64_t world_disk_bytes = 1 * mib;

/// Numbers frames like a primary.
class FrameSource {
 public:
  explicit FrameSource(const HistoryPoint& before = {}) : point_(before) { points_[0] = before; }

  FrameHeader next(const Epoch& epoch, FrameType type = FrameType::write, std::uint16_t flags = 0) {
    FrameHeader header;
    header.type = type;
    header.flags = flags;
    header.epoch = epoch;
    header.sequence = point_.sequence + 1;
    if (type != FrameType::flush) header.range = {0, (header.sequence * 512) % 4096, 512};
    if (type == FrameType::write) {
      header.payload_bytes = 512;
      header.payload_crc32c = static_cast<std::uint32_t>(header.sequence * 7);
    }
    point_ = advance(point_, header);
    points_.push_back(point_);
    return header;
  }
  [[nodiscard]] const HistoryPoint& point() const { return point_; }
  [[nodiscard]] const HistoryPoint& at(Sequence sequence) const {
    return points_[sequence - points_.front().sequence];
  }
  [[nodiscard]] bool has(Sequence sequence) const {
    return sequence >= points_.front().sequence && sequence <= point_.sequence;
  }

 private:
  HistoryPoint point_;
  std::vector<HistoryPoint> points_{HistoryPoint{}};
};

class ReplicaWorld {
 public:
  explicit ReplicaWorld(const ReplicaStanding& standing = {.promised = {1, 7},
                                                           .primary = "a",
                                                           .consistent = true,
                                                           .logged = {},
                                                           .durable = 0,
                                                           .applied = {},
                                                           .whole = false})
      : replica(config(), standing),
        recorded_epoch(standing.promised),
        recorded_primary(standing.primary),
        recorded_consistent(standing.consistent),
        recorded_whole(standing.whole),
        logged(standing.logged),
        durable(standing.durable),
        applied(standing.applied) {}

  static ReplicaConfig config() {
    ReplicaConfig config;
    config.host = "b";
    config.volume = "vm1";
    config.volume_uuid = "uuid";
    config.disk_bytes = {world_disk_bytes, 512};
    config.boot_id = "boot";
    config.sync_bytes = 100'000;
    return config;
  }
  static AttachMessage attach_message(const Epoch& epoch, const std::string& primary = "a") {
    AttachMessage message;
    message.volume = "vm1";
    message.volume_uuid = "uuid";
    message.primary = primary;
    message.replica = "b";
    message.epoch = epoch;
    message.disk_bytes = {world_disk_bytes, 512};
    return message;
  }

  // --- what the primary and the network do

  SessionId attach(const Epoch& epoch) { return attach_as(attach_message(epoch)); }
  SessionId attach_as(const AttachMessage& message, bool is_primary = false) {
    session_epoch = message.epoch;
    const SessionId id = ++last_session;
    step(replica_event::AttachArrived{id, message, is_primary});
    return id;
  }
  /// attach, the promise recorded, start after what is logged.
  SessionId stream(const Epoch& epoch) {
    const SessionId id = attach(epoch);
    finish_records();
    REQUIRE(attached.has_value());
    step(replica_event::StartArrived{id, {.copy = false, .after = logged.sequence}});
    return id;
  }
  void frame(const FrameHeader& header) {
    frame_of_event = header;
    REQUIRE(replica.session().has_value());
    step(replica_event::FrameArrived{*replica.session(), header});
    frame_of_event.reset();
  }
  void frame(FrameType type) {
    FrameHeader header;
    header.type = type;
    frame(header);
  }

  // --- what the runtime completes

  void step(const ReplicaEvent& event) {
    std::vector<ReplicaEffect> effects;
    replica.step(event, now, effects);
    replica.check_invariants();
    for (const ReplicaEffect& effect : effects) {
      std::visit([this](const auto& alternative) { perform(alternative); }, effect);
    }
  }
  void log_some(std::size_t frames) {
    REQUIRE(frames <= appending.size());
    if (frames == 0) return;
    logged = appending[frames - 1];
    appending.erase(appending.begin(), appending.begin() + static_cast<std::ptrdiff_t>(frames));
    step(replica_event::Logged{logged.sequence});
  }
  void log_all() { log_some(appending.size()); }
  void finish_sync() {
    REQUIRE(syncing.has_value());
    durable = std::max(durable, *std::exchange(syncing, std::nullopt));
    step(replica_event::LogSynced{durable});
  }
  void apply(const HistoryPoint& point) {
    applied = point;
    step(replica_event::Applied{point});
  }
  void finish_record(Status status = {}) {
    REQUIRE_FALSE(records.empty());
    const ReplicaRecord record = records.front();
    records.pop_front();
    if (status) {
      switch (record.kind) {
        case ReplicaRecord::Kind::promise:
          if (!record.primary.empty()) recorded_whole = false;
          if (record.epoch.number < recorded_epoch.number) break;
          recorded_epoch = record.epoch;
          recorded_primary = record.primary;
          break;
        case ReplicaRecord::Kind::staging:
          CHECK(recorded_consistent);
          CHECK(record.point == applied);
          CHECK(applied == logged);
          recorded_staging = true;
          break;
        case ReplicaRecord::Kind::committed:
          CHECK(recorded_staging);
          CHECK(stage_synced);
          CHECK(record.stage_bytes > 0);
          recorded_staging = false;
          recorded_stage_bytes = record.stage_bytes;
          logged = record.point;
          durable = record.point.sequence;
          applied = {};
          break;
        case ReplicaRecord::Kind::unstaged:
          CHECK(unstaged);
          recorded_stage_bytes.reset();
          break;
        case ReplicaRecord::Kind::inconsistent:
          recorded_staging = false;
          recorded_consistent = false;
          recorded_resync.reset();
          break;
        case ReplicaRecord::Kind::rewinding:
          CHECK(record.epoch == session_epoch);
          if (recorded_consistent) {
            CHECK(images_synced);
            CHECK(record.point == applied);
            CHECK(applied == logged);
          }
          recorded_consistent = false;
          recorded_resync.reset();
          break;
        case ReplicaRecord::Kind::resyncing:
          if (recorded_consistent) {
            CHECK(images_synced);
            CHECK(record.point == applied);
            CHECK(applied == logged);
          } else {
            CHECK(record.point == recorded_base);
          }
          recorded_staging = false;
          recorded_consistent = false;
          recorded_resync = record.epoch;
          recorded_base = record.point;
          break;
        case ReplicaRecord::Kind::copy_done:
          CHECK(images_synced);
          recorded_consistent = true;
          recorded_resync.reset();
          logged = applied = record.point;
          durable = record.point.sequence;
          break;
      }
    }
    step(replica_event::StateRecorded{std::move(status)});
  }
  void finish_records() {
    while (!records.empty())
      finish_record();
  }
  void finish_drop() {
    REQUIRE(dropping);
    dropping = false;
    log_dropped = true;
    if (!recorded_staging) {
      logged = applied = {};
      durable = 0;
    } else {
      durable = logged.sequence;
    }
    step(replica_event::LogDropped{});
  }
  void finish_stage_sync() {
    REQUIRE(stage_syncing);
    stage_syncing = false;
    stage_synced = true;
    step(replica_event::StageSynced{stage_bytes_of_test});
  }
  void finish_unstaging() {
    REQUIRE(unstaging);
    unstaging = false;
    unstaged = true;
    images_synced = false;
    step(replica_event::StageApplied{});
  }
  void finish_image_sync() {
    REQUIRE(syncing_images);
    syncing_images = false;
    images_synced = true;
    step(replica_event::ImagesSynced{});
  }
  void pass(Duration duration) {
    now += duration;
    if (replica.wake_at() && *replica.wake_at() <= now) step(replica_event::TimePassed{});
  }

  Replica replica;
  Instant now{};
  SessionId last_session = 0;
  Epoch session_epoch;
  std::optional<FrameHeader> frame_of_event;

  // State file, log and image as they are.
  Epoch recorded_epoch;
  std::string recorded_primary;
  bool recorded_consistent;
  bool recorded_whole;
  std::optional<Epoch> recorded_resync;
  HistoryPoint recorded_base;
  bool recorded_staging = false;
  std::optional<std::uint64_t> recorded_stage_bytes;
  HistoryPoint logged;
  Sequence durable;
  HistoryPoint applied;
  bool log_dropped = false;

  // Begun and not completed.
  std::deque<HistoryPoint> appending;
  std::optional<Sequence> syncing;
  std::deque<ReplicaRecord> records;
  bool dropping = false;
  bool stage_open = false;
  bool stage_syncing = false;
  bool stage_synced = false;
  bool stage_dropped = false;
  bool stage_parked = false;
  bool unstaging = false;  ///< begun and not reported
  bool unstaged = false;
  bool syncing_images = false;
  bool images_synced = false;

  // What was sent last.
  std::optional<AttachedMessage> attached;
  std::optional<Watermarks> marks;
  std::size_t marks_sent = 0;
  std::optional<HistoryPoint> copy_done;
  std::optional<Error> refused;
  std::optional<Error> closed;
  std::vector<FrameHeader> image_writes;
  std::vector<FrameHeader> staged;
  std::vector<FrameHeader> compares;
  std::vector<Sequence> verifies;  ///< wait for that to be applied
  std::size_t verified = 0;        ///< were read
  std::optional<Status> promotion;

 private:
  void perform(const replica_effect::SendAttached& effect) {
    CHECK(replica.session() == effect.session);
    CHECK(recorded_epoch == session_epoch);
    CHECK_FALSE(recorded_whole);
    CHECK(appending.empty());
    CHECK(effect.message.consistent == recorded_consistent);
    if (effect.message.consistent) {
      CHECK(effect.message.logged == logged);
      CHECK(effect.message.durable <= durable);
      CHECK(effect.message.applied == applied.sequence);
    } else {
      CHECK(effect.message.resync == recorded_resync);
      CHECK(effect.message.logged == (recorded_resync ? recorded_base : HistoryPoint{}));
    }
    attached = effect.message;
  }
  void perform(const replica_effect::SendWatermarks& effect) {
    ++marks_sent;
    marks = effect.marks;
    if (!replica.is_consistent() || replica.is_copying()) return;
    CHECK(effect.marks.logged <= logged.sequence);
    CHECK(effect.marks.durable <= durable);
    CHECK(effect.marks.applied <= applied.sequence);
    CHECK(effect.marks.durable <= effect.marks.logged);
  }
  void perform(const replica_effect::SendCopyDone& effect) {
    CHECK(recorded_consistent);
    CHECK(effect.point == logged);
    copy_done = effect.point;
  }
  void perform(const replica_effect::Refuse& effect) { refused = effect.error; }
  void perform(const replica_effect::CloseSession& effect) { closed = effect.error; }
  void perform(const replica_effect::AppendFrame& effect) {
    REQUIRE(frame_of_event.has_value());
    CHECK(session_epoch.number >= recorded_epoch.number);
    CHECK_FALSE(stage_parked);
    const HistoryPoint& before = appending.empty() ? logged : appending.back();
    CHECK(effect.after == advance(before, *frame_of_event));
    appending.push_back(effect.after);
  }
  void perform(const replica_effect::WriteImage& /*effect*/) {
    REQUIRE(frame_of_event.has_value());
    CHECK_FALSE(recorded_consistent);
    CHECK(log_dropped);
    images_synced = false;
    image_writes.push_back(*frame_of_event);
  }
  void perform(const replica_effect::OpenStage& effect) {
    CHECK(recorded_staging);
    CHECK(log_dropped == false);  // begun anew behind the base
    CHECK_FALSE(recorded_stage_bytes.has_value());
    CHECK(effect.epoch == session_epoch);
    CHECK(effect.base == logged);
    CHECK(applied == logged);
    CHECK_FALSE(stage_open);
    CHECK((effect.go_on || !stage_parked));
    if (effect.go_on) {
      CHECK(stage_parked);
    } else {
      staged.clear();
    }
    stage_open = true;
    stage_synced = stage_parked = false;
  }
  void perform(const replica_effect::ParkStage& /*effect*/) {
    CHECK(stage_open);
    stage_open = false;
    stage_parked = true;
  }
  void perform(const replica_effect::StageFrame& /*effect*/) {
    REQUIRE(frame_of_event.has_value());
    CHECK(stage_open);
    CHECK(recorded_consistent);
    staged.push_back(*frame_of_event);
  }
  void perform(const replica_effect::SyncStage& /*effect*/) {
    CHECK(stage_open);
    stage_syncing = true;
  }
  void perform(const replica_effect::DropStage& /*effect*/) {
    CHECK_FALSE(recorded_stage_bytes.has_value());
    CHECK((stage_open || stage_parked));
    stage_dropped = true;
    stage_open = stage_syncing = stage_parked = false;
  }
  void perform(const replica_effect::EndStage& effect) {
    CHECK_FALSE(recorded_stage_bytes.has_value());
    CHECK(unstaged);
    stage_open = unstaged = false;
    applied = effect.point;
  }
  void perform(const replica_effect::CompareBlocks& /*effect*/) {
    REQUIRE(frame_of_event.has_value());
    compares.push_back(*frame_of_event);
  }
  void perform(const replica_effect::VerifyBlocks& effect) {
    REQUIRE(frame_of_event.has_value());
    verifies.push_back(effect.after);
  }
  /// Takes out those that may be read now.
  void perform(const replica_effect::VerifyNow& effect) {
    CHECK(effect.through == applied.sequence);
    const auto read =
        std::erase_if(verifies, [&](Sequence after) { return after <= effect.through; });
    CHECK(read > 0);
    verified += read;
  }
  void perform(const replica_effect::SyncLog& /*effect*/) {
    CHECK_FALSE(syncing.has_value());
    syncing = logged.sequence;
  }
  void perform(const replica_effect::DropLog& /*effect*/) {
    CHECK((!recorded_consistent || recorded_staging));
    CHECK_FALSE(recorded_stage_bytes.has_value());
    CHECK(appending.empty());
    CHECK_FALSE(syncing.has_value());
    CHECK_FALSE(dropping);
    dropping = true;
  }
  void perform(const replica_effect::SyncImages& /*effect*/) {
    CHECK_FALSE(syncing_images);
    images_synced = false;
    syncing_images = true;
  }
  void perform(const replica_effect::RestartLog& effect) {
    CHECK(effect.point == logged);
    CHECK(effect.stage_bytes == recorded_stage_bytes.value_or(0));
    unstaging = effect.stage_bytes > 0;
    log_dropped = false;
  }
  void perform(const replica_effect::RecordState& effect) {
    if (effect.record.kind == ReplicaRecord::Kind::resyncing) {
      CHECK(effect.record.epoch == session_epoch);
    }
    const bool needs_sync = effect.record.kind == ReplicaRecord::Kind::staging ||
                            effect.record.kind == ReplicaRecord::Kind::unstaged;
    if (needs_sync) CHECK(images_synced);
    records.push_back(effect.record);
  }
  void perform(const replica_effect::PromotionDone& effect) {
    if (effect.status) {
      CHECK(images_synced);
      CHECK(applied == logged);
      CHECK(appending.empty());
      CHECK_FALSE(stage_open);
      CHECK_FALSE(recorded_stage_bytes.has_value());
    }
    promotion = effect.status;
  }
};

constexpr Epoch first_epoch{1, 7};

inline void check_refused(const ReplicaWorld& world, Errc code) {
  REQUIRE(world.refused.has_value());
  INFO("message: ", world.refused->message);
  CHECK(world.refused->code == code);
}

/// A replica that streams, with `frames` logged.
struct Streaming {
  ReplicaWorld world;
  FrameSource source;

  explicit Streaming(int frames = 0) {
    world.stream(first_epoch);
    for (int i = 0; i < frames; ++i)
      write();
    world.log_all();
  }
  void write(std::uint16_t flags = 0) {
    world.frame(source.next(first_epoch, FrameType::write, flags));
  }
};

}  // namespace replicad
