#include "nbd-plugin/write_back.h"

#include <algorithm>
#include <cerrno>

#include <unistd.h>

#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/store/failed_sync.h"
#include "io/file.h"

namespace replicad {

namespace {

constexpr std::uint64_t write_back_bytes = 1 * mib;

Status write_range_again(const DiskImage& image, const Range& range) {
  std::vector<std::byte> bytes;
  std::uint64_t at = range.offset_bytes;
  while (at < range.end_bytes()) {
    const DiskImage::Extent extent = image.extent_at(at);
    const std::uint64_t length =
        std::min({extent.length_bytes, range.end_bytes() - at, write_back_bytes});
    if (!extent.is_hole) {
      bytes.resize(length);
      int error = image.read(bytes, at);
      if (error == 0) error = image.write(bytes, at, false);
      if (error != 0) {
        return fail_errno(error, "write {} bytes at {} of {} again", length, at, image.path());
      }
    }
    at += length;
  }
  return {};
}

}  // namespace

std::string failed_sync_mark(const std::string& volume_directory) {
  return volume_directory + "/" + failed_sync_name;
}

Status write_back_again(const std::string& mark_path,
                        const std::vector<DiskImage>& images,
                        const std::vector<Range>& ranges) {
  if (::access(mark_path.c_str(), F_OK) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(errno, "look at {}", mark_path);
  }
  std::uint64_t bytes = 0;
  for (const Range& range : ranges) {
    RD_TRY(write_range_again(images[range.disk], range));
    bytes += range.length_bytes;
  }
  for (const DiskImage& image : images) {
    if (const int error = image.sync(); error != 0) {
      return with_hint(fail_errno(error, "fdatasync of {}, which had failed before", image.path()),
                       "repair the disk, or let another member take over");
    }
  }
  log(LogLevel::warn, "written_back_again", "bytes={}", bytes);
  if (::unlink(mark_path.c_str()) != 0) return fail_errno(errno, "remove {}", mark_path);
  return sync_directory(mark_path.substr(0, mark_path.rfind('/')));
}

}  // namespace replicad
