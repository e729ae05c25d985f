#pragma once
// A full copy of all images to one replica, beside live writes (docs/protocol.md, "Copy"). Reactor thread only.
//
// Each piece: lock the range (no write in it is in flight), find out whether it is a hole, read it, unlock, hand
// it to the link. The link sends a finished piece before any ring bytes, so that writes sealed after the unlock
// follow it; older writes that follow it too are replayed over it and end in the same bytes.

#include <cstdint>
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
    std::function<void()> on_piece;              ///< piece() has something to send
    std::function<void()> on_end;                ///< every piece was sent: copy_end may follow
    std::function<void(const Error&)> on_error;  ///< an image cannot be read
  };

  CopyJob(Reactor& reactor,
          Bridge& bridge,
          const std::vector<DiskImage>& images,
          PeerIndex peer,
          Hooks hooks);

  void start();
  /// The effect CopyLocked.
  void on_locked();
  /// The finished piece: a whole copy frame, or empty. Valid until piece_sent().
  [[nodiscard]] std::span<const std::byte> piece() const { return piece_; }
  void piece_sent();
  /// No callback and no lock after this.
  void stop();

  [[nodiscard]] std::uint64_t done_bytes() const { return done_bytes_; }
  [[nodiscard]] std::uint64_t total_bytes() const { return total_bytes_; }

 private:
  void next();
  void finish_piece(FrameType type, std::uint64_t length);
  void read_data(std::uint64_t length, std::uint64_t filled);

  Reactor& reactor_;
  Bridge& bridge_;
  const std::vector<DiskImage>& images_;
  PeerIndex peer_;
  Hooks hooks_;
  DiskIndex disk_ = 0;
  std::uint64_t offset_bytes_ = 0;
  std::uint64_t done_bytes_ = 0;
  std::uint64_t total_bytes_ = 0;
  Range locked_;
  std::vector<std::byte> buffer_;  ///< header and up to one payload
  std::span<const std::byte> piece_;
  bool stopped_ = false;
};

}  // namespace replicad
