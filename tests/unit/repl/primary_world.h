#pragma once
// A small world around a Primary for the random test: a guest, the disk record of the in-sync set,
// and one to three model replicas with links that delay and break. Everything happens in an order
// that the seed draws. A rule that is broken throws Violation.

#include <deque>
#include <map>
#include <random>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "core/repl/primary.h"

namespace replicad {

struct Violation {
  std::string text;
};

class PrimaryWorld {
 public:
  explicit PrimaryWorld(std::uint64_t seed);

  /// Faults and load: `steps` events.
  void run(int steps);
  /// The faults end: everything that was asked must be answered, and every replica must be in sync
  /// and equal.
  void heal();
  /// Instead of heal(): the volume fails, everything must be answered with an error.
  void fail();

  struct Counters {
    std::uint64_t answers = 0;
    std::uint64_t records = 0;
    std::uint64_t holds_reached = 0;
    std::uint64_t copies = 0;
    std::uint64_t resyncs = 0;            ///< copies of what was known to be lacking
    std::uint64_t resyncs_continued = 0;  ///< ... that went on after an interruption
    std::uint64_t losses = 0;
    std::uint64_t ring_waits = 0;
    std::uint64_t divergences = 0;
    std::uint64_t epochs = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  static constexpr Sequence base_sequence = 1000;
  enum class Level : std::uint8_t { none, received, logged, durable };
  [[nodiscard]] Level level_now(bool lasts) const;
  struct GuestRequest {
    enum class State : std::uint8_t { arrived, admitted, placed, done };
    State state = State::arrived;
    Change change;
    Sequence sequence = 0;
    Level level = Level::none;
    bool wants_answer = true;
    bool synced = false;  ///< flush: the local disk has it
  };
  struct Frame {
    FrameHeader header;
    std::uint64_t begin_bytes = 0;
    std::uint64_t end_bytes = 0;
    bool is_ready = false;
  };

  // To the replica, in order.
  struct Frames {
    Sequence last;
  };
  struct Sync {};
  struct Ping {};
  /// The last change of each sector of the places that requests aim at, by its sequence.
  using Image = std::vector<Sequence>;
  struct Piece {
    Range range;
    Image content;
  };
  struct Sums {
    Range range;
    Image content;
  };
  using ToReplica = std::variant<StartMessage, Frames, Sync, Ping, Piece, Sums, CopyEndMessage>;
  struct Diffs {
    BlockMap blocks;
  };
  // To the primary, in order.
  using ToPrimary = std::variant<AttachedMessage, Watermarks, Diffs, CopyDoneMessage>;

  struct CopyJob {
    bool is_active = false;
    bool is_locked = false;
    bool is_waiting = false;  ///< for the lock
    BlockMap to_compare = BlockMap();
    BlockMap to_send = BlockMap();
    int unanswered = 0;
    Range range;
    std::optional<HistoryPoint> end;
  };
  struct Window {
    std::uint64_t begin_bytes;
    std::uint64_t end_bytes;
  };
  struct Replica {
    std::string host;
    PeerIndex index = 0;
    bool is_reachable = true;
    // What its disk holds.
    bool is_consistent = true;
    std::optional<Epoch> resync;  ///< as in AttachedMessage, with `base`
    Sequence base = 0;
    Image image;  ///< while it is inconsistent
    bool has_wrong_image = false;
    bool was_found_wrong = false;  ///< the primary saw a digest that differs; no copy came since
    Sequence logged = 0;
    Sequence durable = 0;
    Sequence applied = 0;
    // The most it ever had.
    Sequence ever_received = 0;
    Sequence ever_logged = 0;
    Sequence ever_durable = 0;
    // The session.
    bool is_connected = false;
    bool is_closing = false;
    bool is_started = false;
    bool is_copying = false;
    bool is_sendable = false;
    bool owes_report = false;
    Sequence received = 0;
    std::optional<Sequence> sync_target;
    std::uint64_t take_bytes = 0;  ///< where the next window must begin
    std::deque<Window> unsent;
    std::deque<ToReplica> inbox;
    std::deque<ToPrimary> outbox;
    CopyJob copy;
  };

