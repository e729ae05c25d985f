#pragma once
// When frames that wait for a replica leave: at once if the guest has nothing else under way, else together with
// those that are about to come, so that each wake-up, system call and acknowledgement serves many frames. Pure;
// one per replica.

#include <cstddef>
#include <cstdint>

#include "core/base/limits.h"
#include "core/base/modes.h"
#include "core/base/time.h"

namespace replicad {

class SendPacer {
 public:
  /// In `async` nobody waits for a frame.
  static constexpr Duration async_gather_time = std::chrono::milliseconds(1);
  /// In the other modes, once the replica has acknowledged everything: what the guest's threads need that were woken
  /// by that.
  static constexpr Duration gather_time = std::chrono::microseconds(100);
  /// So much leaves in any case.
  static constexpr std::uint64_t gather_bytes = 64 * kib;

  struct Backlog {
    std::uint64_t frames = 0;  ///< wait to be sent
    std::uint64_t bytes = 0;
    /// Something that was sent is not acknowledged: it will be, and then this is looked at again.
    bool in_flight = false;
  };

  /// `crowd`: how many requests the guest has had under way at a time, lately. They come back in turn when they are
  /// answered: half of them are on their way to the replica while the other half gathers.
  [[nodiscard]] bool is_due(const Backlog& backlog,
                            Mode mode,
                            std::size_t crowd,
                            Instant now) const;
  /// Frames have been handed to the connection.
  void sent(Mode mode, Instant now);
  /// After anything that may have changed it.
  void look(const Backlog& backlog, Instant now);
  /// When what waits is due at the latest; Instant::max(): after the next acknowledgement.
  [[nodiscard]] Instant until() const { return until_; }

 private:
  Instant until_{};
};

}  // namespace replicad
