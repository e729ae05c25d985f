#include "io/file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/sectors.h"

namespace replicad {

namespace {

// Boundaries of what fallocate() of a block device takes: a multiple of every logical block size in use.
constexpr std::uint64_t zero_alignment_bytes = 4096;
constexpr std::uint64_t fallocate_bytes_max = 1 * gib;
// What reads past the page cache take: likewise.
constexpr std::size_t direct_alignment_bytes = 4096;
constexpr std::uint64_t secure_window_bytes = 4 * mib;

Result<struct stat> stat_of(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return fail_errno(errno, "fstat");
  return status;
}

/// Directory part of `path`, "." if it has none.
std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Error in_use(const std::string& path, int sys_errno) {
  return {Errc::busy,
          sys_errno,
          fmt::format("image {} is in use by another program", path),
          "stop the program that has it open (lsof names it)"};
}

Result<Fd> open_image(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return fail_errno(errno, "open image {}", path);
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(Errc::invalid_argument, "image {} is neither a file nor a block device", path);
  }
  // On a block device O_EXCL keeps mounts, LVM and md off, and is refused while one of them has it.
  const int exclusive = S_ISBLK(status.st_mode) ? O_EXCL : 0;
  Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK | exclusive));
  if (!fd.valid()) {
    if (errno == EBUSY || errno == ETXTBSY) return tl::unexpected(in_use(path, errno));
    return fail_errno(errno, "open image {}", path);
  }
  // O_NONBLOCK only kept the open from waiting on a FIFO that took the name in between.
  if (::fcntl(fd.get(), F_SETFL, 0) != 0) return fail_errno(errno, "open image {}", path);
  return fd;
}

Status lock_whole_file(int fd, const std::string& path) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return {};
  if (errno == EAGAIN || errno == EACCES) return tl::unexpected(in_use(path, errno));
  return fail_errno(errno, "lock image {}", path);
}

Status check_image_bytes(int fd, const std::string& path, std::uint64_t bytes) {
  const auto actual = image_bytes(fd);
  if (!actual) return tl::unexpected(actual.error());
  const auto status = stat_of(fd);
  if (!status) return tl::unexpected(status.error());
  const bool larger_device = S_ISBLK(status->st_mode) && *actual > bytes;
  if (*actual == bytes || larger_device) return {};
  return fail(
      Errc::invalid_argument, "image {} has {} bytes, the volume's disk {}", path, *actual, bytes);
}

int fallocate_retrying(int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  while (length > 0) {
    const std::uint64_t step = std::min(length, fallocate_bytes_max);
    int result = 0;
    do {
      result = ::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(step));
    } while (result != 0 && errno == EINTR);
    if (result != 0) return errno;
    offset += step;
    length -= step;
  }
  return 0;
}

bool not_possible_here(int sys_errno) {
  return sys_errno == EOPNOTSUPP || sys_errno == EINVAL || sys_errno == ENOSYS ||
         sys_errno == ENODEV;
}

Status write_zeroes(int fd, std::uint64_t offset, std::uint64_t length) {
  alignas(4096) static constexpr std::array<std::byte, 128 * kib> zeroes{};
  while (length > 0) {
    const std::size_t step = std::min<std::uint64_t>(length, zeroes.size());
    RD_TRY(write_all_at(fd, std::span(zeroes).first(step), offset));
    offset += step;
    length -= step;
  }
  return {};
}

/// The modes to try, best first.
std::span<const int> zero_modes(bool may_punch) {
  static constexpr std::array<int, 2> modes{FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                            FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
  return may_punch ? std::span<const int>(modes) : std::span<const int>(modes).last(1);
}

/// 0, or the errno of the last attempt; anything but not_possible_here() ends the attempts.
int zero_by_fallocate(int fd, std::uint64_t offset, std::uint64_t length, bool may_punch) {
  int result = EOPNOTSUPP;
  for (const int mode : zero_modes(may_punch)) {
    result = fallocate_retrying(fd, mode, offset, length);
    if (!not_possible_here(result)) break;
  }
  return result;
}

Status write_temporary(const std::string& path, std::string_view content) {
  const Fd fd(::open(path.c_str(),
                     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                     S_IRUSR | S_IWUSR | S_IRGRP));
  if (!fd.valid()) return fail_errno(errno, "create {}", path);
  const auto written = write_all_at(fd.get(), std::as_bytes(std::span(content)), 0);
  if (!written) {
    return fail_errno(written.error().sys_errno, "write {}", path);
  }
  if (::fsync(fd.get()) != 0) return fail_errno(errno, "fsync {}", path);
  return {};
}

void fill_random(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t count = ::getrandom(out.data(), out.size(), 0);
    RD_CHECK(count > 0 || errno == EINTR);
    if (count > 0) out = out.subspan(static_cast<std::size_t>(count));
  }
}

}  // namespace

