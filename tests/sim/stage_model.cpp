#include "tests/sim/stage_model.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "tests/sim/oracle.h"

namespace replicad::sim {

namespace {

// A stage that the writes of a long resync outgrow is part of the world.
constexpr std::uint64_t stage_images_max = 3;

const std::string stage_name(stage_file_name);

std::optional<StageHeader> read_header(const File& file) {
  const auto header =
      decode_stage_header(file.bytes().subspan(0, stage_header_bytes).first<stage_header_bytes>());
  return header ? std::optional(*header) : std::nullopt;
}

}  // namespace

std::optional<Epoch> find_parked_stage(const Machine& machine, const HistoryPoint& standing) {
  const auto file = machine.log.find(stage_name);
  const auto header = file ? read_header(*file) : std::nullopt;
  if (!header || !may_go_on(*header, volume_uuid, standing, machine.boot_id())) return std::nullopt;
  return header->epoch;
}

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

void StageModel::open(const StageHeader& header) {
  header_ = header;
  create(header);
}

void StageModel::create(const StageHeader& header) {
  std::array<std::byte, stage_header_bytes> bytes{};
  encode_stage_header(header, bytes);
  busy_ = true;
  machine_.io(
      [self = shared_from_this(), &machine = machine_, file = file_, bytes] {
        if (self->stopped_) return;
        if (machine.log.find(stage_name)) machine.log.remove(stage_name);
        machine.log.create(stage_name, file);
        file->write(0, bytes);
      },
      life_.guard([self = shared_from_this()](int error) { self->on_opened(error); }),
      true);
}

void StageModel::go_on(const StageHeader& header) {
  if (stopped_) return;
  header_ = header;
  const auto file = machine_.log.find(stage_name);
  const auto found = file ? read_header(*file) : std::nullopt;
  if (!found || *found != header) return create(header);
  busy_ = true;
  machine_.io([] {}, life_.guard([self = shared_from_this(), file](int error) {
    if (error == 0) {
      self->file_ = file;
      const StageScan scan = scan_stage(file->bytes().subspan(stage_header_bytes));
      self->found_bytes_ = self->end_bytes_ = stage_header_bytes + scan.valid_bytes;
      if (!scan.frames.empty()) self->world_.reached("a stage gone on with");
    }
    self->on_opened(error);
  }));
}

void StageModel::on_opened(int error) {
  busy_ = false;
  opened_ = true;
  if (error != 0) {
    fail(error);
  } else {
    tell_known();
    pump();
  }
  end_operation();
}

void StageModel::when_known(std::function<void()> function) {
  if (opened_ || stopped_ || failed_) {
    function();
  } else {
    when_known_.push_back(std::move(function));
  }
}

void StageModel::tell_known() {
  for (const auto& function : std::exchange(when_known_, {}))
    function();
}

void StageModel::lay_over(Images& images) const {
  if (found_bytes_ == 0) return;
  const auto bytes = file_->bytes().subspan(stage_header_bytes, found_bytes_ - stage_header_bytes);
  StageIndex index(std::vector<std::uint64_t>(images.size(), images[0].size() * block_bytes));
  for (const StagedFrame& frame : scan_stage(bytes).frames) {
    const std::size_t payload_at = stage_header_bytes + frame.offset_bytes + frame_header_bytes;
    world_.require(index.add(frame.header, payload_at), "P8: a staged frame has no place");
  }
  for (std::size_t disk = 0; disk < images.size(); ++disk) {
    const Range all{static_cast<DiskIndex>(disk), 0, images[disk].size() * block_bytes};
    for (const StageIndex::Piece& piece : index.pieces(all)) {
      Blocks stamps(piece.range.length_bytes / block_bytes, 0);
      if (piece.file_offset) {
        stamps = stamps_of(file_->bytes().subspan(*piece.file_offset, piece.range.length_bytes));
      }
      apply_stamps(images, piece.range, stamps);
    }
  }
}

void StageModel::stop(std::function<void()> done) {
  stopped_ = true;
  stop_done_ = std::move(done);
  tell_known();
  end_operation();
}

void StageModel::end_operation() {
  if (busy_ || !stopped_ || !stop_done_) return;
  machine_.after(Duration{}, life_.guard(std::exchange(stop_done_, nullptr)));
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
                if (error != 0) {
                  self->fail(error);
                } else {
                  if (through > 0 && !self->stopped_) self->hooks_.on_written(through);
                  self->pump();
                }
                self->end_operation();
              }),
              true);
}

/// Whoever finds it after a sync that failed does not go on with it.
void StageModel::sync_file() {
  busy_ = true;
  StageHeader header = header_;
  header.epoch = {};
  std::array<std::byte, stage_header_bytes> bytes{};
  encode_stage_header(header, bytes);
  file_->write(0, bytes);
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
  tell_known();
}

}  // namespace replicad::sim
