#pragma once
// The export at the host that a prepared handover may move the role to (docs/decisions/0011): writable in name, since a
// hypervisor insists on it. It keeps nothing and has no reactor: each request asks the local replicad, on a connection
// of its own. A read is let through when the image has all that the primary had answered; a write asks for the role
// and is never answered here, because replicad kills this process when the role comes, and the primary's export gets
// the request anew from whichever client is still there.

#include <nlohmann/json.hpp>
#include <sys/types.h>

#include "nbd-plugin/exported.h"

namespace replicad {

class Standby final : public Exported {
 public:
  struct Place {
    std::string agent_path;
    std::string volume;
    std::uint32_t id = 0;  ///< of the handover
    pid_t daemon = 0;
  };
  [[nodiscard]] static Result<std::unique_ptr<Exported>> open(Place place,
                                                              Hooks hooks,
                                                              const std::vector<DiskGrant>& disks);

  /// It ends with its replicad, which alone knows what may be read. Errors: that has ended.
  [[nodiscard]] Status start() override;
  void stop() override {}
  [[nodiscard]] const std::vector<DiskImage>& images() const override { return images_; }
  [[nodiscard]] std::string describe() override;
  [[nodiscard]] DiskImage::Extent extent_at(DiskIndex disk, std::uint64_t offset) const override;
  [[nodiscard]] int read(DiskIndex disk, std::span<std::byte> to, std::uint64_t offset) override;
  [[nodiscard]] int write(DiskIndex disk,
                          std::span<const std::byte> data,
                          std::uint64_t offset,
                          bool fua) override;
  [[nodiscard]] int zero(DiskIndex disk,
                         FrameType kind,
                         std::uint64_t offset,
                         std::uint64_t length,
                         bool may_trim,
                         bool fua) override;
  [[nodiscard]] int flush(DiskIndex disk) override;

 private:
  Standby(Place place, Hooks hooks) : place_(std::move(place)), hooks_(std::move(hooks)) {}
  /// Until replicad has agreed; ESHUTDOWN when the client has hung up.
  [[nodiscard]] int ask(const char* op, nlohmann::json fields) const;

  Place place_;
  Hooks hooks_;
  std::vector<DiskImage> images_;
};

}  // namespace replicad
