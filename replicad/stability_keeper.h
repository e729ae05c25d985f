#pragma once
// Keeps the host's stability counters across restarts: state-dir/stability.json, and the marker
// state-dir/running, which only a clean end removes.

#include <memory>
#include <mutex>
#include <string>

#include "io/worker.h"
#include "replicad/stability.h"

namespace replicad {

class StabilityKeeper {
 public:
  explicit StabilityKeeper(std::string state_dir) : state_dir_(std::move(state_dir)) {}

  /// Reads the counters, counts an unclean restart if the marker is there, and sets the marker,
  /// durably. Blocking. A damaged file starts the counters anew. Errors: the directory cannot be
  /// written.
  [[nodiscard]] Status start();
  /// Any thread.
  void count_link_loss();
  void count_disk_error();
  [[nodiscard]] Stability current() const;
  /// Writes the file if something was counted since the last time. Blocking.
  void save();
  /// Saves and removes the marker. Blocking.
  void end();

 private:
  [[nodiscard]] std::string file() const { return state_dir_ + "/stability.json"; }
  [[nodiscard]] std::string marker() const { return state_dir_ + "/running"; }

  std::string state_dir_;
  mutable std::mutex mutex_;
  Stability counters_;
  bool changed_ = false;
};

}  // namespace replicad
