#include "ctl/attach_info.h"

#include "core/base/names.h"
#include "core/control/text.h"
#include "ctl/context.h"
#include "ctl/units.h"

namespace replicad::ctl {

namespace {

/// Long enough for a switchover and for a restart of the host's daemon; QEMU then pauses the guest
/// (werror=stop).
constexpr int reconnect_seconds = 300;
constexpr int open_seconds = 30;
constexpr std::size_t qemu_node_name_bytes_max = 31;

/// QEMU's node names begin with a letter and are short; a disk's name may not be.
std::string node_name(const std::string& disk, std::size_t index) {
  const bool letter_first = !disk.empty() && disk[0] >= 'a' && disk[0] <= 'z';
  return letter_first && disk.size() <= qemu_node_name_bytes_max ? disk
                                                                 : fmt::format("disk{}", index);
}

std::vector<std::string> qemu_arguments(const std::string& node, const AttachInfo& info) {
  // Written out, not dumped: the order of the keys is for people.
  const auto quote = [](const std::string& text) { return dump_json(nlohmann::json(text)); };
  const std::string blockdev = fmt::format(
      R"({{"driver":"nbd","node-name":{},"server":{{"type":"unix","path":{}}},"export":{},)"
      R"("reconnect-delay":{},"open-timeout":{},"discard":"unmap","detect-zeroes":"unmap",)"
      R"("cache":{{"direct":true}}}})",
      quote(node),
      quote(info.socket),
      quote(info.disk),
      reconnect_seconds,
      open_seconds);
  return {
      "-blockdev",
      blockdev,
      "-object",
      fmt::format("iothread,id=iothread-{}", node),
      "-device",
      fmt::format("virtio-blk-pci,drive={0},iothread=iothread-{0},werror=stop,rerror=stop", node)};
}

std::string libvirt_xml(std::size_t index, const AttachInfo& info) {
  return fmt::format(
      "<disk type='network' device='disk'>\n"
      "  <driver name='qemu' type='raw' cache='none' discard='unmap' detect_zeroes='unmap' "
      "error_policy='stop' "
      "rerror_policy='stop'/>\n"
      "  <source protocol='nbd' name='{}'>\n"
      "    <host transport='unix' socket='{}'/>\n"
      "    <reconnect delay='{}'/>\n"
      "  </source>\n"
      "  <target dev='{}' bus='virtio'/>\n"
      "</disk>\n",
      xml_escape(info.disk),
      xml_escape(info.socket),
      reconnect_seconds,
      default_disk_name(index));
}

std::string qemu_text(const AttachInfo& info) {
  std::string text;
  for (std::size_t i = 0; i + 1 < info.qemu_arguments.size(); i += 2) {
    text += fmt::format("{}{} {}",
                        text.empty() ? "" : " \\\n",
                        info.qemu_arguments[i],
                        shell_quote(info.qemu_arguments[i + 1]));
  }
  return text + "\n";
}

}  // namespace

std::string shell_quote(const std::string& word) {
  std::string quoted = "'";
  for (const char letter : word) {
    if (letter == '\'') {
      quoted += "'\\''";
    } else {
      quoted += letter;
    }
  }
  return quoted + "'";
}

std::string xml_escape(const std::string& text) {
  std::string escaped;
  for (const char letter : text) {
    switch (letter) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '\'':
        escaped += "&apos;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += letter;
    }
  }
  return escaped;
}

Result<std::vector<AttachInfo>> attach_infos(const VolumeView& volume) {
  if (!volume.nbd) {
    return with_hint(
        fail(Errc::refused, "{} is not active ({} on {})", volume.name, volume.state, volume.host),
        fmt::format("`replicactl activate {}` first", volume.name));
  }
  const std::string& socket = volume.nbd->socket;
  if (!socket.starts_with('/') || printable(socket) != socket) {
    return fail(Errc::protocol,
                "unexpected answer of {}: '{}' is no path of a socket",
                volume.host,
                socket);
  }
  std::vector<AttachInfo> disks;
  for (std::size_t i = 0; i < volume.disks.size(); ++i) {
    const DiskView& disk = volume.disks[i];
    if (!is_valid_name(disk.name)) {
      return fail(Errc::protocol, "unexpected answer of {}: a disk has no valid name", volume.host);
    }
    const auto uri = volume.nbd->uris.find(disk.name);
    if (uri == volume.nbd->uris.end()) {
      return fail(
          Errc::protocol, "unexpected answer of {}: no URI of disk {}", volume.host, disk.name);
    }
    AttachInfo info;
    info.disk = disk.name;
    info.bytes = disk.bytes;
    info.uri = uri->second;
    info.socket = socket;
    info.qemu_arguments = qemu_arguments(node_name(disk.name, i), info);
    info.libvirt_xml = libvirt_xml(i, info);
    disks.push_back(std::move(info));
  }
  return disks;
}

std::string attach_text(const std::vector<AttachInfo>& disks, const std::string& format) {
  const bool all = format == "all";
  std::string text;
  for (const AttachInfo& info : disks) {
    if (all)
      text += fmt::format("# {}, {}: NBD URI\n", printable(info.disk), format_bytes(info.bytes));
    if (all || format == "uri") text += printable(info.uri) + "\n";
    if (all) text += "# QEMU\n";
    if (all || format == "qemu") text += qemu_text(info);
    if (all) {
      text +=
          "# libvirt (the line <reconnect .../> needs libvirt 9.2; leave it out of older ones, "
          "such as Debian 12's)\n";
    }
    if (all || format == "libvirt") text += info.libvirt_xml;
    if (all && &info != &disks.back()) text += "\n";
  }
  return text;
}

}  // namespace replicad::ctl
