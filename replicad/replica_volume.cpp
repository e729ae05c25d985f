#include "replicad/replica_volume.h"

#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/store/failed_sync.h"
#include "io/file.h"
#include "replicad/image_check.h"
#include "replicad/replica_runtime.h"
#include "replicad/volume_files.h"

namespace replicad {

namespace {

constexpr unsigned log_directory_mode = 0750;

class Door final : public ReplicaVolume {
 public:
  explicit Door(std::shared_ptr<ReplicaRuntime> runtime) : runtime_(std::move(runtime)) {}

  void attach(std::shared_ptr<FrameConnection> connection, const AttachMessage& message) override {
    runtime_->attach(std::move(connection), message);
  }
  [[nodiscard]] ReplicaStatus status() const override { return runtime_->status(); }
  [[nodiscard]] std::vector<int> image_fds() const override { return runtime_->image_fds(); }
  void sync_soon() override { runtime_->sync_soon(); }
  void prepare_promotion(const Epoch& epoch,
                         const std::optional<HistoryPoint>& point,
                         std::function<void(Status)> done) override {
    runtime_->prepare_promotion(epoch, point, std::move(done));
  }
  void shutdown(bool discard_log, std::function<void()> done) override {
    runtime_->shutdown(discard_log, std::move(done));
  }

 private:
  std::shared_ptr<ReplicaRuntime> runtime_;
};

}  // namespace

namespace {

/// A sync failed while this host was the primary: what is compared from here on is what the disk has.
Status distrust_cache(const std::string& log_dir, const ImageSet& images) {
  const std::string directory = log_dir.substr(0, log_dir.rfind('/'));
  const std::string mark = directory + "/" + failed_sync_name;
  if (::access(mark.c_str(), F_OK) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(errno, "look at {}", mark);
  }
  RD_TRY(images.drop_cache());
  log(LogLevel::warn, "cache_dropped", "mark={}", mark);
  if (::unlink(mark.c_str()) != 0) return fail_errno(errno, "remove {}", mark);
  return sync_directory(directory);
}

/// What a replica has told in `sync` is in its log file, which the end of its process does not touch: it is short only
/// when the host went down, or the disk failed, since. The marker says that neither happened. It need not be durable:
/// after a loss of power the boot id is another one.
bool is_kept(const VolumeState& state, const std::string& marker, const std::string& boot) {
  const auto found = read_file(marker, 64);
  const bool kept = state.settings.mode == Mode::sync && found && *found == boot;
  if (!kept) ::unlink(marker.c_str());
  return kept;
}

}  // namespace

Result<std::unique_ptr<ReplicaVolume>> ReplicaVolume::open(Reactor& reactor,
                                                           const std::string& host,
                                                           const std::string& log_dir,
                                                           Hooks hooks) {
  const VolumeState& state = hooks.state();
  RD_TRY(make_directories(log_dir, log_directory_mode));
  auto images = ImageSet::open(state.disks);
  if (!images) return tl::unexpected(images.error());
  if (hooks.on_locked) RD_TRY(hooks.on_locked());
  RD_TRY(distrust_cache(log_dir, **images));
  std::vector<std::uint64_t> disk_bytes;
  for (const DiskState& disk : state.disks)
    disk_bytes.push_back(disk.bytes);
  const std::string volume_dir = log_dir.substr(0, log_dir.rfind('/'));
  RD_TRY(convert_activity(volume_dir, state.uuid, disk_bytes, state.checkpoint));
  auto boot = boot_id();
  if (!boot) return tl::unexpected(boot.error());
  auto recovered = ReplicaRuntime::recover(log_dir, state, host, *boot, **images);
  if (!recovered) {
    const auto error = tl::unexpected(recovered.error());
    if (recovered.error().code != Errc::corrupt) return error;
    return with_hint(
        error,
        "the log's files can be put back from a backup; else remove this host's part of the "
        "volume and add it anew: a full copy fills it");
  }
  RD_TRY(check_images(state, host, (*images)->fds(), recovered->touched));
  const std::string marker = log_dir.substr(0, log_dir.rfind('/')) + "/kept";
  const bool kept = is_kept(state, marker, *boot);
  auto runtime =
      std::make_shared<ReplicaRuntime>(reactor,
                                       ReplicaRuntime::Setup{.host = host,
                                                             .log_dir = log_dir,
                                                             .boot_id = std::move(*boot),
                                                             .kept_marker = marker,
                                                             .kept = kept,
                                                             .images = std::move(*images),
                                                             .hooks = std::move(hooks)});
  runtime->begin(std::move(*recovered));
  return std::make_unique<Door>(std::move(runtime));
}

}  // namespace replicad
