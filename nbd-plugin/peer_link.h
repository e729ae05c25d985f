#pragma once
// The plugin's connection to one replica: connects with back-off, attaches, sends ring bytes and copy pieces,
// passes watermarks to the core. Reactor thread only.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "io/frame_connection.h"
#include "io/net.h"
#include "io/worker.h"
#include "nbd-plugin/bridge.h"
#include "nbd-plugin/copy_job.h"
#include "nbd-plugin/verify_job.h"

namespace replicad {

/// What all links of a volume share; outlives them.
struct LinkContext {
  Reactor& reactor;
  Worker& resolver;
  Bridge& bridge;
  const std::vector<DiskImage>& images;
  std::string volume;
  std::string uuid;
  std::string host;  ///< own
};

class PeerLink : public std::enable_shared_from_this<PeerLink> {
 public:
  PeerLink(const LinkContext& context, PeerIndex peer, MemberGrant member);

  void start();
  void stop();

  // Effects of the core for this peer.
  void send_start(const StartMessage& message);
  void run_copy(std::shared_ptr<const ResyncPlan> plan);
  void copy_locked();
  void close(const Error& error);
  void kick();
  void request_sync();
  void ping();

  /// The replica can be compared with while it streams.
  [[nodiscard]] bool can_verify() const { return attached_ && knows_verify_; }
  /// `job` gets the replica's answers, and the end of the connection; null: nobody does.
  void set_verify(std::shared_ptr<VerifyJob> job) { verify_ = std::move(job); }
  void send_sums(std::vector<std::byte> frame);

  /// Every second: heartbeat and digest; ends a connection that has been silent for `silence_max`.
  void on_second(Duration silence_max);

  [[nodiscard]] const std::string& host() const { return member_.host; }
  [[nodiscard]] PeerIndex peer() const { return peer_; }
  [[nodiscard]] const CopyJob* copy() const { return copy_.get(); }
  /// Payload that copies to this replica have sent since the plugin began.
  [[nodiscard]] std::uint64_t copied_bytes() const {
    return copied_bytes_ + (copy_ ? copy_->progress().sent_bytes : 0);
  }
  /// The last thing the replica refused, or why it cannot be reached.
  [[nodiscard]] const std::optional<Error>& last_error() const { return last_error_; }
  [[nodiscard]] bool was_refused() const { return refused_; }

 private:
  struct Sent {
    bool is_copy = false;
    std::uint64_t bytes = 0;
  };

  void connect();
  void connect_to(Result<SocketAddress> address);
  void retry(const Error& error);
  void adopt(Fd socket);
  Status on_frame(const FrameView& frame);
  Status on_attached(const FrameView& frame);
  void on_refuse(const FrameView& frame);
  void on_closed(const Error& error);
  std::size_t fill(iovec* vectors, std::size_t vectors_max);
  void on_sent(std::uint64_t bytes);
  void note_answered(std::uint64_t heartbeat);
  void drop_copy();
  void drop_verify(const Error& error);
  void end_copy();
  /// `keep_alive`: the copy whose pieces the connection may still be reading.
  void install_source(std::shared_ptr<CopyJob> keep_alive);

  LinkContext context_;
  PeerIndex peer_;
  MemberGrant member_;
  SocketAddress address_;
  Fd connecting_;
  std::shared_ptr<FrameConnection> connection_;
  std::shared_ptr<CopyJob> copy_;
  std::shared_ptr<VerifyJob> verify_;
  std::uint64_t copied_bytes_ = 0;        ///< by copies that have ended
  bool copy_ending_ = false;              ///< all of the plan was sent
  std::optional<HistoryPoint> copy_end_;  ///< sent, copy_done is awaited
  std::deque<Sent> in_flight_;
  std::optional<Error> last_error_;
  Epoch epoch_;          ///< that the last attach was made in
  Instant attached_at_;  ///< when that was sent
  std::uint64_t heartbeat_ = 0;
  std::map<std::uint64_t, Instant> heartbeats_;  ///< when they were sent; not answered yet
  bool refused_ = false;
  bool attached_ = false;
  bool knows_verify_ = false;  ///< the replica does
  bool stopped_ = false;
  Duration delay_;
  Instant last_heard_;
  Sequence digest_sent_ = 0;
};

}  // namespace replicad