  std::uint64_t draw(std::uint64_t below);
  bool chance(unsigned percent) { return draw(100) < percent; }
  void require(bool condition, const std::string& text) const;
  [[nodiscard]] HistoryPoint point(Sequence sequence) const;
  [[nodiscard]] Frame& frame(Sequence sequence);
  [[nodiscard]] Replica& replica(PeerIndex index) { return replicas_.at(index); }

  void step(const PrimaryEvent& event);
  void on(const primary_effect::Admitted& effect);
  void on(const primary_effect::Placed& effect);
  void on(const primary_effect::Answer& effect);
  void on(const primary_effect::StartPeer& effect);
  void on(const primary_effect::RunCopy& effect);
  void on(const primary_effect::CopyLocked& effect);
  void on(const primary_effect::ClosePeer& effect);
  void on(const primary_effect::Sendable& effect);
  void on(const primary_effect::RequestSync& effect);
  void on(const primary_effect::Ping& effect);
  void on(const primary_effect::Record& effect);
  void on(const primary_effect::Reserve& effect);
  void on(const primary_effect::SyncImages& effect);
  void on(const primary_effect::HoldReached& effect);
  void on(const primary_effect::HoldFailed& effect);
  void check_answer(const GuestRequest& request) const;
  void check_memory_is_free(std::uint64_t end_bytes) const;

  void guest_arrives();
  void guest_writes();
  void guest_cancels();
  void frame_gets_ready();
  void flush_is_synced();
  void record_moves();
  void daemon_moves();
  void hold_moves();
  void settings_change();

  void replica_moves(Replica& replica);
  void connect(Replica& replica);
  void take(Replica& replica);
  void acknowledge_sent(Replica& replica);
  void deliver_to_replica(Replica& replica);
  void take_frames(Replica& replica, Sequence last);
  void work_on_log(Replica& replica, bool lazily);
  void report(Replica& replica);
  void deliver_to_primary(Replica& replica);
  void copy_moves(Replica& replica);
  void check_copied(const Replica& replica) const;
  void begin_copy(Replica& replica, const StartMessage& start);
  [[nodiscard]] Image image_at(Sequence sequence) const;
  static void write_image(Image& image, const FrameHeader& header);
  [[nodiscard]] static std::pair<std::size_t, std::size_t> sectors_of(const Range& range);
  void break_link(Replica& replica);
  void crash(Replica& replica, bool host);
  void lose_session(Replica& replica);

  void pass(Duration duration);
  void heal_round();
  [[nodiscard]] bool has_converged() const;
  [[nodiscard]] std::string describe() const;

  std::mt19937_64 random_;
  Instant now_{std::chrono::hours(1)};
  Instant last_tick_ = now_;
  PrimaryConfig config_;
  Mode mode_;
  Congestion congestion_;
  OnLocalError on_local_error_;
  std::vector<Replica> replicas_;
  Primary primary_;
  bool healing_ = false;

  std::vector<HistoryPoint> history_;  ///< of sealed frames, after the base
  std::vector<Frame> frames_;          ///< all ever placed
  RequestId next_id_ = 1;
  std::map<RequestId, GuestRequest> requests_;  ///< in order of arrival
  Sequence answered_received_ = 0;              ///< highest answered per level
  Sequence answered_logged_ = 0;
  Sequence answered_durable_ = 0;

  std::set<std::string> disk_record_;  ///< the in-sync set as it is on the disk now
  std::optional<std::set<std::string>> record_under_way_;
  bool is_record_durable_ = false;
  std::optional<Sequence> reserve_under_way_;
  int image_syncs_ = 0;
  bool is_held_ = false;
  bool is_sealed_ = false;
  std::optional<PeerIndex> hold_target_;
  std::optional<HistoryPoint> reached_;
  Counters counters_;
};

}  // namespace replicad
