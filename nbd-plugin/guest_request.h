#pragma once
// Where a guest's thread (one of nbdkit's) waits for the core: one object per thread, so that a late wake-up
// never touches memory that is gone.

#include <atomic>
#include <cstdint>
#include <functional>

#include "core/repl/primary.h"

namespace replicad {

class GuestRequest {
 public:
  enum class State : std::uint32_t { arrived, admitted, answered, failed };

  /// The calling thread's object, ready for a new request.
  static GuestRequest& of_this_thread();

  [[nodiscard]] RequestId id() const { return reinterpret_cast<RequestId>(this); }
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  static GuestRequest& from_id(RequestId id) { return *reinterpret_cast<GuestRequest*>(id); }

  /// Any thread: the next state. True if the owner sleeps and is to be woken.
  [[nodiscard]] bool set(State state);
  /// Any thread, also when the owner is gone.
  void wake();
  [[nodiscard]] State state() const;
  /// Owner: sleeps while the state is `from`. False if `give_up` said so (asked every 100 ms).
  [[nodiscard]] bool wait_while(State from, const std::function<bool()>& give_up);

  FrameHeader header;             ///< of the placed frame
  std::uint64_t ring_offset = 0;  ///< likewise

 private:
  GuestRequest() = default;

  std::atomic<std::uint32_t> word_{0};
};

}  // namespace replicad
