#pragma once
// A Primary under test: every call is one event (or a few) and returns the effects as one line of
// text, such as "placed 1 as 1, answer 1". Sequences in calls and texts count from the history
// point the scenario begins with, so the first frame is 1. Checks the invariants after each event.

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/repl/primary.h"

namespace replicad {

/// Changes of a guest; 4 KiB unless told.
inline Change write_at(std::uint64_t offset_bytes,
                       std::uint64_t length_bytes = 4096,
                       std::uint16_t flags = 0) {
  return {.kind = FrameType::write, .flags = flags, .range = {0, offset_bytes, length_bytes}};
}
inline Change fua_at(std::uint64_t offset_bytes) {
  return write_at(offset_bytes, 4096, frame_flag_fua);
}
inline Change trim_at(std::uint64_t offset_bytes, std::uint64_t length_bytes) {
  return {.kind = FrameType::trim, .flags = 0, .range = {0, offset_bytes, length_bytes}};
}
inline Change flush_all() {
  return {.kind = FrameType::flush, .flags = 0, .range = {}};
}

class PrimaryScenario {
 public:
  static constexpr Sequence base_sequence = 100;
  static constexpr Duration ack_timeout = std::chrono::seconds(5);

  struct Setup {
    Mode mode = Mode::sync;
    OnLocalError on_local_error = OnLocalError::fail;
    Congestion congestion = Congestion::throttle;
    std::vector<std::string> peers = {"b", "c"};
    std::vector<std::string> in_sync = {"a", "b", "c"};
    std::uint64_t ring_bytes = ring_bytes_min;
    Sequence reserved = Sequence{1} << 30;  ///< beyond the base
    bool attached = true;                   ///< all peers attach at the base
    std::shared_ptr<const Trail> trail = {};
  };

  explicit PrimaryScenario(const Setup& setup) : primary_(config_of(setup), now_) {
    history_.push_back(config_of(setup).history);
    for (const std::string& host : setup.peers) {
      if (setup.attached) attach(host);
    }
  }

  /// One event; frames placed by it become ready at once unless `hold_frames` is set.
  std::string step(const PrimaryEvent& event) {
    std::string text;
    step_into(event, text);
    return text;
  }

  // Guest.
  std::string arrive(RequestId id, const Change& change) {
    return step(primary_event::WriteArrived{id, change});
  }
  std::string written(RequestId id, bool wants_answer = true) {
    return step(primary_event::LocalWritten{id, wants_answer});
  }
  std::string synced(RequestId id) { return step(primary_event::LocalSynced{id}); }
  std::string write(RequestId id, const Change& change) {
    const std::string text = arrive(id, change);
    return join(text, written(id));
  }
  std::string flush(RequestId id) {
    const std::string text = write(id, flush_all());
    return join(text, synced(id));
  }
  /// The bytes of the oldest frame kept back by `hold_frames` are complete.
  std::string frame_ready() {
    std::string text;
    make_ready(text);
    return text;
  }

  // Peers. `at`, and the numbers of the watermarks, count from the base.
  std::string attach(const std::string& host, Sequence at) {
    return attach(host, point(at), at, at);
  }
  std::string attach(const std::string& host) { return attach(host, 0); }
  std::string attach(const std::string& host,
                     const HistoryPoint& logged,
                     Sequence durable,
                     Sequence applied,
                     bool consistent = true) {
    AttachedMessage message;
    message.boot_id = "boot";
    message.consistent = consistent;
    message.logged = logged;
    message.durable = base_sequence + durable;
    message.applied = base_sequence + applied;
    marks_[host] = {.received = logged.sequence,
                    .logged = logged.sequence,
                    .durable = message.durable,
                    .applied = message.applied,
                    .logged_digest = {},
                    .applied_digest = {}};
    return step(primary_event::PeerAttached{peer(host), message});
  }
  std::string lose(const std::string& host) {
    return step(primary_event::PeerLost{peer(host), {Errc::unreachable, 0, "link down", {}}});
  }
  /// Gives the peer everything there is to send. Returns the bytes.
  std::uint64_t send(const std::string& host, std::uint64_t bytes_max = ~std::uint64_t{0}) {
    const auto window = primary_.take(peer(host), bytes_max);
    const std::uint64_t bytes = window.end_bytes - window.begin_bytes;
    if (bytes > 0) step(primary_event::PeerSent{peer(host), bytes});
    return bytes;
  }
  /// Each sends what there is and reports this watermark, with the ones below it raised as far as
  /// needed.
  std::string received(const std::string& host, Sequence to) { return report(host, to, 0, 0, 0); }
  std::string logged(const std::string& host, Sequence to) { return report(host, to, to, 0, 0); }
  std::string durable(const std::string& host, Sequence to) { return report(host, to, to, to, 0); }
  std::string applied(const std::string& host, Sequence to) { return report(host, to, to, 0, to); }
  /// All four.
  std::string all(const std::string& host, Sequence to) { return report(host, to, to, to, to); }
  /// Exactly these, digests of our own history put in where they are zero.
  std::string marks(const std::string& host, Watermarks marks) {
    for (Sequence* mark : {&marks.received, &marks.logged, &marks.durable, &marks.applied}) {
      *mark += base_sequence;
    }
    marks_[host] = marks;
    return send_marks(host);
  }
  /// The last report again (what a heartbeat brings).
  std::string report_again(const std::string& host) { return send_marks(host); }

