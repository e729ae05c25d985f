#pragma once
// The durable state of one volume on this host: changes are applied one after the other, each is
// written by the Worker before it counts, and the file always holds the state before or after a
// change, never a mixture. Reactor thread only.

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "core/store/volume_state.h"
#include "io/reactor.h"
#include "io/worker.h"

namespace replicad {

class StateStore {
 public:
  /// Edits the state; an error refuses the change and nothing is written.
  using Change = std::function<Status(VolumeState&)>;
  using Done = std::function<void(Status)>;

  /// `path`: of the state file. `state`: what it holds (or, for a new volume, what the first update
  /// starts from).
  StateStore(Reactor& reactor, Worker& worker, std::string path, VolumeState state);
  StateStore(const StateStore&) = delete;
  StateStore& operator=(const StateStore&) = delete;
  ~StateStore();

  /// Reads the file, which is durable then. Blocking. Errors: Errc::not_found, Errc::corrupt and Errc::version_mismatch
  /// with the path.
  [[nodiscard]] static Result<VolumeState> load(const std::string& path);

  /// The state as last made durable, but for what was remembered since.
  [[nodiscard]] const VolumeState& state() const { return state_; }

  /// Applies `change` to the state that all earlier changes left, and writes it. `done` runs later
  /// on the reactor thread (not after the store is destroyed): success means durable; on error
  /// (refused by `change`, Errc::invalid_argument from check_volume_state, Errc::no_space,
  /// Errc::io_error) file and state() are as before. An unchanged state is not written again.
  /// A change that raises the generation itself begins anew: what was told of this file before does not count.
  void update(Change change, Done done);

  /// Of the file, as others may be told of it.
  [[nodiscard]] StateStamp stamp() const { return {state_.generation, start_, loaded_}; }
  /// Goes into state() at once, and to the disk with the next change.
  void remember(const std::string& host, const StateStamp& heard);

  [[nodiscard]] bool is_idle() const { return !writing_ && queue_.empty(); }

 private:
  struct Item {
    Change change;
    Done done;
  };

  void schedule();
  void run_next();
  void finish(Status status);

  Reactor& reactor_;
  Worker& worker_;
  std::string path_;
  VolumeState state_;
  VolumeState next_;
  std::uint32_t start_;
  std::uint64_t loaded_;
  std::deque<Item> queue_;
  bool writing_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace replicad
