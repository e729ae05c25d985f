#include "tests/vm/site.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>

#include "ctl/attach_info.h"

namespace replicad::vm {

namespace {

const std::string examples = RD_EXAMPLES;

void write(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

}  // namespace

Site::Site(Cluster& cluster, const std::string& driver)
    : cluster_(cluster), dir_(cluster.directory() + "/site") {
  std::filesystem::create_directories(dir_ + "/guests");
  std::filesystem::create_symlink(e2e::replicactl_program, dir_ + "/replicactl");
  write(dir_ + "/ssh",
        fmt::format("#!/bin/sh\nhost=$1; shift\nRUN={0}/$host/run\n"
                    "LIBVIRT_DEFAULT_URI=qemu+unix:///system?socket={0}/$host/libvirt/run/"
                    "libvirt-sock\nexport RUN LIBVIRT_DEFAULT_URI\nexec sh -c \"$*\"\n",
                    cluster.directory()));
  std::filesystem::permissions(dir_ + "/ssh", std::filesystem::perms::owner_all);
  write(dir_ + "/vm.conf",
        fmt::format("DRIVER={} SSH={}/ssh STOP_TIMEOUT=120 PRESS_INTERVAL=10 SYNC_TIMEOUT=120\n"
                    "fence() {{ echo \"$1\" >>{}/fenced; }}\n",
                    driver,
                    dir_,
                    dir_));
}

void Site::set_guest(const Guest& guest) const {
  std::string options;
  for (const std::string& word : guest.machine())
    options += " " + ctl::shell_quote(word);
  write(dir_ + "/guests/vm1.conf", "QEMU_OPTIONS=" + ctl::shell_quote(options) + "\n");
}

void Site::start_guest() {
  const std::string host = cluster_.primary_host();
  run({"guest-qemu.sh", "start", "vm1"}, {"RUN=" + cluster_.host(host).run_directory()});
}

std::string Site::run(std::vector<std::string> words, const std::vector<std::string>& environment) {
  write_hosts();
  words.front() = examples + "/" + words.front();
  words.insert(words.begin(),
               {"env",
                fmt::format("PATH={}:{}:{}", dir_, examples, std::getenv("PATH")),
                "REPLICACTL_HOSTS=" + dir_ + "/hosts",
                "VM_CONF=" + dir_ + "/vm.conf",
                "GUESTS=" + dir_ + "/guests"});
  const e2e::Finished finished =
      e2e::run(words, {.limit = boot_patience, .environment = environment});
  if (finished.exit_code != 0) throw HarnessError(finished.text());
  return finished.text();
}

std::string Site::pid_file(const std::string& host) const {
  return cluster_.host(host).run_directory() + "/vm1.qemu.pid";
}

std::string Site::fenced() const {
  return read_text(dir_ + "/fenced");
}

/// Ports change when a host is started again.
void Site::write_hosts() const {
  std::string lines;
  for (const std::string& host : cluster_.host_names())
    lines += fmt::format("{} {}\n", host, cluster_.host(host).control());
  write(dir_ + "/hosts", lines);
}

}  // namespace replicad::vm
