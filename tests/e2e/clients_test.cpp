// Programs that people use on NBD exports and images, against a served volume.
#include <cstring>
#include <fstream>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

/// A file of 16 MiB with data in its first and third quarter.
std::string make_source(const std::string& directory) {
  const std::string path = directory + "/source.raw";
  std::string quarter(4 * mib_bytes, '\0');
  for (std::size_t i = 0; i < quarter.size(); ++i)
    quarter[i] = static_cast<char>(i * 31 + i / 509);
  std::ofstream file(path, std::ios::binary);
  file << quarter;
  file.seekp(8 * mib_bytes);
  file << quarter;
  file.close();
  REQUIRE(::truncate(path.c_str(), 16 * mib_bytes) == 0);
  return path;
}

TEST_CASE("clients: nbdinfo shows every disk with what the export can do") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}, .disk_bytes = {16 * mib_bytes, 8 * mib_bytes}});
  cluster.activate();
  const json one = json::parse(run_ok({"nbdinfo", "--json", cluster.uri("vdb")}).out);
  const json entry = one.at("exports").at(0);
  CHECK(entry.at("export-size") == 8 * mib_bytes);
  for (const char* able : {"can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"}) {
    CAPTURE(able);
    CHECK(entry.at(able) == true);
  }
  CHECK(entry.at("can_fast_zero") == true);
  CHECK(entry.at("is_read_only") == false);
  const json all = json::parse(run_ok({"nbdinfo", "--json", "--list", cluster.uri("vda")}).out);
  std::vector<std::string> names;
  for (const json& exported : all.at("exports")) {
    names.push_back(exported.at("export-name").get<std::string>());
    CHECK(contains(exported.value("description", ""), "vm1"));
  }
  CHECK(names == std::vector<std::string>{"vda", "vdb"});
}

TEST_CASE("clients: an export that does not exist is refused, the first disk is the default") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}, .disk_bytes = {16 * mib_bytes, 8 * mib_bytes}});
  cluster.activate();
  const std::string uri = cluster.uri("vda");
  const auto at = uri.find("/vda");
  REQUIRE(at != std::string::npos);
  std::string other = uri;
  CHECK(run({"nbdinfo", other.replace(at, 4, "/vdz")}).exit_code != 0);
  std::string without = uri;
  const Finished size = run_ok({"nbdinfo", "--size", without.replace(at, 4, "/")});
  CHECK(size.out == fmt::format("{}\n", 16 * mib_bytes));
}

