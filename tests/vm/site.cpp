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
  // Real hosts have the same path to the socket.
  write_program("replicactl",
                fmt::format(": \"${{REPLICACTL_HOSTS:={2}/hosts}}\"; export REPLICACTL_HOSTS\n"
                            "[ \"$1\" = attach-info ] || exec {0} \"$@\"\n"
                            "said=$({0} \"$@\") || exit\n"
                            "printf '%s\\n' \"$said\" | sed \"s|{1}/[a-z]*/run/|$RUN/|\"\n",
                            e2e::replicactl_program,
                            cluster.directory(),
                            dir_));
  write_hosts();
  write_program("ssh",
                fmt::format("host=$1; shift\n"
                            "RUN={0}/$host/run\n"
                            "LIBVIRT_DEFAULT_URI=$({1}/libvirt-uri $host)\n"
                            "export RUN LIBVIRT_DEFAULT_URI\n"
                            "exec sh -c \"$*\"\n",
                            cluster.directory(),
                            dir_));
  write_program("libvirt-uri",
                fmt::format("echo \"qemu+unix:///system?socket={}/$1/libvirt/run/libvirt-sock\"\n",
                            cluster.directory()));
  const std::string uri = driver == "virsh" ? dir_ + "/libvirt-uri $1" : "echo 127.0.0.1";
  write(dir_ + "/vm.conf",
        fmt::format("DRIVER={} SSH={}/ssh STOP_TIMEOUT=120 PRESS_INTERVAL=10 SYNC_TIMEOUT=120\n"
                    "MIGRATE_PORT={}\n"
                    "VIRSH_MIGRATE='--live --persistent --migrateuri tcp://127.0.0.1'\n"
                    "fence() {{ echo \"$1\" >>{}/fenced; }}\n"
                    "migrate_uri() {{ {}; }}\n",
                    driver,
                    dir_,
                    e2e::free_port(),
                    dir_,
                    uri));
}

void Site::write_program(const std::string& name, const std::string& text) const {
  write(dir_ + "/" + name, "#!/bin/sh\n" + text);
  std::filesystem::permissions(dir_ + "/" + name, std::filesystem::perms::owner_all);
}

void Site::set_guest(const Guest& guest, const std::string& more) const {
  std::string options;
  for (const std::string& word : guest.machine())
    options += " " + ctl::shell_quote(word);
  write(dir_ + "/guests/vm1.conf", "QEMU_OPTIONS=" + ctl::shell_quote(options + " " + more) + "\n");
}

void Site::start_guest() {
  const std::string host = cluster_.primary_host();
  run({"guest-qemu.sh", "start", "vm1"}, {"RUN=" + cluster_.host(host).run_directory()});
}

std::string Site::run(const std::vector<std::string>& words,
                      const std::vector<std::string>& environment) {
  const e2e::Finished finished = try_run(words, environment);
  if (finished.exit_code != 0) throw HarnessError(finished.text());
  return finished.text();
}

e2e::Finished Site::try_run(std::vector<std::string> words,
                            const std::vector<std::string>& environment) {
  write_hosts();
  words.front() = examples + "/" + words.front();
  words.insert(words.begin(),
               {"env",
                path(),
                "REPLICACTL_HOSTS=" + dir_ + "/hosts",
                "VM_CONF=" + dir_ + "/vm.conf",
                "GUESTS=" + dir_ + "/guests"});
  return e2e::run(words, {.limit = boot_patience, .environment = environment});
}

std::string Site::pid_file(const std::string& host) const {
  return cluster_.host(host).run_directory() + "/vm1.qemu.pid";
}

std::string Site::path() const {
  return fmt::format("PATH={}:{}:{}", dir_, examples, std::getenv("PATH"));
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
