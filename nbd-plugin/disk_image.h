#pragma once
// One disk's image on the primary: plain reads and writes, any thread. Errors are errno values, as nbdkit wants
// them; 0 is success.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/base/result.h"
#include "io/fd.h"
#include "nbd-plugin/durable_fds.h"
#include "nbd-plugin/settings.h"

namespace replicad {

class DiskImage {
 public:
  /// Opens and locks the image (io/file.h, open_image_locked). `mark_path`: as of DurableFds::open.
  [[nodiscard]] static Result<DiskImage> open(const DiskGrant& grant,
                                              const std::string& mark_path = {});

  /// Without the lock, which a replica has: for read() alone.
  [[nodiscard]] static Result<DiskImage> open_to_read(const DiskGrant& grant);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// Zeroing is quick: the file system deallocates.
  [[nodiscard]] bool fast_zero() const { return fast_zero_; }

  [[nodiscard]] int read(std::span<std::byte> to, std::uint64_t offset) const;
  /// `durable`: on stable storage on return.
  [[nodiscard]] int write(std::span<const std::byte> from,
                          std::uint64_t offset,
                          bool durable) const;
  [[nodiscard]] int zero(std::uint64_t offset, std::uint64_t length, bool may_punch) const;
  /// Once it, or a durable write, has failed, it fails for ever: what was lost is not told again.
  [[nodiscard]] int sync() const;
  /// Hints that [offset, offset+length) will be read.
  [[nodiscard]] int prefetch(std::uint64_t offset, std::uint64_t length) const;

  struct Extent {
    std::uint64_t length_bytes = 0;
    bool is_hole = false;
  };
  /// The extent that begins at `offset` (< bytes()); data where the file system cannot tell.
  [[nodiscard]] Extent extent_at(std::uint64_t offset) const;
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  DiskImage(const DiskGrant& grant, Fd fd, bool fast_zero, std::unique_ptr<DurableFds> durable)
      : name_(grant.name),
        path_(grant.path),
        bytes_(grant.bytes),
        fd_(std::move(fd)),
        fast_zero_(fast_zero),
        durable_(std::move(durable)) {}

  std::string name_;
  std::string path_;
  std::uint64_t bytes_;
  Fd fd_;
  bool fast_zero_;
  std::unique_ptr<DurableFds> durable_;
};

}  // namespace replicad
