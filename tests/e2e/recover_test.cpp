// The way out: images that can be used without replicad, after everything was killed.

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/e2e/harness.h"
#include "tests/e2e/load.h"
#include "tests/e2e/nbd_client.h"

namespace replicad::e2e {
namespace {

Finished run_offline(Cluster& cluster, const std::string& host, std::vector<std::string> words) {
  words.insert(words.begin(), replicad_program);
  words.push_back("--host=" + host);
  words.push_back("--state-dir=" + cluster.host(host).state_directory());
  words.push_back("--image-dir=" + cluster.host(host).image_directory());
  return run(words);
}

/// The line of `text` that begins with `key`.
std::string line_of(const std::string& text, const std::string& key) {
  const auto begin = text.find(key + ": ");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find('\n', begin) - begin);
}

std::vector<std::byte> read_bytes(Cluster& cluster, std::uint64_t offset, std::size_t length) {
  std::vector<std::byte> bytes(length);
  NbdClient client(cluster.uri());
  client.read(offset, bytes);
  return bytes;
}

TEST_CASE("recover: after kill -9 of everything each host's images hold what was answered") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  Load load(cluster, {});
  load.start();
  load.wait_answered(400);
  load.stop();
  const pid_t exporter = cluster.export_pid();
  std::map<std::string, std::string> images;
  for (const std::string& host : cluster.host_names())
    images[host] = cluster.image_path(host);

  const Finished beside_daemon = run_offline(cluster, "b", {"recover", "vm1"});
  CHECK_MESSAGE(beside_daemon.exit_code == 1, beside_daemon.text());
  CHECK_MESSAGE(beside_daemon.err.find("in use") != std::string::npos, beside_daemon.text());
  for (const std::string& host : cluster.host_names())
    cluster.host(host).kill9();
  const Finished beside_export = run_offline(cluster, "a", {"recover", "vm1"});
  CHECK_MESSAGE(beside_export.exit_code == 1, beside_export.text());
  CHECK_MESSAGE(beside_export.err.find("in use") != std::string::npos, beside_export.text());
  ::kill(exporter, SIGKILL);

  std::map<std::string, std::string> positions;
  for (const std::string& host : cluster.host_names()) {
    CAPTURE(host);
    // The kernel takes a moment to let go of a killed process's locks.
    Finished looked;
    wait_until("the locks are free", Millis(30'000), [&] {
      looked = run_offline(cluster, host, {"recover", "--dry-run", "vm1"});
      return looked.exit_code == 0;
    });
    const Finished recovered = run_offline(cluster, host, {"recover", "vm1"});
    REQUIRE_MESSAGE(recovered.exit_code == 0, recovered.text());
    positions[host] = line_of(recovered.out, "position");
    CHECK(line_of(looked.out, "position") == positions[host]);
    CHECK_MESSAGE(recovered.out.find(images[host]) != std::string::npos, recovered.out);
    CHECK(file_difference(images[host], load.mirror("vda")) == "");
    const Finished again = run_offline(cluster, host, {"recover", "vm1"});
    CHECK_MESSAGE(line_of(again.out, "position") == positions[host], again.text());
  }
  CHECK(positions["b"] == positions["c"]);
  CHECK(positions["b"].find("sequence") != std::string::npos);
  CHECK(positions["a"].find("unknown") != std::string::npos);

  // And the daemons go on from there.
  for (const std::string& host : cluster.host_names())
    cluster.host(host).start();
  cluster.activate();
  CHECK(read_bytes(cluster, 0, 4096) ==
        std::vector<std::byte>(load.mirror("vda").begin(), load.mirror("vda").begin() + 4096));
}

TEST_CASE(
    "recover: a volume made of a dumped state serves its images, and nobody takes it for the old") {
  Cluster cluster(2);
  cluster.create({.members = {"a", "b"}});
  cluster.activate();
  cluster.wait_streaming();
  const std::vector<std::byte> block(8192, std::byte{0x5a});
  {
    NbdClient client(cluster.uri());
    client.write(4096, block);
    client.flush();
  }
  cluster.deactivate();
  const json before = cluster.volume("a");
  CHECK(cluster.host("a").stop() == 0);
  const Finished dumped = run_offline(cluster, "a", {"dump-state", "vm1"});
  REQUIRE_MESSAGE(dumped.exit_code == 0, dumped.text());
  const std::string file = cluster.directory() + "/vm1.json";
  std::ofstream(file) << dumped.out;
  const Finished exists = run_offline(cluster, "a", {"restore-state", "vm1", file});
  CHECK_MESSAGE(exists.exit_code == 1, exists.text());
  CHECK_MESSAGE(exists.err.find("is there already") != std::string::npos, exists.text());

  std::filesystem::remove_all(cluster.host("a").state_directory() + "/volumes/vm1");
  const Finished restored = run_offline(cluster, "a", {"restore-state", "vm1", file});
  REQUIRE_MESSAGE(restored.exit_code == 0, restored.text());
  cluster.host("a").start();
  const json after = cluster.volume("a");
  CHECK(after.at("uuid") != before.at("uuid"));
  CHECK(after.at("role") == "primary");
  CHECK(after.at("members").size() == 1);
  // The other host still has its part of the old volume, and says so if it is asked for the new one.
  cluster.host("b").kill9();
  cluster.activate();
  CHECK(read_bytes(cluster, 4096, block.size()) == block);
}

}  // namespace
}  // namespace replicad::e2e
