#include "nbd-plugin/disk_image.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io/file.h"

namespace replicad {

namespace {

/// 0 or errno; with RWF_DSYNC it is on stable storage on return.
int write_cached(int fd, std::span<const std::byte> from, std::uint64_t offset, int flags) {
  while (!from.empty()) {
    const iovec vector{const_cast<std::byte*>(from.data()),
                       std::min(from.size(), image_write_bytes_max)};
    const ssize_t count = ::pwritev2(fd, &vector, 1, static_cast<off_t>(offset), flags);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    if (count == 0) return EIO;
    from = from.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
  return 0;
}

}  // namespace

Result<DiskImage> DiskImage::open(const DiskGrant& grant, const std::string& mark_path) {
  auto fd = open_image_locked(grant.path, grant.bytes);
  if (!fd) return tl::unexpected(std::move(fd).error());
  struct stat status {};
  if (::fstat(fd->get(), &status) != 0) return fail_errno(errno, "stat {}", grant.path);
  // Beyond the end nothing changes: this only asks whether the file system can do it.
  const bool fast_zero =
      S_ISREG(status.st_mode) && ::fallocate(fd->get(),
                                             FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                             static_cast<off_t>(grant.bytes),
                                             4096) == 0;
  auto durable = DurableFds::open(fd->get(), grant.path, mark_path);
  if (!durable) return tl::unexpected(std::move(durable).error());
  return DiskImage(grant, std::move(*fd), fast_zero, std::move(*durable));
}

Result<DiskImage> DiskImage::open_to_read(const DiskGrant& grant) {
  Fd fd(::open(grant.path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail_errno(errno, "open {}", grant.path);
  return DiskImage(grant, std::move(fd), true, nullptr);
}

int DiskImage::read(std::span<std::byte> to, std::uint64_t offset) const {
  while (!to.empty()) {
    const ssize_t count = ::pread(fd_.get(), to.data(), to.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    if (count == 0) return EIO;  // shorter than its size says: somebody truncated it
    to = to.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
  return 0;
}

int DiskImage::write(std::span<const std::byte> from, std::uint64_t offset, bool durable) const {
  if (!durable) return write_cached(fd_.get(), from, offset, 0);
  return durable_->run(true, [&](int fd) { return write_cached(fd, from, offset, RWF_DSYNC); });
}

int DiskImage::zero(std::uint64_t offset, std::uint64_t length, bool may_punch) const {
  Status status = zero_range(fd_.get(), offset, length, may_punch);
  // Keeping the space allocated is a wish, reading as zeroes is the promise.
  if (!status && status.error().code == Errc::no_space && !may_punch) {
    status = zero_range(fd_.get(), offset, length, true);
  }
  if (status) return 0;
  return status.error().sys_errno != 0 ? status.error().sys_errno : EIO;
}

int DiskImage::sync() const {
  return durable_->run(false, [](int fd) { return ::fdatasync(fd) == 0 ? 0 : errno; });
}

int DiskImage::prefetch(std::uint64_t offset, std::uint64_t length) const {
  return ::posix_fadvise(
      fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_WILLNEED);
}

DiskImage::Extent DiskImage::extent_at(std::uint64_t offset) const {
  const std::uint64_t rest = bytes_ - offset;
  const off_t data = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0) {
    // ENXIO: only a hole follows. Anything else: no such knowledge here.
    return Extent{rest, errno == ENXIO};
  }
  const auto data_offset = static_cast<std::uint64_t>(data);
  if (data_offset > offset) return Extent{std::min(data_offset - offset, rest), true};
  const off_t hole = ::lseek(fd_.get(), data, SEEK_HOLE);
  if (hole < 0 || static_cast<std::uint64_t>(hole) <= offset) return Extent{rest, false};
  return Extent{std::min(static_cast<std::uint64_t>(hole) - offset, rest), false};
}

}  // namespace replicad
