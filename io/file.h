#pragma once
// Files as the runtimes need them. Blocking calls; errno becomes Error through errno_to_error.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/base/limits.h"
#include "core/base/result.h"
#include "io/fd.h"

namespace replicad {

/// Longest single write of an image into the page cache. The kernel makes folios as large as the write (ext4 since
/// Linux 6.16), and every later small write into a folio walks all its blocks: 4 KiB cost 1.7 us in a file that was
/// written by 16 KiB, 2 us in one written by 128 KiB, 12 to 17 us in one written by 512 KiB and more.
constexpr std::size_t image_write_bytes_max = 16 * kib;
/// The same for a file that is only ever appended to.
constexpr std::size_t append_write_bytes_max = 256 * kib;

/// Opens an image read-write and takes a whole-file OFD write lock, which keeps QEMU and every other locking
/// program off. Regular file or block device. Errors: Errc::busy "image ... is in use by another program",
/// Errc::not_found, Errc::invalid_argument when its size is not `bytes` (a larger block device is accepted).
[[nodiscard]] Result<Fd> open_image_locked(const std::string& path, std::uint64_t bytes);
/// Size in bytes of a regular file or block device.
[[nodiscard]] Result<std::uint64_t> image_bytes(int fd);
/// Makes a sparse file of `bytes`, durable with its directory entry. Errors: Errc::exists, Errc::no_space.
[[nodiscard]] Status create_image(const std::string& path, std::uint64_t bytes);
/// Bytes of `path` that occupy disk space.
[[nodiscard]] Result<std::uint64_t> allocated_bytes(int fd);
/// Makes [offset, offset+length) read as zeroes, deallocating it where the file system can (`may_punch`) and
/// writing zeroes where nothing else works. Blocking.
[[nodiscard]] Status zero_range(int fd, std::uint64_t offset, std::uint64_t length, bool may_punch);

/// The whole of `data`, through short writes and interruptions. Errors: errno's, Errc::no_space.
[[nodiscard]] Status write_all_at(int fd, std::span<const std::byte> data, std::uint64_t offset);
/// Fills `data`. Errors: errno's, Errc::corrupt if the file ends before.
[[nodiscard]] Status read_all_at(int fd, std::span<std::byte> data, std::uint64_t offset);
/// Fills `data` with what the disk itself has, past the page cache. What is dirty there is written first. Errors:
/// Errc::not_supported where the file system cannot do this; Errc::corrupt if the file ends before; errno's.
[[nodiscard]] Status read_medium_at(const std::string& path,
                                    std::span<std::byte> data,
                                    std::uint64_t offset);

/// Whatever a process that is gone has written to the file is on stable storage on return, also where a sync of it had
/// failed and the kernel takes pages for clean that the disk never got: those are written again. Reads all of the file.
/// Blocking. Errors: errno's, Errc::not_found.
[[nodiscard]] Status secure_file(const std::string& path);

/// Whether nothing that anybody wrote to the file has failed to reach the disk since `fd` was opened. Each open file is
/// told of such a failure once, also if others were told before; this waits for its first block only. Errors: errno's,
/// which are the failure.
[[nodiscard]] Status check_written_back(int fd);

/// Replaces `path` by `content`: temporary file `path`.tmp, fsync, rename, fsync of the directory. Durable on
/// return; on error the old content is still there, except when the last fsync fails: then a crash decides
/// between the two. One writer per path at a time.
[[nodiscard]] Status write_file_durably(const std::string& path, std::string_view content);
/// Whole content; Errc::not_found, Errc::corrupt if longer than `bytes_max`.
[[nodiscard]] Result<std::string> read_file(const std::string& path, std::size_t bytes_max);
[[nodiscard]] Status sync_directory(const std::string& path);
[[nodiscard]] Status make_directories(const std::string& path, unsigned mode);

/// /proc/sys/kernel/random/boot_id: differs after each boot of the host.
[[nodiscard]] Result<std::string> boot_id();
/// A random RFC 4122 UUID, and 32 random bits, from getrandom.
[[nodiscard]] std::string random_uuid();
[[nodiscard]] std::uint32_t random_tag();

}  // namespace replicad