Result<Fd> open_image_locked(const std::string& path, std::uint64_t bytes) {
  auto fd = open_image(path);
  if (!fd) return fd;
  RD_TRY(lock_whole_file(fd->get(), path));
  RD_TRY(check_image_bytes(fd->get(), path, bytes));
  return fd;
}

Result<std::uint64_t> image_bytes(int fd) {
  const auto status = stat_of(fd);
  if (!status) return tl::unexpected(status.error());
  if (S_ISREG(status->st_mode)) return static_cast<std::uint64_t>(status->st_size);
  if (!S_ISBLK(status->st_mode)) {
    return fail(Errc::invalid_argument, "neither a file nor a block device");
  }
  std::uint64_t bytes = 0;
  if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return fail_errno(errno, "size of block device");
  return bytes;
}

Status create_image(const std::string& path, std::uint64_t bytes) {
  if (bytes > disk_bytes_max) {
    return fail(
        Errc::invalid_argument, "image {}: {} bytes, at most {}", path, bytes, disk_bytes_max);
  }
  const Fd fd(::open(
      path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP));
  if (!fd.valid()) return fail_errno(errno, "create image {}", path);
  Status status;
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    status = fail_errno(errno, "create image {} of {} bytes", path, bytes);
    if (errno == EFBIG) {
      status = with_hint(tl::unexpected(status.error()),
                         "the file system cannot hold a file of this size");
    }
  } else if (::fsync(fd.get()) != 0) {
    status = fail_errno(errno, "fsync {}", path);
  } else {
    status = sync_directory(parent_of(path));
  }
  if (!status) ::unlink(path.c_str());
  return status;
}

Result<std::uint64_t> allocated_bytes(int fd) {
  const auto status = stat_of(fd);
  if (!status) return tl::unexpected(status.error());
  if (S_ISBLK(status->st_mode)) return image_bytes(fd);
  return static_cast<std::uint64_t>(status->st_blocks) * 512;
}

Status zero_range(int fd, std::uint64_t offset, std::uint64_t length, bool may_punch) {
  if (length == 0) return {};
  int result = zero_by_fallocate(fd, offset, length, may_punch);
  if (result == 0) return {};
  if (!not_possible_here(result)) return fail_errno(result, "zero {} bytes at {}", length, offset);
  // A block device takes whole blocks only.
  const std::uint64_t end = offset + length;
  const std::uint64_t middle = std::min(
      end, (offset + zero_alignment_bytes - 1) / zero_alignment_bytes * zero_alignment_bytes);
  const std::uint64_t middle_end =
      std::max(middle, end / zero_alignment_bytes * zero_alignment_bytes);
  const bool aligned_already = middle == offset && middle_end == end;
  if (aligned_already || middle == middle_end) return write_zeroes(fd, offset, length);
  result = zero_by_fallocate(fd, middle, middle_end - middle, may_punch);
  if (not_possible_here(result)) return write_zeroes(fd, offset, length);
  if (result != 0) return fail_errno(result, "zero {} bytes at {}", middle_end - middle, middle);
  RD_TRY(write_zeroes(fd, offset, middle - offset));
  return write_zeroes(fd, middle_end, end - middle_end);
}

