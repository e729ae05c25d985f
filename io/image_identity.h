#pragma once
// What a file system or a device tells of an image beside its content. Blocking calls, any thread.

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/result.h"

namespace replicad {

/// What stays the same as long as it is the same file (inode, its birth and generation, where the file system has
/// them: a copy under the same name has others) or the same device (WWID, serial number, device mapper's or partition's
/// uuid, a loop device's file). "device" for one that tells nothing. Errors: errno's.
[[nodiscard]] Result<std::string> image_identity(int fd);
/// Time of a file's last change in ns since 1970; nullopt for a device, which has none. Errors: errno's.
[[nodiscard]] Result<std::optional<std::uint64_t>> modified_ns(int fd);

}  // namespace replicad
