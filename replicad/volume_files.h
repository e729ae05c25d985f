#pragma once
// The files of one volume on this host: made for POST /v1/volumes, removed for DELETE. Blocking;
// any thread but the reactor's.

#include <string>
#include <vector>

#include "core/store/volume_state.h"

namespace replicad {

/// Where a new image of a volume goes.
[[nodiscard]] std::string image_path(const std::string& image_dir,
                                     const std::string& volume,
                                     const std::string& disk);

/// Checks a path that is to become an image in place: a regular file or block device that no image
/// of `used` is. `disk.bytes` 0 takes the size of what is there.
/// Errors: Errc::invalid_argument, Errc::not_found, Errc::exists.
[[nodiscard]] Status check_adopted(DiskState& disk, const std::vector<std::string>& used);

/// Free space for the new images of `state` below `image_dir`. Errors: Errc::no_space with both
/// figures.
[[nodiscard]] Status check_space(const VolumeState& state, const std::string& image_dir);

/// Undoes what was made of a volume unless keep() is called.
class VolumeFiles {
 public:
  VolumeFiles(std::string volume_dir, std::string image_dir)
      : volume_dir_(std::move(volume_dir)), image_dir_(std::move(image_dir)) {}
  VolumeFiles(const VolumeFiles&) = delete;
  VolumeFiles& operator=(const VolumeFiles&) = delete;
  ~VolumeFiles();

  /// Makes the directories and the images that are not adopted, durably. Errors: Errc::exists,
  /// Errc::no_space, others.
  [[nodiscard]] Status make(const VolumeState& state);
  void keep() { keep_ = true; }

 private:
  std::string volume_dir_;
  std::string image_dir_;
  std::string image_subdir_;
  std::vector<std::string> images_;
  bool made_dir_ = false;
  bool keep_ = false;
};

/// Removes the activity file, durably: what this host knew of its members while it was the primary says nothing of
/// images that have changed otherwise.
[[nodiscard]] Status forget_activity(const std::string& volume_dir);

/// Removes images (adopted ones stay), log and state, in this order, so that what an interruption
/// leaves is still listed and can be deleted again. Files that are missing are no error.
[[nodiscard]] Status remove_volume_files(const VolumeState& state,
                                         const std::string& volume_dir,
                                         const std::string& image_dir);

}  // namespace replicad
