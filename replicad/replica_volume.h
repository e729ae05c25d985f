#pragma once
// The replica half of one volume on this host: sessions with the primary, log, images, background apply.
// Owns the images (locked) and the log directory while it exists. Reactor thread only.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/store/volume_state.h"
#include "io/fd.h"
#include "io/frame_connection.h"
#include "io/reactor.h"
#include "io/worker.h"

namespace replicad {

struct ReplicaStatus {
  std::string
      state;  ///< streaming, disconnected, copying, inconsistent, failed (docs/control-api.md)
  bool connected = false;
  bool consistent = true;
  bool is_short = false;  ///< it may lack what it told a primary before a crash
  Watermarks marks;
  HistoryPoint logged;              ///< position and digest of the last logged frame
  std::uint64_t backlog_bytes = 0;  ///< logged and not yet applied
  bool unstaging = false;           ///< a committed resync is on its way into the images
  std::uint64_t log_bytes = 0;      ///< space the log's segments take
  std::optional<Duration> heard;    ///< since the primary's last frame
  std::optional<Error> error;       ///< why `failed`, or why the last session ended
};

class ReplicaVolume {
 public:
  struct Hooks {
    /// Applies `change` to the volume's state and makes it durable; `done` runs later on the reactor thread. On
    /// error the state is unchanged. Changes are applied in the order of the calls.
    std::function<void(std::function<void(VolumeState&)> change, std::function<void(Status)> done)>
        update_state;
    /// The state as last applied.
    std::function<const VolumeState&()> state;
    /// The images are locked, so nobody else has them any more, and nothing was read yet. An error ends open().
    std::function<Status()> on_locked;
    std::function<void()> on_link_lost;   ///< counted in the host's stability
    std::function<void()> on_disk_error;  ///< likewise
    /// Closes what keeps the space of removed files, which takes long, where nobody waits for it. May be missing.
    std::function<void(std::vector<Fd>)> close_later;
  };

  /// Opens and locks the images, recovers the log (a torn tail is cut to a strict prefix) and starts to apply
  /// what it holds beyond the checkpoint. Blocking; called at daemon start or after a role change.
  /// Errors: Errc::busy (image in use), Errc::not_found, Errc::corrupt (names file and offset), Errc::no_space.
  [[nodiscard]] static Result<std::unique_ptr<ReplicaVolume>> open(Reactor& reactor,
                                                                   const std::string& host,
                                                                   const std::string& log_dir,
                                                                   Hooks hooks);
  virtual ~ReplicaVolume() = default;

  /// Takes over a connection whose first frame was `message` for this volume: answers `attached` or `refuse`
  /// and handles every later frame (it calls start() on the connection with its own handlers; bytes received
  /// behind the attach frame are not lost).
  virtual void attach(std::shared_ptr<FrameConnection> connection,
                      const AttachMessage& message) = 0;

  [[nodiscard]] virtual ReplicaStatus status() const = 0;
  /// One per disk; owned by this object.
  [[nodiscard]] virtual std::vector<int> image_fds() const = 0;

  /// Makes what is logged durable now, so that it is applied soon.
  virtual void sync_soon() = 0;

  /// For a promotion: promises `epoch` durably, ends the session, waits until everything logged is applied,
  /// compares with `point` (sequence, and the applied digest), if it is given, and syncs the images. The caller then
  /// records itself primary and calls shutdown(). Errors: Errc::stale_epoch, Errc::diverged, Errc::inconsistent,
  /// Errc::too_far_behind; replication may then go on.
  virtual void prepare_promotion(const Epoch& epoch,
                                 const std::optional<HistoryPoint>& point,
                                 std::function<void(Status)> done) = 0;

  /// Ends the session, finishes I/O in flight, syncs, records the checkpoint and releases images and log.
  /// `done` runs when the object may be destroyed. With `discard_log` the segments are removed (role change).
  virtual void shutdown(bool discard_log, std::function<void()> done) = 0;
};

}  // namespace replicad
