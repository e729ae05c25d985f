#include "io/image_identity.h"

#include <cerrno>
#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "io/fd.h"

namespace replicad {

namespace {

constexpr std::uint64_t ns_per_second = 1'000'000'000;
constexpr std::size_t shown_bytes_max = 200;  ///< of one attribute

Result<struct statx> look_at(int fd) {
  struct statx info {};
  const unsigned wanted = STATX_TYPE | STATX_INO | STATX_BTIME | STATX_MTIME;
  if (::statx(fd, "", AT_EMPTY_PATH, wanted, &info) != 0) return fail_errno(errno, "statx");
  return info;
}

std::uint64_t ns_of(const statx_timestamp& time) {
  return static_cast<std::uint64_t>(time.tv_sec) * ns_per_second + time.tv_nsec;
}

/// The first line of a file of sysfs; empty if there is none.
std::string attribute(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  while (!line.empty() && line.back() == ' ')
    line.pop_back();
  return line.substr(0, shown_bytes_max);
}

std::string file_identity(int fd, const struct statx& info) {
  std::string identity = fmt::format("inode={}", info.stx_ino);
  if ((info.stx_mask & STATX_BTIME) != 0)
    identity += fmt::format(" born={}", ns_of(info.stx_btime));
  // The kernel writes an int, whatever the request's number says.
  int generation = 0;
  if (::ioctl(fd, FS_IOC_GETVERSION, &generation) == 0)
    identity += fmt::format(" generation={}", static_cast<unsigned>(generation));
  return identity;
}

std::string device_identity(const std::string& directory) {
  // A partition is told by its own number and by its disk.
  const std::string partition = attribute(directory + "/partition");
  if (!partition.empty()) {
    return device_identity(directory + "/..") +
           fmt::format(" partition={} start={}", partition, attribute(directory + "/start"));
  }
  for (const char* name :
       {"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"}) {
    const std::string value = attribute(directory + "/" + name);
    if (!value.empty()) return fmt::format("device {}={}", name, value);
  }
  const std::string file = attribute(directory + "/loop/backing_file");
  if (file.empty()) return "device";
  const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  const auto info = fd.valid() ? look_at(fd.get()) : fail_errno(errno, "open {}", file);
  if (!info) return "device loop";
  return "device loop " + file_identity(fd.get(), *info);
}

}  // namespace

Result<std::string> image_identity(int fd) {
  const auto info = look_at(fd);
  if (!info) return tl::unexpected(info.error());
  if (!S_ISBLK(info->stx_mode)) return file_identity(fd, *info);
  const std::string link =
      fmt::format("/sys/dev/block/{}:{}", info->stx_rdev_major, info->stx_rdev_minor);
  std::error_code ignored;
  const auto directory = std::filesystem::canonical(link, ignored);
  return device_identity(ignored ? link : directory.string());
}

Result<std::optional<std::uint64_t>> modified_ns(int fd) {
  const auto info = look_at(fd);
  if (!info) return tl::unexpected(info.error());
  if (S_ISBLK(info->stx_mode)) return std::nullopt;
  return ns_of(info->stx_mtime);
}

}  // namespace replicad
