#pragma once
// After a sync of an image has failed, the kernel holds pages that it takes for written and that never reached the
// disk: a later sync would succeed without them. What may be such is therefore written again before anything of a new
// term is called durable.

#include <string>
#include <vector>

#include "core/base/range.h"
#include "nbd-plugin/disk_image.h"

namespace replicad {

/// The mark that DurableFds leaves, in the volume's directory.
[[nodiscard]] std::string failed_sync_mark(const std::string& volume_directory);

/// If the mark is there: reads `ranges` (holes are left out) and writes them again, syncs the images, removes the mark.
/// Blocking. Errors: errno's, with the image's path; the mark stays then, and nothing may be served.
[[nodiscard]] Status write_back_again(const std::string& mark_path,
                                      const std::vector<DiskImage>& images,
                                      const std::vector<Range>& ranges);

}  // namespace replicad
