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

  void open(const StageHeader& header);
  void go_on(const StageHeader& header);
  void when_known(std::function<void()> function);
  /// Lays what go_on() found over `images`.
  void lay_over(Images& images) const;
  void append(std::vector<std::byte> bytes, Sequence sequence);
  void sync(std::function<void(std::uint64_t bytes)> done);
  /// `done` runs when no write is in flight any more.
  void stop(std::function<void()> done);

 private:
  struct Queued {
    std::vector<std::byte> bytes;
    Sequence sequence;
  };

  void create(const StageHeader& header);
  void on_opened(int error);
  void end_operation();
  void tell_known();
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
  StageHeader header_;
  std::deque<Queued> queue_;
  std::uint64_t found_bytes_ = 0;  ///< what go_on() found, the header included
  std::vector<std::function<void()>> when_known_;
  std::function<void()> stop_done_;
  std::uint64_t end_bytes_ = stage_header_bytes;
  std::function<void(std::uint64_t)> sync_done_;
  bool opened_ = false;
  bool busy_ = false;
  bool stopped_ = false;
  bool failed_ = false;
};

/// The term of the stage there, if a replica that stands at `standing` may go on with it.
std::optional<Epoch> find_parked_stage(const Machine& machine, const HistoryPoint& standing);

/// Removes its name; what of that a loss of power takes back does no harm.
void remove_stage(Machine& machine);

}  // namespace replicad::sim
