#pragma once
// Where requests wait while this host's own image fails (on-local-error=hold): what failed is tried
// again, with back-off, until it works, the policy changes, or the request gives up. Any thread.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>

#include "core/base/modes.h"
#include "core/base/result.h"
#include "core/base/time.h"

namespace replicad {

class LocalTrouble {
 public:
  explicit LocalTrouble(OnLocalError policy) : policy_(policy) {}

  /// Whoever waits looks again at once.
  void set_policy(OnLocalError policy);
  [[nodiscard]] OnLocalError policy() const { return policy_.load(std::memory_order_relaxed); }

  struct Terms {
    std::function<Error(int)> describe;  ///< of the errno, for status and log
    /// Not to be tried again after this errno; asked at least every 100 ms.
    std::function<bool(int)> give_up;
  };
  /// Runs `attempt` (0 or an errno) until it returns 0 or there is no more waiting for it. Returns what it last
  /// returned. `terms()` is only called when the first attempt fails.
  template <typename Attempt, typename MakeTerms>
  [[nodiscard]] int persist(Attempt attempt, MakeTerms terms) {
    const int error = attempt();
    if (error == 0) [[likely]] {
      return 0;
    }
    return try_again(error, attempt, terms());
  }
  /// Waits as long as the policy is hold and `give_up` does not say otherwise: for a failure that
  /// trying again cannot mend.
  void wait_out(const std::function<bool()>& give_up);

  /// Why requests wait; nullopt if none does.
  [[nodiscard]] std::optional<Error> current() const;

 private:
  [[nodiscard]] int try_again(int error, const std::function<int()>& attempt, const Terms& terms);
  void begin_waiting(const Error& error);
  void end_waiting();
  /// At most 100 ms; true if the policy was set meanwhile.
  bool rest();

  std::atomic<OnLocalError> policy_;
  mutable std::mutex mutex_;  ///< guards all below
  std::condition_variable policy_set_;
  std::uint64_t policy_changes_ = 0;
  unsigned waiting_ = 0;
  std::optional<Error> error_;
};

}  // namespace replicad
