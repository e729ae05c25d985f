#pragma once
// The volume that this nbdkit process serves as the primary: images, core, reactor thread, links to the replicas,
// requests of replicad. Guest calls go straight to the bridge.

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/reactor.h"
#include "io/worker.h"
#include "nbd-plugin/agent_client.h"
#include "nbd-plugin/bridge.h"
#include "nbd-plugin/exported.h"
#include "nbd-plugin/peer_link.h"
#include "nbd-plugin/verify_run.h"

namespace replicad {

class Volume final : public Exported {
 public:
  /// Opens and locks the images of the claim that replicad has granted.
  [[nodiscard]] static Result<std::unique_ptr<Exported>> open(const std::string& name,
                                                              Hooks hooks,
                                                              Grant grant,
                                                              std::shared_ptr<AgentClient> agent);
  ~Volume() override;
  Volume(const Volume&) = delete;
  Volume& operator=(const Volume&) = delete;

  /// Starts the reactor thread, connects to the replicas and reports `serving`: for after_fork.
  [[nodiscard]] Status start() override;
  /// Clean stop: drains, makes everything durable here and on the in-sync members, tells replicad. Blocking, at
  /// most the volume's ack-timeout and a few seconds; if it does not work out, the volume is left unclean.
  void stop() override;

  [[nodiscard]] const std::vector<DiskImage>& images() const override { return images_; }
  [[nodiscard]] std::string describe() override;
  [[nodiscard]] DiskImage::Extent extent_at(DiskIndex disk, std::uint64_t offset) const override {
    return images_[disk].extent_at(offset);
  }
  [[nodiscard]] int read(DiskIndex disk, std::span<std::byte> to, std::uint64_t offset) override {
    return bridge_->read(disk, to, offset);
  }
  [[nodiscard]] int write(DiskIndex disk,
                          std::span<const std::byte> data,
                          std::uint64_t offset,
                          bool fua) override {
    return bridge_->write(disk, data, offset, fua);
  }
  [[nodiscard]] int zero(DiskIndex disk,
                         FrameType kind,
                         std::uint64_t offset,
                         std::uint64_t length,
                         bool may_trim,
                         bool fua) override {
    return bridge_->zero(disk, kind, offset, length, may_trim, fua);
  }
  [[nodiscard]] int flush(DiskIndex disk) override { return bridge_->flush(disk); }

 private:
  Volume(std::string name, Hooks hooks) : name_(std::move(name)), hooks_(std::move(hooks)) {}

  // Reactor thread.
  void start_on_reactor();
  void turn();
  void handle(const PrimaryEffect& effect);
  void send_record(const primary_effect::Record& record);
  void send_reserve(const primary_effect::Reserve& reserve);
  void sync_images();
  void add_link(PeerIndex peer, const MemberGrant& member);
  void schedule_tick();
  void schedule_status();
  void schedule_second();
  void schedule_cooling();
  void cool_regions();
  void finish_activity(const HistoryPoint& point);
  void check_quorum();
  void finish_hold(Result<HistoryPoint> result);
  void begin_clean_stop();
  void report_stopped(const HistoryPoint& point);
  void end_run();

  void on_request(const std::string& op,
                  const nlohmann::json& fields,
                  const AgentClient::Reply& reply);
  void on_hold(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void flush_before_hold(std::function<void()> begin_hold);
  void on_answered(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void on_resume(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void on_set(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void on_voter(const nlohmann::json& fields);
  void on_members(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void on_copy(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void on_verify(const nlohmann::json& fields, const AgentClient::Reply& reply);
  void on_fenced(const Error& error);
  [[nodiscard]] PeerLink* link(PeerIndex peer);
  [[nodiscard]] nlohmann::json replicas_json();
  [[nodiscard]] nlohmann::json status_json();

  std::string name_;
  Hooks hooks_;
  Grant grant_;
  Duration ack_timeout_{};
  Duration quorum_timeout_{};  ///< 0: none
  std::vector<DiskImage> images_;
  std::unique_ptr<ActivityLog> activity_;
  std::unique_ptr<Bridge> bridge_;
  std::shared_ptr<AgentClient> agent_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Worker> resolver_;
  std::unique_ptr<Worker> syncer_;
  std::unique_ptr<Worker> cooler_;
  std::unique_ptr<Worker> verifier_;  ///< made when it is first needed
  std::unique_ptr<Worker> flusher_;   ///< likewise
  std::thread thread_;

  // Reactor thread only.
  std::map<PeerIndex, std::shared_ptr<PeerLink>> links_;
  std::vector<PrimaryEffect> effects_;
  bool pace_timer_ = false;  ///< a turn will be taken when the next frames are due
  std::function<void(Result<HistoryPoint>)> hold_done_;
  Instant hold_began_;
  bool cooling_ = false;                 ///< a pass is under way
  std::optional<Instant> record_since_;  ///< a record is waited for
  std::optional<Error> record_error_;    ///< why it could not be made so far
  std::shared_ptr<VerifyRun> verify_;    ///< under way, or the last one
  std::uint64_t verify_id_ = 0;
  bool stopping_ = false;
  bool exit_when_stopped_ = false;  ///< replicad asked: nbdkit would wait for idle clients

  std::mutex stop_mutex_;
  std::condition_variable stop_condition_;
  bool stopped_ = false;  ///< guarded by stop_mutex_
};

}  // namespace replicad
