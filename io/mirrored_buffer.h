#pragma once
// Memory that is mapped twice in a row, so that a piece that wraps around the end is contiguous. Move-only.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/base/result.h"

namespace replicad {

class MirroredBuffer {
 public:
  /// `bytes`: rounded up to whole pages. Errors: Errc::io_error (out of memory or address space).
  [[nodiscard]] static Result<std::unique_ptr<MirroredBuffer>> create(std::uint64_t bytes);
  MirroredBuffer(const MirroredBuffer&) = delete;
  MirroredBuffer& operator=(const MirroredBuffer&) = delete;
  ~MirroredBuffer();

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// `length` bytes from running offset `offset` on (taken modulo bytes()). Requires length <= bytes().
  [[nodiscard]] std::span<std::byte> at(std::uint64_t offset, std::uint64_t length) const;

 private:
  MirroredBuffer(std::byte* base, std::uint64_t bytes) : base_(base), bytes_(bytes) {}

  std::byte* base_;
  std::uint64_t bytes_;
};

}  // namespace replicad
