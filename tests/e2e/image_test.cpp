// An image that is not the one that this host wrote: a backup, another file, a device with other content.
#include <filesystem>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

namespace fs = std::filesystem;

/// b's image has been replaced, its replicad is started.
void check_refused(Cluster& cluster, const std::string& reason) {
  cluster.host("b").start();
  json error;
  wait_until("b says that its image is another one", Millis(30'000), [&] {
    const auto view = cluster.host("b").get("/v1/volumes/vm1");
    if (!view || view->at("state") != "failed") return false;
    error = view->at("error");
    return true;
  });
  const auto message = error.at("message").get<std::string>();
  CHECK_MESSAGE(message.find("is not what this host wrote: " + reason) != std::string::npos,
                message);
  CHECK(error.at("hint").get<std::string>().find("replicactl readmit vm1 --host b") !=
        std::string::npos);
  const Finished status = cluster.ctl({"status", "vm1"});
  CHECK_MESSAGE(status.out.find("is not what this host wrote") != std::string::npos, status.text());
}

/// The primary compares all of it.
void check_readmitted(Cluster& cluster) {
  cluster.ctl_ok({"readmit", "vm1", "--host=b"});
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  cluster.stop_and_compare();
}

struct Stopped {
  Cluster cluster{3};
  std::string image;
  std::string backup;

  /// Every member has written `older`, which `backup` holds, then something else; b is down.
  explicit Stopped(bool orderly = true) {
    cluster.create({});
    cluster.activate();
    cluster.wait_streaming();
    write_blocks(cluster, 1);
    image = cluster.image_path("b");
    backup = cluster.directory() + "/backup.raw";
    cluster.host("b").stop();
    fs::copy_file(image, backup);
    cluster.host("b").start();
    cluster.wait_streaming();
    write_blocks(cluster, 2);
    // An orderly end leaves a mark; so does the next start, of what is there by then.
    cluster.host("b").stop();
    if (orderly) return;
    cluster.host("b").start();
    cluster.wait_streaming();
    cluster.host("b").kill9();
  }
};

TEST_CASE("image: another file of the same size is refused, and compared in full on demand") {
  Stopped world;
  fs::rename(world.backup, world.image);
  check_refused(world.cluster, "it is another file or device");
  // What is put back is recognised.
  CHECK(world.cluster.ctl({"readmit", "vm1", "--host=a"}).exit_code == 3);
  check_readmitted(world.cluster);
}

TEST_CASE("image: a backup written over the image is noticed after an orderly end") {
  Stopped world;
  fs::copy_file(world.backup, world.image, fs::copy_options::overwrite_existing);
  check_refused(world.cluster, "somebody has written to it");
  check_readmitted(world.cluster);
}

TEST_CASE("image: a backup written over the image is noticed after kill -9, by what it lacks") {
  Stopped world(false);
  fs::copy_file(world.backup, world.image, fs::copy_options::overwrite_existing);
  check_refused(world.cluster, "its content at offset");
  check_readmitted(world.cluster);
}

TEST_CASE("image: the right one is recognised when it is back") {
  Stopped world;
  const std::string kept = world.image + ".kept";
  fs::rename(world.image, kept);
  fs::copy_file(world.backup, world.image);
  check_refused(world.cluster, "it is another file or device");
  fs::rename(kept, world.image);
  const json answer = world.cluster.ctl_json({"readmit", "vm1", "--host=b"});
  CHECK(answer.at("readmit").at("accepted") == false);
  world.cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  // Nothing had to be compared.
  CHECK(world.cluster.volume("a").at("counters").at("copied_bytes") == 0);
  world.cluster.stop_and_compare();
}

TEST_CASE("image: a primary's that was replaced is not served, another member takes over") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  const std::string image = cluster.image_path("a");
  const std::string backup = cluster.directory() + "/backup.raw";
  cluster.deactivate();
  fs::copy_file(image, backup);
  cluster.activate();
  cluster.wait_streaming();
  write_blocks(cluster, 5);
  cluster.deactivate();
  cluster.host("a").stop();
  fs::copy_file(backup, image, fs::copy_options::overwrite_existing);
  cluster.host("a").start();
  const Finished refused = cluster.ctl({"activate", "vm1"});
  CHECK(refused.exit_code != 0);
  CHECK_MESSAGE(refused.err.find("somebody has written to it") != std::string::npos,
                refused.text());
  fail_over_and_readmit(cluster, "a", 5);
}

}  // namespace
}  // namespace replicad::e2e
