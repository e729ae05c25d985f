#pragma once
// One `replicactl verify`: compares this host's images with those of replicas, one after the other (verify_job.h), and
// on request writes anew, through the stream, what differs (docs/operations.md). What was found stays to be shown when
// it is over. Reactor thread only.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "nbd-plugin/peer_link.h"

namespace replicad {

class VerifyRun : public std::enable_shared_from_this<VerifyRun> {
 public:
  struct Target {
    PeerIndex peer = 0;
    std::string host;
  };
  struct Request {
    std::uint64_t id = 0;
    std::vector<Target> targets;
    bool repair = false;
    /// Also blocks that no replica has like the primary: which side is right is not known of them.
    bool force = false;
  };
  /// Outlive the run.
  struct Context {
    Reactor& reactor;
    Worker& worker;  ///< reads, and waits for what is written anew
    Bridge& bridge;
    const std::vector<DiskImage>& images;
  };
  struct Hooks {
    std::function<PeerLink*(PeerIndex)> link;  ///< null: there is none any more
    std::function<void()> on_over;
  };

  VerifyRun(const Context& context, Request request, Hooks hooks);

  void start();
  /// Ends soon.
  void stop();
  [[nodiscard]] bool is_over() const { return state_ != State::running; }
  /// docs/control-api.md, "verify".
  [[nodiscard]] nlohmann::json describe() const;

 private:
  enum class State : std::uint8_t { running, done, failed, stopped };
  struct Side {
    Target target;
    std::shared_ptr<VerifyJob> job;
    bool is_compared = false;  ///< all of it
    std::optional<Error> error;
  };

  void advance();
  [[nodiscard]] bool compare(Side& side);
  void on_end(std::size_t index);
  [[nodiscard]] std::optional<Error> why_not(const Side& side) const;
  [[nodiscard]] bool has_confirmation(const Range& block) const;
  void sort_out();
  void rewrite_next();
  void on_rewritten(const Range& run, int error);
  [[nodiscard]] bool recheck(Side& side);
  void finish(State state);
  [[nodiscard]] nlohmann::json side_json(std::size_t index) const;
  [[nodiscard]] static const char* state_name(State state);

  Context context_;
  Request request_;
  Hooks hooks_;
  std::vector<Side> sides_;
  std::size_t next_ = 0;     ///< of sides_, in this step
  bool rechecks_ = false;    ///< the last step
  bool sorted_out_ = false;  ///< all comparisons are over
  BlockMap to_rewrite_;
  BlockMap rewritten_;
  std::uint64_t alone_blocks_ = 0;  ///< no compared replica has them like the primary
  std::uint64_t kept_blocks_ = 0;   ///< not written anew for that reason
  std::optional<Error> error_;
  State state_ = State::running;
  Instant began_;
  Instant ended_;
};

}  // namespace replicad