  // Time and state.
  std::string pass(Duration duration) {
    std::string text;
    const Instant end = now_ + duration;
    while (now_ < end) {
      now_ = std::min<Instant>(end, now_ + std::chrono::milliseconds(50));
      text = join(text, step(primary_event::Tick{}));
    }
    return text;
  }
  /// The copy's plan was sent, and the replica has ended it at that point.
  std::string end_copy(const std::string& host) {
    step(primary_event::CopyEnding{peer(host)});
    return step(primary_event::CopyDone{peer(host), primary_.taken_point(peer(host))});
  }
  std::string recorded() { return step(primary_event::Recorded{}); }
  std::string hold(const std::string& target = {}, Duration limit = std::chrono::seconds(30)) {
    std::optional<PeerIndex> index;
    if (!target.empty()) index = peer(target);
    return step(primary_event::Hold{index, now_ + limit});
  }
  std::string images_synced(bool ok = true) {
    --image_syncs_;
    return step(primary_event::ImagesSynced{ok});
  }
  /// Every sync of the images that was asked for ends well.
  void images_synced_if_asked() {
    while (image_syncs_ > 0)
      images_synced();
  }

  [[nodiscard]] PeerIndex peer(const std::string& host) const {
    return primary_.find_peer(host).value();
  }
  [[nodiscard]] PeerView view(const std::string& host) const {
    return primary_.view(peer(host), now_);
  }
  [[nodiscard]] HistoryPoint point(Sequence at) const { return history_.at(at); }
  [[nodiscard]] std::string in_sync() const { return hosts_text(primary_.in_sync()); }
  [[nodiscard]] Primary& primary() { return primary_; }
  [[nodiscard]] Instant now() const { return now_; }
  [[nodiscard]] const FrameHeader& frame(Sequence at) const { return frames_.at(at - 1); }
  [[nodiscard]] const std::string& record_reason() const { return record_reason_; }
  [[nodiscard]] Sequence last_answered() const { return last_start_.answered - base_sequence; }
  [[nodiscard]] const StartMessage& last_start() const { return last_start_; }
  [[nodiscard]] const Error& last_error() const { return last_error_; }
  /// Of the last copy.
  [[nodiscard]] const ResyncPlan& plan() const { return *plan_; }
  [[nodiscard]] const std::vector<PeerIndex>& sendable() const { return sendable_; }

  bool hold_frames = false;

 private:
  static PrimaryConfig config_of(const Setup& setup) {
    PrimaryConfig config;
    config.epoch = {3, 77};
    config.history = {{2, 55}, base_sequence, {0x1234, 0x5678}};
    config.reserved = base_sequence + setup.reserved;
    config.disk_bytes = {gib, 64 * mib};
    config.peers = setup.peers;
    config.in_sync = setup.in_sync;
    config.host = "a";
    config.mode = setup.mode;
    config.congestion = setup.congestion;
    config.on_local_error = setup.on_local_error;
    config.ring_bytes = setup.ring_bytes;
    config.ack_timeout = ack_timeout;
    config.trail = setup.trail;
    return config;
  }

  static std::string join(std::string text, const std::string& more) {
    if (!text.empty() && !more.empty()) text += ", ";
    return text + more;
  }
  static std::string hosts_text(const std::vector<std::string>& hosts) {
    return fmt::format("{}", fmt::join(hosts, "+"));
  }

  void step_into(const PrimaryEvent& event, std::string& text) {
    std::vector<PrimaryEffect> effects;
    primary_.step(event, now_, effects);
    primary_.check_invariants();
    for (const PrimaryEffect& effect : effects) {
      const std::string one = std::visit([this](const auto& e) { return describe(e); }, effect);
      text = join(std::move(text), one);
    }
    while (!hold_frames && !unready_.empty())
      make_ready(text);
  }

  void make_ready(std::string& text) {
    FrameHeader header = unready_.front();
    unready_.erase(unready_.begin());
    if (header.payload_bytes > 0) {
      header.payload_crc32c = static_cast<std::uint32_t>(header.sequence * 2654435761U);
    }
    history_.push_back({header.epoch,
                        header.sequence,
                        extend_digest(history_.back().digest, digest_item(header))});
    frames_.push_back(header);
    step_into(primary_event::FrameReady{header.sequence, header.payload_crc32c}, text);
  }

