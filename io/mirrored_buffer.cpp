#include "io/mirrored_buffer.h"

#include <cerrno>

#include <sys/mman.h>
#include <unistd.h>

#include "core/base/check.h"
#include "io/fd.h"

namespace replicad {

Result<std::unique_ptr<MirroredBuffer>> MirroredBuffer::create(std::uint64_t bytes) {
  const auto page_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  bytes = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  const Fd memory(::memfd_create("replica-ring", MFD_CLOEXEC));
  if (!memory.valid()) return fail_errno(errno, "create the ring's memory");
  if (::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0)
    return fail_errno(errno, "size the ring's memory");
  void* reserved = ::mmap(nullptr, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED)
    return fail_errno(errno, "reserve {} bytes of address space for the ring", 2 * bytes);
  auto* base = static_cast<std::byte*>(reserved);
  std::unique_ptr<MirroredBuffer> buffer(new MirroredBuffer(base, bytes));
  for (std::byte* half : {base, base + bytes}) {
    if (::mmap(half, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.get(), 0) ==
        MAP_FAILED) {
      return fail_errno(errno, "map {} bytes for the ring", bytes);
    }
  }
  return buffer;
}

MirroredBuffer::~MirroredBuffer() {
  ::munmap(base_, 2 * bytes_);
}

std::span<std::byte> MirroredBuffer::at(std::uint64_t offset, std::uint64_t length) const {
  RD_CHECK(length <= bytes_);
  return {base_ + offset % bytes_, length};
}

}  // namespace replicad
