#pragma once
// What this nbdkit process serves of a volume, as nbdkit's callbacks see it: the primary's export (volume.h) or, while
// a handover is prepared for this host, its standby (standby.h). replicad says which in its answer to the claim.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/range.h"
#include "core/wire/frame.h"
#include "nbd-plugin/disk_image.h"

namespace replicad {

class Exported {
 public:
  struct Hooks {
    /// nbdkit is shutting down, or this thread's client has hung up; nbdkit's threads.
    std::function<bool()> stopping;
  };

  /// Claims the volume from replicad, opens its images. Blocking, no threads: for get_ready.
  /// `agent_path`: agent.sock of the local replicad. Errors: as AgentClient::claim and DiskImage::open.
  [[nodiscard]] static Result<std::unique_ptr<Exported>> claim(const std::string& agent_path,
                                                               const std::string& name,
                                                               Hooks hooks);
  Exported() = default;
  Exported(const Exported&) = delete;
  Exported& operator=(const Exported&) = delete;
  virtual ~Exported() = default;

  /// For after_fork.
  [[nodiscard]] virtual Status start() = 0;
  /// The clean end. Blocking.
  virtual void stop() = 0;
  [[nodiscard]] virtual const std::vector<DiskImage>& images() const = 0;
  /// For export descriptions; any thread.
  [[nodiscard]] virtual std::string describe() = 0;
  /// What may be skipped when the disk is copied.
  [[nodiscard]] virtual DiskImage::Extent extent_at(DiskIndex disk, std::uint64_t offset) const = 0;

  // Requests of the guest, any thread, blocking; result: 0 or errno. Ranges lie within the disk.
  [[nodiscard]] virtual int read(DiskIndex disk, std::span<std::byte> to, std::uint64_t offset) = 0;
  [[nodiscard]] virtual int write(DiskIndex disk,
                                  std::span<const std::byte> data,
                                  std::uint64_t offset,
                                  bool fua) = 0;
  /// `kind`: FrameType::zero or FrameType::trim.
  [[nodiscard]] virtual int zero(DiskIndex disk,
                                 FrameType kind,
                                 std::uint64_t offset,
                                 std::uint64_t length,
                                 bool may_trim,
                                 bool fua) = 0;
  [[nodiscard]] virtual int flush(DiskIndex disk) = 0;
};

}  // namespace replicad
