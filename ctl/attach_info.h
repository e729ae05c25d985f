#pragma once
// What a hypervisor needs to open an export, ready to paste. Pure.

#include <string>
#include <vector>

#include "core/control/views.h"

namespace replicad::ctl {

struct AttachInfo {
  std::string disk;
  std::uint64_t bytes = 0;
  std::string uri;
  std::string socket;
  std::vector<std::string> qemu_arguments;  ///< of the command line, unquoted
  std::string libvirt_xml;
};

/// One per disk. Errors: Errc::refused when the volume is not served; Errc::protocol when the daemon's
/// answer has no URI of a disk or no unix socket.
[[nodiscard]] Result<std::vector<AttachInfo>> attach_infos(const VolumeView& volume);
/// `format`: uri, qemu, libvirt or all.
[[nodiscard]] std::string attach_text(const std::vector<AttachInfo>& disks,
                                      const std::string& format);

/// `word` as one word of a POSIX shell.
[[nodiscard]] std::string shell_quote(const std::string& word);
/// `text` as the value of an XML attribute in '...'.
[[nodiscard]] std::string xml_escape(const std::string& text);

}  // namespace replicad::ctl
