#pragma once
// Brings a plan's blocks to one replica, beside live writes (docs/protocol.md, "Copy"). Reactor thread only.
//
// Each piece to send: lock the range (no write in it is in flight), find out whether it is a hole, read it,
// unlock, hand it to the link. The link sends a finished piece before any ring bytes, so that writes sealed after
// the unlock follow it; older writes that follow it too are replayed over it and end in the same bytes.
//
// Blocks to compare are read without a lock, a few pieces at a time, and their checksums sent; those that the
// replica finds different are then sent like the others.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/wire/frame.h"
#include "io/reactor.h"
#include "nbd-plugin/bridge.h"

namespace replicad {

class CopyJob : public std::enable_shared_from_this<CopyJob> {
 public:
  struct Hooks {
    std::function<void()> on_piece;  ///< piece() has something to send
    std::function<void(std::vector<std::byte> frame)> on_compare;  ///< send this frame, any time
    std::function<void()> on_end;                ///< every piece was sent: copy_end may follow
    std::function<void(const Error&)> on_error;  ///< an image cannot be read
  };
  struct Progress {
    std::uint64_t done_bytes = 0;  ///< of the plan: sent, or found equal
    std::uint64_t total_bytes = 0;
    std::uint64_t sent_bytes = 0;  ///< payload
    std::uint64_t blocks_left = 0;
  };

  CopyJob(Reactor& reactor,
          Bridge& bridge,
          const std::vector<DiskImage>& images,
          PeerIndex peer,
          std::shared_ptr<const ResyncPlan> plan,
          Hooks hooks);

  void start();
  /// The effect CopyLocked.
  void on_locked();
  /// The finished piece: a whole copy frame, or empty. Valid until piece_sent().
  [[nodiscard]] std::span<const std::byte> piece() const { return piece_; }
  void piece_sent();
  /// A `block_diffs` frame. Errors: Errc::protocol if it answers no frame of ours.
  [[nodiscard]] Status on_diffs(const Range& range, std::span<const std::byte> payload);
  /// No callback and no lock after this.
  void stop();

  [[nodiscard]] Progress progress() const;

 private:
  struct Cursor {
    DiskIndex disk = 0;
    std::uint64_t offset_bytes = 0;
  };
  struct Extent {
    std::uint64_t length_bytes = 0;
    bool is_hole = false;
  };

  void next();
  [[nodiscard]] bool find_piece();
  [[nodiscard]] Extent whole_blocks_at(const Range& range) const;
  void finish_piece(FrameType type, std::uint64_t length);
  void read_data(std::uint64_t length);
  void fail_read(int sys_errno, const Range& range, std::string_view purpose);
  void begin_compares();
  void read_blocks(const Range& range, const std::shared_ptr<std::vector<std::byte>>& buffer);
  void send_sums(const Range& range, const std::vector<std::byte>& bytes);

  Reactor& reactor_;
  Bridge& bridge_;
  const std::vector<DiskImage>& images_;
  PeerIndex peer_;
  std::shared_ptr<const ResyncPlan> plan_;
  Hooks hooks_;
  Cursor send_;                  ///< what of plan_->send comes next
  Cursor compare_;               ///< likewise
  bool compares_begun_ = false;  ///< all of them
  std::size_t reads_in_flight_ = 0;
  std::deque<Range> unanswered_;  ///< compare frames, in the order sent
  BlockMap found_;                ///< compared, or holes here: to be sent
  std::uint64_t total_blocks_ = 0;
  std::uint64_t done_blocks_ = 0;
  std::uint64_t sent_bytes_ = 0;
  Range locked_;
  bool is_sending_ = false;        ///< a piece is locked, read or on its way
  bool is_found_ = false;          ///< the piece is of found_
  std::vector<std::byte> buffer_;  ///< header and up to one payload
  std::span<const std::byte> piece_;
  bool ended_ = false;
  bool stopped_ = false;
};

}  // namespace replicad
