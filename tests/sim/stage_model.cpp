#include "tests/sim/stage_model.h"

#include <algorithm>
#include <array>
#include <cerrno>

namespace replicad::sim {

namespace {

// A stage that the writes of a long resync outgrow is part of the world.
constexpr std::uint64_t stage_images_max = 3;

const std::string stage_name(stage_file_name);

}  // namespace

void remove_stage(Machine& machine) {
  if (machine.log.find(stage_name)) machine.log.remove(stage_name);
}

StageModel::StageModel(
    World& world, Machine& machine, const Options& options, Life life, Hooks hooks)
    : world_(world),
      machine_(machine),
      life_(std::move(life)),
      hooks_(std::move(hooks)),
      file_(std::make_shared<File>(stage_header_bytes + stage_images_max * options.disks *
                                                            options.blocks *
                                                            (block_bytes + frame_header_bytes))) {}

void StageModel::open() {
  std::array<std::byte, stage_header_bytes> header{};
  encode_stage_header(volume_uuid, header);
  busy_ = true;
  machine_.io(
      [&machine = machine_, file = file_, header] {
        machine.log.create(stage_name, file);
        file->write(0, header);
      },
      life_.guard([self = shared_from_this()](int error) {
        self->busy_ = false;
        self->opened_ = true;
        if (error != 0) return self->fail(error);
        self->pump();
      }),
      true);
}

void StageModel::append(std::vector<std::byte> bytes, Sequence sequence) {
  if (stopped_ || failed_) return;
  queue_.push_back({std::move(bytes), sequence});
  pump();
}

void StageModel::sync(std::function<void(std::uint64_t)> done) {
  sync_done_ = std::move(done);
  pump();
}

void StageModel::pump() {
  if (busy_ || !opened_ || stopped_ || failed_) return;
  if (!queue_.empty()) {
    write_all();
  } else if (sync_done_) {
    sync_file();
  }
}

void StageModel::write_all() {
  std::vector<std::byte> bytes;
  Sequence through = 0;
  for (const Queued& frame : queue_) {
    bytes.insert(bytes.end(), frame.bytes.begin(), frame.bytes.end());
    through = std::max(through, frame.sequence);
  }
  queue_.clear();
  if (end_bytes_ + bytes.size() > file_->size()) {
    world_.reached("a stage outgrows its space");
    return fail(ENOSPC);
  }
  busy_ = true;
  const std::uint64_t offset = end_bytes_;
  end_bytes_ += bytes.size();
  machine_.io([file = file_, offset, bytes = std::move(bytes)] { file->write(offset, bytes); },
              life_.guard([self = shared_from_this(), through](int error) {
                self->busy_ = false;
                if (error != 0) return self->fail(error);
                if (through > 0 && !self->stopped_) self->hooks_.on_written(through);
                self->pump();
              }),
              true);
}

void StageModel::sync_file() {
  busy_ = true;
  const std::uint64_t begun = file_->begin_sync();
  machine_.io([file = file_, begun] { file->end_sync(begun); },
              life_.guard([self = shared_from_this(), begun](int error) {
                if (error == 0) return self->sync_names();
                self->file_->lose_sync(begun);
                self->fail(error);
              }));
}

void StageModel::sync_names() {
  const std::size_t begun = machine_.log.begin_sync();
  machine_.io([&machine = machine_, begun] { machine.log.end_sync(begun); },
              life_.guard([self = shared_from_this()](int error) {
                if (error != 0) return self->fail(error);
                if (!self->stopped_ && !self->failed_) self->sync_done_(self->end_bytes_);
              }));
}

void StageModel::fail(int sys_errno) {
  if (failed_) return;
  failed_ = true;
  if (!stopped_) hooks_.on_error(errno_to_error(sys_errno, "write the stage"));
}

}  // namespace replicad::sim
