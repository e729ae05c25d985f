#include "tests/vm/libvirt_host.h"

#include <filesystem>
#include <fstream>

#include <fmt/format.h>

namespace replicad::vm {

namespace fs = std::filesystem;
using e2e::read_text;

namespace {

constexpr Millis libvirt_patience(60'000);

std::string in_xml(const std::string& text) {
  std::string escaped;
  for (const char letter : text) {
    if (letter == '\'') {
      escaped += "&apos;";
    } else if (letter == '&') {
      escaped += "&amp;";
    } else if (letter == '<') {
      escaped += "&lt;";
    } else {
      escaped += letter;
    }
  }
  return escaped;
}

}  // namespace

LibvirtHost::LibvirtHost(std::string directory, std::vector<std::string> environment, bool hook)
    : directory_(std::move(directory)), environment_(std::move(environment)) {
  const std::string hooks = directory_ + "/libvirt/etc/hooks";
  fs::create_directories(hooks);
  if (hook) fs::copy_file(std::string(RD_EXAMPLES) + "/libvirt-hook.sh", hooks + "/qemu");
  start();
}

void LibvirtHost::start() {
  fs::remove_all(run());
  const std::string log = directory_ + "/libvirt/libvirtd.log";
  process_ = std::make_unique<e2e::Process>(std::vector<std::string>{"unshare",
                                                                     "--mount",
                                                                     "--propagation",
                                                                     "private",
                                                                     RD_LIBVIRT_HOST,
                                                                     directory_ + "/libvirt",
                                                                     directory_ + "/run"},
                                            log,
                                            log,
                                            environment_);
  e2e::wait_until("libvirtd listens", libvirt_patience, [&] {
    if (!process_->running()) throw e2e::HarnessError("libvirtd: " + read_text(log));
    return fs::exists(run() + "/libvirt-sock");
  });
}

void LibvirtHost::virsh(const std::vector<std::string>& words) {
  std::vector<std::string> command = {
      "virsh", "-c", "qemu+unix:///system?socket=" + run() + "/libvirt-sock"};
  command.insert(command.end(), words.begin(), words.end());
  const e2e::Finished finished = e2e::run(command, {.limit = libvirt_patience, .environment = {}});
  if (finished.exit_code != 0)
    throw e2e::HarnessError(finished.text() + read_text(directory_ + "/libvirt/libvirtd.log"));
}

std::string LibvirtHost::seen_by_guests(std::string text) const {
  const std::string own = directory_ + "/run";
  if (const auto at = text.find(own); at != std::string::npos)
    text.replace(at, own.size(), "/run/replica");
  return text;
}

void LibvirtHost::define(const Guest& guest, const std::vector<std::string>& disk_arguments) {
  std::string disks;
  for (std::size_t i = 0; i + 1 < disk_arguments.size(); i += 2) {
    std::string word = disk_arguments[i + 1];
    // libvirt refuses an iothread that it has not made.
    if (disk_arguments[i] == "-object") continue;
    if (const auto at = word.find(",iothread="); at != std::string::npos)
      word.erase(at, word.find(',', at + 1) - at);
    word = seen_by_guests(word);
    if (word.starts_with("virtio-blk-pci")) word += ",bus=pci.0,addr=0x1e";
    disks += fmt::format("    <qemu:arg value='{}'/>\n    <qemu:arg value='{}'/>\n",
                         disk_arguments[i],
                         in_xml(word));
  }
  const std::string files = RD_GUEST;
  const std::string path = directory_ + "/libvirt/vm1.xml";
  std::ofstream(path) << fmt::format(
      "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
      "  <name>vm1</name>\n"
      "  <uuid>0b1f2f4a-6f0e-4a53-9a0e-4d7c1e1f0001</uuid>\n"
      "  <memory unit='MiB'>192</memory>\n"
      "  <os>\n"
      "    <type arch='x86_64' machine='pc'>hvm</type>\n"
      "    <kernel>{0}/kernel</kernel>\n"
      "    <initrd>{0}/initramfs</initrd>\n"
      // The directory is what a test finds its processes by.
      "    <cmdline>{1} started_by={4}</cmdline>\n"
      "  </os>\n"
      "  <features><acpi/></features>\n"
      "  <cpu mode='maximum'/>\n"
      "  <devices>\n"
      "    <serial type='pipe'><source path='{2}'/></serial>\n"
      "    <controller type='usb' model='none'/>\n"
      "    <memballoon model='none'/>\n"
      "  </devices>\n"
      "  <qemu:commandline>\n"
      "{3}"
      "  </qemu:commandline>\n"
      "</domain>\n",
      files,
      Guest::kernel_options,
      seen_by_guests(guest.console_path()),
      disks,
      directory_);
  virsh({"define", path});
}

void LibvirtHost::kill9() {
  process_->kill9();
  if (const pid_t guest = std::atoi(read_text(pid_file()).c_str()); guest > 1)
    ::kill(guest, SIGKILL);
}

}  // namespace replicad::vm
