#pragma once
// Where nbdkit's threads and the reactor meet: the core behind one short lock, the ring's memory, and the
// requests that wait. The guest's threads write the image and fill the ring themselves, outside the lock; the
// reactor is woken only to send.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/repl/primary.h"
#include "io/brief_mutex.h"
#include "io/mirrored_buffer.h"
#include "nbd-plugin/activity_log.h"
#include "nbd-plugin/disk_image.h"
#include "nbd-plugin/guest_request.h"
#include "nbd-plugin/local_trouble.h"

namespace replicad {

class Bridge {
 public:
  /// `images`: outlive the bridge; index = disk index.
  Bridge(const PrimaryConfig& config,
         std::unique_ptr<MirroredBuffer> ring,
         const std::vector<DiskImage>& images);

  /// Regions are marked there before they are written to. Before the first request; outlives the bridge.
  void set_activity(ActivityLog* activity) { activity_ = activity; }
  /// `wake`: makes the reactor call drain(); any thread. `stopping`: nbdkit is shutting down; held requests give up.
  void set_hooks(std::function<void()> wake, std::function<bool()> stopping);

  // Guest side, any thread, blocking; result: 0 or errno. Ranges lie within the disk. What fails here
  // because the image does waits or is answered with the error, as on-local-error says.
  [[nodiscard]] int read(DiskIndex disk, std::span<std::byte> to, std::uint64_t offset);
  [[nodiscard]] int write(DiskIndex disk,
                          std::span<const std::byte> data,
                          std::uint64_t offset,
                          bool fua);
  /// `kind`: FrameType::zero or FrameType::trim.
  [[nodiscard]] int zero(DiskIndex disk,
                         FrameType kind,
                         std::uint64_t offset,
                         std::uint64_t length,
                         bool may_trim,
                         bool fua);
  [[nodiscard]] int flush(DiskIndex disk);

  /// What the image holds in `range` (at most 1 MiB) goes through the stream once more, as a write of it would: every
  /// replica gets it, in its order among the writes. Any thread, blocking; result: 0 or errno.
  [[nodiscard]] int rewrite(const Range& range);

  /// Requests that wait for the image; its policy.
  [[nodiscard]] LocalTrouble& local_trouble() { return local_trouble_; }

  // Reactor side.
  /// While it is set, requests that wait are answered with EIO, at the latest after 100 ms.
  void set_quorum_lost(bool lost) { quorum_lost_.store(lost, std::memory_order_relaxed); }
  /// One event to the core.
  void step(const PrimaryEvent& event);
  /// Seals what is ready and moves out the effects that are the reactor's; returns false when there was nothing.
  bool drain(std::vector<PrimaryEffect>& effects);
  [[nodiscard]] Primary::SendWindow take(PeerIndex peer, std::uint64_t bytes_max);
  /// When to call drain() again at the latest, for what is not due yet; nullopt: when woken.
  [[nodiscard]] std::optional<Instant> due_at();
  [[nodiscard]] std::span<const std::byte> ring_bytes(const Primary::SendWindow& window) const;
  /// Looks at the core under the lock.
  template <typename Look>
  auto look(Look look) {
    const std::lock_guard lock(mutex_);
    return look(primary_);
  }

  struct Counters {
    std::atomic<std::uint64_t> writes{0};
    std::atomic<std::uint64_t> written_bytes{0};
    std::atomic<std::uint64_t> flushes{0};
    std::atomic<std::uint64_t> zeroes{0};
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  struct ReadyMark {
    std::atomic<Sequence> sequence{0};  ///< of the frame in this slot whose bytes are complete
    std::uint32_t payload_crc32c = 0;
  };

  /// Why a request that waits gives up; 0: it does not.
  [[nodiscard]] int reason_to_give_up() const;
  [[nodiscard]] int admit(GuestRequest& request, const Change& change);
  [[nodiscard]] int admit_write(GuestRequest& request, const Change& change);
  [[nodiscard]] int mark_activity(const Range& range);
  [[nodiscard]] Error describe_activity(const Range& range, int error) const;
  [[nodiscard]] int wait_for_answer(GuestRequest& request);
  void place(GuestRequest& request, bool wants_answer);
  [[nodiscard]] int write_piece(
      DiskIndex disk, std::span<const std::byte> data, std::uint64_t offset, bool fua, bool last);
  [[nodiscard]] int write_image(const Range& range, std::span<const std::byte> data, bool fua);
  [[nodiscard]] int zero_image(const Range& range, bool may_punch, bool fua);
  [[nodiscard]] bool is_hold_under_way();
  [[nodiscard]] bool stream_present(GuestRequest& request, const Range& range, bool wants_answer);
  [[nodiscard]] int recover_failed_write(GuestRequest& request, const Range& range, int error);
  [[nodiscard]] LocalTrouble::Terms terms(const char* what,
                                          const Range& range,
                                          std::function<bool(int)> give_up);
  [[nodiscard]] Error describe(const char* what, const Range& range, int error) const;
  [[nodiscard]] int fail_volume(GuestRequest& request,
                                const Range& range,
                                const char* what,
                                int error);
  void fill(const FrameHeader& placed,
            std::uint64_t ring_offset,
            std::span<const std::byte> payload);
  void finish_frame();
  void seal_ready(Instant now);
  void step_locked(const PrimaryEvent& event, Instant now);
  void settle(GuestRequest& request, GuestRequest::State state);
  void unlock_and_wake(std::unique_lock<BriefMutex>& lock);
  void note_due(Instant now);
  [[nodiscard]] bool is_due(PeerIndex peer, Instant now) const;

  const std::vector<DiskImage>& images_;
  std::unique_ptr<MirroredBuffer> ring_;
  std::vector<ReadyMark> ready_;  ///< by sequence modulo size
  ActivityLog* activity_ = nullptr;
  std::function<void()> wake_;
  std::function<bool()> stopping_;
  std::function<bool()> give_up_;
  std::atomic<bool> quorum_lost_{false};
  LocalTrouble local_trouble_;
  std::atomic<bool> due_{false};  ///< a finished frame is to be sent at once to some peer
  Counters counters_;

  BriefMutex mutex_;  ///< guards all below
  Primary primary_;
  std::vector<PrimaryEffect> scratch_;
  std::vector<PrimaryEffect> for_reactor_;
  std::vector<SendPacer> pacers_;        ///< by peer
  std::size_t crowd_ = 0;                ///< most requests under way at a time, lately
  std::vector<bool> sendable_;           ///< by peer: one Sendable stands for many; until it is due
  std::vector<GuestRequest*> sleepers_;  ///< to be woken once the mutex is free
};

}  // namespace replicad
