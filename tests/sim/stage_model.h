#pragma once
// The stage of a copy as replicad has it (replicad/resync_stage), on simulated disks. The scan of its bytes is the
// real one.

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/store/resync_stage.h"
#include "tests/sim/log_model.h"

namespace replicad::sim {

class StageModel : public std::enable_shared_from_this<StageModel> {
 public:
  struct Hooks {
    std::function<void(Sequence)> on_written;
    std::function<void(const Error&)> on_error;
  };

  StageModel(World& world, Machine& machine, const Options& options, Life life, Hooks hooks);

  void open();
  void append(std::vector<std::byte> bytes, Sequence sequence);
  void sync(std::function<void(std::uint64_t bytes)> done);
  void stop() { stopped_ = true; }

 private:
  struct Queued {
    std::vector<std::byte> bytes;
    Sequence sequence;
  };

  void pump();
  void write_all();
  void sync_file();
  void sync_names();
  void fail(int sys_errno);

  World& world_;
  Machine& machine_;
  Life life_;
  Hooks hooks_;
  std::shared_ptr<File> file_;
  std::deque<Queued> queue_;
  std::uint64_t end_bytes_ = stage_header_bytes;
  std::function<void(std::uint64_t)> sync_done_;
  bool opened_ = false;
  bool busy_ = false;
  bool stopped_ = false;
  bool failed_ = false;
};

/// Removes its name; what of that a loss of power takes back does no harm.
void remove_stage(Machine& machine);

}  // namespace replicad::sim
