#include "replicad/offline.h"

#include <filesystem>

#include "io/file.h"
#include "replicad/replica_images.h"
#include "replicad/replica_log_files.h"
#include "replicad/replica_volume.h"
#include "replicad/state_dir.h"
#include "replicad/state_store.h"

namespace replicad {

namespace {

constexpr Duration progress_interval = std::chrono::milliseconds(5);
constexpr unsigned restored_directory_mode = 0750;

/// A volume of this host, and nobody else at it.
struct OfflineVolume {
  Fd lock;
  std::string directory;
  VolumeState state;

  [[nodiscard]] std::string log_dir() const { return directory + "/log"; }
};

Status check_volume_name(const std::string& name) {
  if (is_valid_name(name)) return {};
  return fail(Errc::invalid_argument, "\"{}\" is not a valid volume name", name);
}

Result<OfflineVolume> open_offline(const Options& options, const std::string& name) {
  RD_TRY(check_volume_name(name));
  OfflineVolume volume;
  volume.directory = options.state_dir + "/volumes/" + name;
  auto lock = lock_state_dir(options.state_dir);
  if (!lock) return tl::unexpected(lock.error());
  volume.lock = std::move(*lock);
  auto state = StateStore::load(volume.directory + "/state");
  if (!state) return tl::unexpected(state.error());
  volume.state = std::move(*state);
  for (const MemberState& member : volume.state.members) {
    if (member.host == options.host) return volume;
  }
  return with_hint(fail(Errc::refused, "host {} is not a member of volume {}", options.host, name),
                   "say which member this host is, with --host or the daemon's --config");
}

std::string point_text(const HistoryPoint& point) {
  return fmt::format(
      "sequence {}, epoch {}, digest {}", point.sequence, point.epoch.number, to_hex(point.digest));
}

std::string disks_text(const VolumeState& state) {
  std::string text;
  for (const DiskState& disk : state.disks)
    text += fmt::format("disk: {}, {} bytes, {}\n", disk.name, disk.bytes, disk.path);
  return text;
}

/// The plugin writes the primary's images itself: there is no log to bring in.
std::string primary_text(const VolumeState& state) {
  std::string text = "role: primary\n";
  if (state.clean) {
    text += fmt::format("position: {}\n", point_text(state.history));
  } else {
    text += fmt::format(
        "position: unknown, at most sequence {}: the export did not end cleanly; the images hold "
        "everything that it answered, and possibly writes that it did not\n",
        state.sequence_reserved);
  }
  if (state.transfer) {
    text += fmt::format(
        "note: a switchover to {} was not settled; if {} took over, its copy is newer\n",
        state.transfer->to,
        state.transfer->to);
  }
  return text;
}

std::string replica_text(const VolumeState& state,
                         const RecoveredLog& log,
                         const HistoryPoint& position,
                         bool dry_run) {
  std::string text = fmt::format("role: replica of {}\n", state.primary);
  if (!log.cut.empty()) text += fmt::format("log: it ends at {}\n", log.cut);
  const char* went = dry_run ? "would go" : "went";
  if (state.stage_bytes)
    text += fmt::format("resync: {} bytes {} into the images\n", *state.stage_bytes, went);
  text += fmt::format("log: {} bytes {} into the images\n", log.backlog_bytes, went);
  return text + fmt::format("position: {}\n", point_text(position));
}

Result<RecoveredLog> look_at_log(const OfflineVolume& volume) {
  return recover_log({.directory = volume.log_dir(),
                      .volume_uuid = volume.state.uuid,
                      .checkpoint = volume.state.checkpoint,
                      .look_only = true});
}

/// The daemon's replica on a reactor of its own, without a primary, until all is applied.
class LogBringer {
 public:
  LogBringer(std::unique_ptr<Reactor> reactor, const OfflineVolume& volume)
      : reactor_(std::move(reactor)),
        worker_(Worker::create()),
        store_(*reactor_, *worker_, volume.directory + "/state", volume.state) {}

  Status run(const std::string& host, const std::string& log_dir);
  [[nodiscard]] HistoryPoint checkpoint() const { return store_.state().checkpoint; }

