#include "replicad/volume_files.h"

#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/log.h"
#include "io/fd.h"
#include "io/file.h"
#include "replicad/host_metrics.h"

namespace replicad {

namespace {

constexpr unsigned volume_directory_mode = 0750;

/// Whether two paths are the same file or the same device.
bool same_image(const struct stat& a, const struct stat& b) {
  if (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode)) return a.st_rdev == b.st_rdev;
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

Status unlink_if_there(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, "remove {}", path);
  return {};
}

std::string image_subdir(const std::string& image_dir, const std::string& volume) {
  return image_dir + "/" + volume;
}

}  // namespace

std::string image_path(const std::string& image_dir,
                       const std::string& volume,
                       const std::string& disk) {
  return image_subdir(image_dir, volume) + "/" + disk + ".raw";
}

Status check_adopted(DiskState& disk, const std::vector<std::string>& used) {
  if (disk.path.empty() || disk.path.front() != '/') {
    return fail(Errc::invalid_argument, "adopt {}: an absolute path is needed", disk.path);
  }
  // The path is kept as it is given: /dev/disk/by-id/... outlives what it points to today. Not
  // opened for reading before its type is known: opening a FIFO or a tape has effects.
  struct stat info {};
  if (::stat(disk.path.c_str(), &info) != 0) return fail_errno(errno, "adopt {}", disk.path);
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return fail(
        Errc::invalid_argument, "adopt {}: neither a regular file nor a block device", disk.path);
  }
  for (const std::string& other : used) {
    struct stat other_info {};
    if (::stat(other.c_str(), &other_info) == 0 && same_image(info, other_info)) {
      return fail(
          Errc::exists, "adopt {}: it is the image {} of a volume already", disk.path, other);
    }
  }
  const Fd file(::open(disk.path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return fail_errno(errno, "adopt {}", disk.path);
  const auto bytes = image_bytes(file.get());
  if (!bytes) return tl::unexpected(bytes.error());
  if (disk.bytes == 0) disk.bytes = *bytes;
  if (disk.bytes % disk_granularity_bytes != 0 || disk.bytes == 0) {
    return with_hint(fail(Errc::invalid_argument,
                          "adopt {}: its size, {} bytes, is not a multiple of {}",
                          disk.path,
                          disk.bytes,
                          disk_granularity_bytes),
                     "enlarge it first, e.g. with truncate");
  }
  const bool fits = S_ISBLK(info.st_mode) ? *bytes >= disk.bytes : *bytes == disk.bytes;
  if (!fits) {
    return fail(
        Errc::invalid_argument, "adopt {}: it has {} bytes, not {}", disk.path, *bytes, disk.bytes);
  }
  return {};
}

Status check_space(const VolumeState& state, const std::string& image_dir) {
  std::uint64_t wanted = 0;
  for (const DiskState& disk : state.disks) {
    if (!disk.adopted) wanted += disk.bytes;
  }
  const auto free = free_bytes(image_dir);
  if (!free) return tl::unexpected(free.error());
  if (wanted > *free) {
    return with_hint(
        fail(Errc::no_space, "the images need {} bytes, {} has {} free", wanted, image_dir, *free),
        "choose another host with `replicactl place`, make room, or give --overcommit");
  }
  return {};
}

Status VolumeFiles::make(const VolumeState& state) {
  made_dir_ = ::access(volume_dir_.c_str(), F_OK) != 0;
  RD_TRY(make_directories(volume_dir_ + "/log", volume_directory_mode));
  RD_TRY(sync_directory(volume_dir_));
  RD_TRY(sync_directory(std::filesystem::path(volume_dir_).parent_path().string()));
  for (const DiskState& disk : state.disks) {
    if (disk.adopted) continue;
    if (image_subdir_.empty()) {
      const std::string directory = image_subdir(image_dir_, state.name);
      RD_TRY(make_directories(directory, volume_directory_mode));
      image_subdir_ = directory;
      RD_TRY(sync_directory(image_dir_));
    }
    RD_TRY(create_image(disk.path, disk.bytes));
    images_.push_back(disk.path);
  }
  return {};
}

VolumeFiles::~VolumeFiles() {
  if (keep_) return;
  std::error_code ignored;
  for (const std::string& image : images_)
    std::filesystem::remove(image, ignored);
  // Only if it is empty: what was there before stays.
  if (!image_subdir_.empty()) ::rmdir(image_subdir_.c_str());
  if (made_dir_) std::filesystem::remove_all(volume_dir_, ignored);
  if (!made_dir_) std::filesystem::remove(volume_dir_ + "/state", ignored);
}

Status forget_activity(const std::string& volume_dir) {
  const std::string path = volume_dir + "/activity";
  if (::unlink(path.c_str()) == 0) return sync_directory(volume_dir);
  if (errno == ENOENT) return {};
  return fail_errno(errno, "remove {}", path);
}

Status remove_volume_files(const VolumeState& state,
                           const std::string& volume_dir,
                           const std::string& image_dir) {
  for (const DiskState& disk : state.disks) {
    if (!disk.adopted) RD_TRY(unlink_if_there(disk.path));
  }
  const std::string images = image_subdir(image_dir, state.name);
  ::rmdir(images.c_str());
  std::error_code error;
  std::filesystem::remove_all(volume_dir + "/log", error);
  if (error) return fail_errno(error.value(), "remove {}/log", volume_dir);
  RD_TRY(unlink_if_there(volume_dir + "/state"));
  std::filesystem::remove_all(volume_dir, error);
  if (error) return fail_errno(error.value(), "remove {}", volume_dir);
  return sync_directory(std::filesystem::path(volume_dir).parent_path().string());
}

}  // namespace replicad