Status write_all_at(int fd, std::span<const std::byte> data, std::uint64_t offset) {
  while (!data.empty()) {
    const ssize_t count = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno(errno, "write {} bytes at {}", data.size(), offset);
    // A regular file or device never takes nothing without an errno, except at a device's end.
    if (count == 0) return fail_errno(ENOSPC, "write {} bytes at {}", data.size(), offset);
    data = data.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

Status read_all_at(int fd, std::span<std::byte> data, std::uint64_t offset) {
  while (!data.empty()) {
    const ssize_t count = ::pread(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno(errno, "read {} bytes at {}", data.size(), offset);
    if (count == 0) {
      return fail(Errc::corrupt, "read {} bytes at {}: the file ends before", data.size(), offset);
    }
    data = data.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

Status read_medium_at(const std::string& path, std::span<std::byte> data, std::uint64_t offset) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid() && errno == EINVAL)
    return fail(Errc::not_supported, "{} cannot be read past the page cache", path);
  if (!fd.valid()) return fail_errno(errno, "open {} past the page cache", path);
  const std::uint64_t begin = offset / direct_alignment_bytes * direct_alignment_bytes;
  const std::size_t skipped = offset - begin;
  const std::size_t length = (skipped + data.size() + direct_alignment_bytes - 1) /
                             direct_alignment_bytes * direct_alignment_bytes;
  const std::unique_ptr<void, decltype(&std::free)> buffer(
      std::aligned_alloc(direct_alignment_bytes, length), &std::free);
  RD_CHECK(buffer != nullptr);
  auto* bytes = static_cast<std::byte*>(buffer.get());
  // The file may end within the last block.
  std::size_t filled = 0;
  while (filled < skipped + data.size()) {
    const ssize_t count =
        ::pread(fd.get(), bytes + filled, length - filled, static_cast<off_t>(begin + filled));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EINVAL)
      return fail(Errc::not_supported, "{} is not read in blocks of {}", path, length);
    if (count < 0) return fail_errno(errno, "read {} bytes at {} of {}", length, begin, path);
    if (count == 0) return fail(Errc::corrupt, "{} ends before {}", path, offset + data.size());
    filled += static_cast<std::size_t>(count);
  }
  std::copy_n(bytes + skipped, data.size(), data.begin());
  return {};
}

Status check_written_back(int fd) {
  // Without a write of its own, and without waiting for all that is dirty, as a sync would.
  if (::sync_file_range(fd, 0, direct_alignment_bytes, SYNC_FILE_RANGE_WAIT_BEFORE) != 0)
    return fail_errno(errno, "write back");
  return {};
}

Status secure_file(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return fail_errno(errno, "open {}", path);
  if (::fdatasync(fd.get()) != 0) return fail_errno(errno, "fdatasync {}", path);
  const auto size = stat_of(fd.get());
  if (!size) return tl::unexpected(size.error());
  const auto end = static_cast<std::uint64_t>(size->st_size);
  std::vector<std::byte> bytes(std::min(end, secure_window_bytes));
  std::vector<std::byte> medium(bytes.size());
  for (std::uint64_t at = 0; at < end; at += bytes.size()) {
    const std::size_t length = std::min<std::uint64_t>(bytes.size(), end - at);
    const auto part = std::span(bytes).first(length);
    RD_TRY(read_all_at(fd.get(), part, at));
    const Status read = read_medium_at(path, std::span(medium).first(length), at);
    if (!read && read.error().code != Errc::not_supported) return read;
    std::vector<SectorRun> lacking = {{0, length}};
    if (read) lacking = differing_sectors(part, std::span(medium).first(length), at);
    for (const SectorRun& run : lacking)
      RD_TRY(write_all_at(fd.get(), part.subspan(run.begin, run.length), at + run.begin));
  }
  if (::fdatasync(fd.get()) != 0) return fail_errno(errno, "fdatasync {}", path);
  return {};
}

Status write_file_durably(const std::string& path, std::string_view content) {
  const std::string temporary = path + ".tmp";
  Status status = write_temporary(temporary, content);
  if (status && ::rename(temporary.c_str(), path.c_str()) != 0) {
    status = fail_errno(errno, "rename {} to {}", temporary, path);
  }
  if (!status) {
    ::unlink(temporary.c_str());
    return status;
  }
  return sync_directory(parent_of(path));
}

Result<std::string> read_file(const std::string& path, std::size_t bytes_max) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return fail_errno(errno, "open {}", path);
  std::string content;
  std::array<char, 16 * kib> part{};
  for (;;) {
    const ssize_t count = ::read(fd.get(), part.data(), part.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail_errno(errno, "read {}", path);
    if (count == 0) return content;
    content.append(part.data(), static_cast<std::size_t>(count));
    if (content.size() > bytes_max) {
      return fail(Errc::corrupt, "{} is longer than {} bytes", path, bytes_max);
    }
  }
}

Status sync_directory(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return fail_errno(errno, "open directory {}", path);
  if (::fsync(fd.get()) != 0) return fail_errno(errno, "fsync directory {}", path);
  return {};
}

Status make_directories(const std::string& path, unsigned mode) {
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    if (::mkdir(part.c_str(), mode) == 0) {
      RD_TRY(sync_directory(parent_of(part)));
    } else {
      const int sys_errno = errno;
      struct stat status {};
      const bool there = ::stat(part.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
      if (!there) {
        return fail_errno(sys_errno == EEXIST ? ENOTDIR : sys_errno, "make directory {}", part);
      }
    }
    if (end == std::string::npos || end + 1 >= path.size()) return {};
  }
}

Result<std::string> boot_id() {
  constexpr std::size_t uuid_length = 36;
  auto text = read_file("/proc/sys/kernel/random/boot_id", 64);
  if (!text) return text;
  while (!text->empty() && text->back() == '\n')
    text->pop_back();
  if (text->size() != uuid_length) return fail(Errc::corrupt, "boot id '{}' is no UUID", *text);
  return text;
}

std::string random_uuid() {
  std::array<std::byte, 16> bytes{};
  fill_random(bytes);
  bytes[6] = (bytes[6] & std::byte{0x0f}) | std::byte{0x40};
  bytes[8] = (bytes[8] & std::byte{0x3f}) | std::byte{0x80};
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", std::to_integer<unsigned>(bytes[i]));
  }
  return text;
}

std::uint32_t random_tag() {
  std::uint32_t tag = 0;
  fill_random(std::as_writable_bytes(std::span(&tag, 1)));
  return tag;
}

}  // namespace replicad