TEST_CASE("clients: nbdcopy, qemu-img map, compare and convert work on the export") {
  Cluster cluster(3);
  cluster.create({.disk_bytes = {16 * mib_bytes}});
  cluster.activate();
  cluster.wait_streaming();
  const std::string uri = cluster.uri();
  const std::string source = make_source(cluster.directory());
  run_ok({"nbdcopy", "--flush", source, uri});
  run_ok({"qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri});
  const json map = json::parse(run_ok({"qemu-img", "map", "-f", "raw", "--output=json", uri}).out);
  std::uint64_t data = 0;
  for (const json& extent : map) {
    if (extent.at("data") == true) data += extent.at("length").get<std::uint64_t>();
  }
  CHECK(data == 8 * mib_bytes);
  const std::string copy = cluster.directory() + "/copy.raw";
  run_ok({"nbdcopy", uri, copy});
  run_ok({"cmp", source, copy});
  const std::string qcow = cluster.directory() + "/copy.qcow2";
  run_ok({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow});
  run_ok({"qemu-img", "compare", "-F", "raw", qcow, source});
  cluster.stop_and_compare();
  for (const std::string& host : cluster.host_names()) {
    run_ok({"cmp", source, cluster.image_path(host)});
  }
}

TEST_CASE("clients: qemu-io writes, discards and reads through the export") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  const Finished io = run_ok({"qemu-io",
                              "-f",
                              "raw",
                              "-d",
                              "unmap",
                              "-c",
                              "write -P 0x5a 0 1M",
                              "-c",
                              "write -f -P 0xa5 1M 64k",
                              "-c",
                              "discard 0 512k",
                              "-c",
                              "write -z -u 1M 4k",
                              "-c",
                              "read -P 0x5a 512k 512k",
                              "-c",
                              "read -P 0 0 512k",
                              "-c",
                              "read -P 0xa5 1028k 60k",
                              "-c",
                              "flush",
                              cluster.uri()});
  CHECK_MESSAGE(!contains(io.out, "verification failed"), io.text());
  cluster.stop_and_compare();
}

TEST_CASE("clients: the plugin works below nbdkit's filters, started by hand") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  const std::string log = cluster.directory() + "/filter.log";
  const std::string stats = cluster.directory() + "/filter.stats";
  const std::string socket = cluster.directory() + "/nbd.sock";
  Process nbdkit({nbdkit_program(),
                  "-f",
                  "-U",
                  socket,
                  "--filter=log",
                  "--filter=stats",
                  "--filter=blocksize-policy",
                  plugin_path,
                  "vm1",
                  "agent=" + cluster.host("a").agent_socket(),
                  "logfile=" + log,
                  "statsfile=" + stats,
                  "blocksize-minimum=512"},
                 cluster.directory() + "/nbdkit.out",
                 cluster.directory() + "/nbdkit.out");
  const std::string uri = "nbd+unix:///vda?socket=" + socket;
  wait_until("nbdkit serves", Millis(20'000), [&] {
    if (!nbdkit.running()) {
      throw HarnessError(read_text(cluster.directory() + "/nbdkit.out"));
    }
    return run({"nbdinfo", "--size", uri}).exit_code == 0;
  });
  cluster.wait_streaming();
  run_ok({"nbdcopy", "--flush", make_source(cluster.directory()), uri});
  nbdkit.signal(SIGTERM);
  CHECK(nbdkit.wait(Millis(20'000)) == 0);
  CHECK(contains(read_text(log), "Write"));
  CHECK(contains(read_text(stats), "write:"));
  wait_until("the daemon knows of the clean stop", Millis(10'000), [&] {
    const json volume = cluster.volume("a");
    return volume.at("state") == "stopped" && volume.at("clean") == true;
  });
  cluster.wait_applied();
  CHECK(cluster.image_differences() == "");
}

TEST_CASE("clients: nbdkit tells what the plugin is and knows") {
  const Finished dump = run_ok({nbdkit_program(), "--dump-plugin", plugin_path});
  CHECK(contains(dump.out, "name=replica"));
  CHECK(contains(dump.out, "thread_model=parallel"));
  CHECK(contains(dump.out, "replica_protocol_max=1"));
  const Finished help = run_ok({nbdkit_program(), "--help", plugin_path});
  CHECK(contains(help.out, "volume="));
  CHECK(contains(help.out, "agent="));
}

TEST_CASE("clients: import fills a volume from a file and from an NBD URI") {
  Cluster cluster(2);
  const std::string source = make_source(cluster.directory());
  cluster.create({.members = {"a", "b"}, .disk_bytes = {16 * mib_bytes}});
  cluster.activate();
  cluster.wait_streaming();
  cluster.ctl_ok({"import", "vm1", source});
  cluster.stop_and_compare();
  run_ok({"cmp", source, cluster.image_path("b")});
  // Holes of the source stay holes.
  CHECK(allocated_bytes(cluster.image_path("b")) < 9 * mib_bytes);

  cluster.create({.name = "vm2", .members = {"b", "a"}, .disk_bytes = {16 * mib_bytes}});
  cluster.activate("vm2");
  cluster.wait_streaming("vm2");
  cluster.activate("vm1");
  cluster.ctl_ok({"import", "vm2", cluster.uri("vda", "vm1")});
  cluster.stop_and_compare("vm2");
  run_ok({"cmp", source, cluster.image_path("a", "vda", "vm2")});
}

}  // namespace
}  // namespace replicad::e2e