  std::string report(const std::string& host,
                     Sequence received_to,
                     Sequence logged_to,
                     Sequence durable_to,
                     Sequence applied_to) {
    send(host);
    Watermarks& marks = marks_[host];
    marks.received = std::max(marks.received, base_sequence + received_to);
    marks.logged = std::max(marks.logged, base_sequence + logged_to);
    marks.durable = std::max(marks.durable, base_sequence + durable_to);
    marks.applied = std::max(marks.applied, base_sequence + applied_to);
    marks.logged_digest = marks.applied_digest = {};
    return send_marks(host);
  }
  std::string send_marks(const std::string& host) {
    Watermarks marks = marks_[host];
    if (marks.logged_digest == Digest{}) marks.logged_digest = digest_at(marks.logged);
    if (marks.applied_digest == Digest{}) marks.applied_digest = digest_at(marks.applied);
    return step(primary_event::PeerMarks{peer(host), marks});
  }
  [[nodiscard]] Digest digest_at(Sequence sequence) const {
    const Sequence at = sequence - base_sequence;
    return at < history_.size() ? history_[at].digest : Digest{};
  }

  [[nodiscard]] std::string host_of(PeerIndex peer) const { return primary_.view(peer, now_).host; }
  std::string describe(const primary_effect::Admitted& e) {
    return fmt::format("admitted {}", e.id);
  }
  std::string describe(const primary_effect::Placed& e) {
    unready_.push_back(e.header);
    const Sequence at = e.header.sequence - base_sequence;
    return e.id ? fmt::format("placed {} as {}", *e.id, at) : fmt::format("placed own as {}", at);
  }
  std::string describe(const primary_effect::Answer& e) {
    return fmt::format("{} {}", e.failed ? "fail" : "answer", e.id);
  }
  std::string describe(const primary_effect::StartPeer& e) {
    last_start_ = e.message;
    const Sequence after = e.message.after - base_sequence;
    const char* what = !e.message.copy  ? "start"
                       : e.message.keep ? "resync"
                       : e.message.save ? "rewind"
                                        : "copy";
    const char* where = e.message.in_place ? " in place"
                        : e.message.go_on  ? " going on"
                        : e.message.parted ? " of its own"
                                           : "";
    return fmt::format("{} {} after {}{}", what, host_of(e.peer), after, where);
  }
  std::string describe(const primary_effect::RunCopy& e) {
    plan_ = e.plan;
    return fmt::format("run copy {}", host_of(e.peer));
  }
  std::string describe(const primary_effect::CopyLocked& e) {
    return fmt::format("locked {}", host_of(e.peer));
  }
  std::string describe(const primary_effect::ClosePeer& e) {
    last_error_ = e.error;
    return fmt::format("close {} {}", host_of(e.peer), errc_name(e.error.code));
  }
  std::string describe(const primary_effect::Sendable& e) {
    sendable_.push_back(e.peer);
    return {};
  }
  std::string describe(const primary_effect::RequestSync& e) {
    return fmt::format("sync {}", host_of(e.peer));
  }
  std::string describe(const primary_effect::Ping& e) {
    return fmt::format("ping {}", host_of(e.peer));
  }
  std::string describe(const primary_effect::Record& e) {
    record_reason_ = e.reason;
    return fmt::format("record {}", hosts_text(e.in_sync));
  }
  std::string describe(const primary_effect::Reserve& e) {
    return fmt::format("reserve {}", e.until - base_sequence);
  }
  std::string describe(const primary_effect::SyncImages& /*e*/) {
    ++image_syncs_;
    return "sync images";
  }
  std::string describe(const primary_effect::HoldReached& e) {
    return fmt::format("hold reached {}", e.point.sequence - base_sequence);
  }
  std::string describe(const primary_effect::HoldFailed& e) {
    last_error_ = e.error;
    return fmt::format("hold failed {}", errc_name(e.error.code));
  }

  Instant now_{std::chrono::hours(1)};
  Primary primary_;
  std::vector<HistoryPoint> history_;
  std::vector<FrameHeader> frames_;
  std::vector<FrameHeader> unready_;
  std::map<std::string, Watermarks> marks_;
  std::vector<PeerIndex> sendable_;
  int image_syncs_ = 0;  ///< asked for and not ended
  std::string record_reason_;
  Error last_error_;
  StartMessage last_start_;
  std::shared_ptr<const ResyncPlan> plan_;
};

/// Where the term of a scenario begins.
inline constexpr Sequence term_base = PrimaryScenario::base_sequence;

/// One replica, in sync and attached.
inline PrimaryScenario::Setup pair_in_sync(Mode mode = Mode::sync) {
  return {.mode = mode, .peers = {"b"}, .in_sync = {"a", "b"}};
}
/// One replica that is neither in sync nor attached.
inline PrimaryScenario::Setup pair_apart(Mode mode = Mode::sync) {
  return {.mode = mode, .peers = {"b"}, .in_sync = {"a"}, .attached = false};
}
/// `count` changes of 1 MiB at `first` MiB and up: the ring has room for three.
inline void write_mib(PrimaryScenario& s, RequestId first, RequestId count) {
  for (RequestId id = first; id < first + count; ++id)
    s.write(id, write_at(id * mib, mib));
}

}  // namespace replicad