 private:
  void look();
  void end();

  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Worker> worker_;
  StateStore store_;
  std::unique_ptr<ReplicaVolume> replica_;
  Status result_;
};

Status LogBringer::run(const std::string& host, const std::string& log_dir) {
  ReplicaVolume::Hooks hooks;
  hooks.state = [this]() -> const VolumeState& { return store_.state(); };
  hooks.update_state = [this](std::function<void(VolumeState&)> change,
                              std::function<void(Status)> done) {
    store_.update(
        [change = std::move(change)](VolumeState& state) -> Status {
          change(state);
          return {};
        },
        std::move(done));
  };
  auto replica = ReplicaVolume::open(*reactor_, host, log_dir, std::move(hooks));
  if (!replica) return tl::unexpected(replica.error());
  replica_ = std::move(*replica);
  reactor_->post([this] { look(); });
  reactor_->run();
  return result_;
}

void LogBringer::look() {
  const ReplicaStatus status = replica_->status();
  if (status.state == "failed") {
    result_ = tl::unexpected(status.error.value_or(Error{}));
    end();
  } else if (!status.unstaging && status.marks.applied == status.logged.sequence) {
    end();
  } else {
    reactor_->add_timer(progress_interval, [this] { look(); });
  }
}

void LogBringer::end() {
  replica_->shutdown(false, [this] {
    // The replica goes before the reactor ends, and not in a function of its own.
    reactor_->post([this] {
      replica_.reset();
      reactor_->post([this] { reactor_->stop(); });
    });
  });
}

Status bring_log_in(const OfflineVolume& volume,
                    const std::string& host,
                    const HistoryPoint& expected) {
  auto reactor = Reactor::create();
  if (!reactor) return tl::unexpected(reactor.error());
  LogBringer bringer(std::move(*reactor), volume);
  RD_TRY(bringer.run(host, volume.log_dir()));
  if (bringer.checkpoint() == expected) return {};
  return with_hint(fail(Errc::io_error,
                        "the images of volume {} hold everything up to sequence {}, but images or "
                        "state could not be brought to stable storage at sequence {}",
                        volume.state.name,
                        bringer.checkpoint().sequence,
                        expected.sequence),
                   "the messages above name the file; nothing is lost, try again");
}

}  // namespace

Result<std::string> recover_volume(const Options& options, const std::string& name, bool dry_run) {
  auto volume = open_offline(options, name);
  if (!volume) return tl::unexpected(volume.error());
  const VolumeState& state = volume->state;
  const std::string head =
      fmt::format("volume: {}, uuid {}, host {}\n", state.name, state.uuid, options.host);
  // Also a look wants to be undisturbed: what another program writes is not what is told.
  {
    auto images = ImageSet::open(state.disks);
    if (!images) return tl::unexpected(images.error());
  }
  if (state.primary == options.host) return head + primary_text(state) + disks_text(state);
  if (!state.consistent) {
    return with_hint(
        fail(Errc::inconsistent,
             "the images of volume {} on host {} are incomplete: a copy to them was under way",
             name,
             options.host),
        "use another member's copy; nothing was changed here");
  }
  const auto log = look_at_log(*volume);
  if (!log) return tl::unexpected(log.error());
  if (!dry_run) RD_TRY(bring_log_in(*volume, options.host, log->logged));
  return head + replica_text(state, *log, log->logged, dry_run) + disks_text(state);
}

Result<std::string> dump_volume_state(const Options& options, const std::string& name) {
  const auto volume = open_offline(options, name);
  if (!volume) return tl::unexpected(volume.error());
  return encode_volume_state_body(volume->state);
}

namespace {

VolumeState new_incarnation(const VolumeState& old, const Options& options) {
  VolumeState state;
  state.name = old.name;
  state.uuid = random_uuid();
  state.disks = old.disks;
  // What the text knows of the images may be long ago: they count as they are.
  for (DiskState& disk : state.disks)
    disk.mark = {};
  state.settings = old.settings;
  MemberState self{options.host, options.listen, options.control};
  for (const MemberState& member : old.members) {
    if (member.host == options.host) self = member;
  }
  state.members = {self};
  state.primary = options.host;
  state.in_sync = {options.host};
  state.vote = founding_state(first_record(state.primary, state.in_sync, state.members));
  return state;
}

Status check_restorable(const VolumeState& old,
                        const std::string& directory,
                        const Options& options) {
  std::error_code ignored;
  if (std::filesystem::exists(directory + "/state", ignored)) {
    return with_hint(fail(Errc::exists, "{} is there already", directory + "/state"),
                     "move the folder away if it is really not the volume's state any more");
  }
  if (std::filesystem::exists(directory + "/log", ignored) &&
      !std::filesystem::is_empty(directory + "/log", ignored)) {
    return with_hint(
        fail(Errc::exists, "{}/log may hold writes that the images lack", directory),
        "with the state file it belongs to, `replicad recover` brings them in; or move it away");
  }
  if (!old.consistent && old.primary != options.host) {
    return with_hint(fail(Errc::inconsistent, "the text says that these images are incomplete"),
                     "use another member's copy");
  }
  if (old.stage_bytes) {
    return with_hint(
        fail(Errc::inconsistent,
             "the text says that a resync was not yet brought into these images"),
        "with the state file and the log folder it is of, `replicad recover` brings it in");
  }
  return {};
}

}  // namespace

Result<std::string> restore_volume_state(const Options& options,
                                         const std::string& name,
                                         const std::string& text) {
  RD_TRY(check_volume_name(name));
  const auto old = decode_volume_state_body(text);
  if (!old) return tl::unexpected(old.error());
  if (old->name != name) {
    return fail(Errc::invalid_argument, "the text is of volume {}, not of {}", old->name, name);
  }
  const std::string volumes = options.state_dir + "/volumes";
  const std::string directory = volumes + "/" + name;
  RD_TRY(make_directories(volumes, restored_directory_mode));
  const auto lock = lock_state_dir(options.state_dir);
  if (!lock) return tl::unexpected(lock.error());
  RD_TRY(check_restorable(*old, directory, options));
  const auto images = ImageSet::open(old->disks);
  if (!images) return tl::unexpected(images.error());
  const VolumeState state = new_incarnation(*old, options);
  RD_TRY(check_volume_state(state));
  RD_TRY(make_directories(directory + "/log", restored_directory_mode));
  RD_TRY(write_file_durably(directory + "/state", encode_volume_state(state)));
  RD_TRY(sync_directory(volumes));
  return fmt::format("volume: {}, uuid {}, host {}\n", state.name, state.uuid, options.host) +
         disks_text(state);
}

}  // namespace replicad
