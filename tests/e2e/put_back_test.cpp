// A state file that was put back to an older copy (docs/decisions/0013), alone or with all that the host has.
#include <filesystem>

#include <doctest/doctest.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

namespace fs = std::filesystem;

/// The state file of a host that is down.
struct StateFile {
  std::string path;
  std::string copy;

  StateFile(Cluster& cluster, const std::string& host)
      : path(cluster.host(host).state_directory() + "/volumes/vm1/state"),
        copy(cluster.directory() + "/state.copy") {
    fs::copy_file(path, copy);
  }
  void put_back() const { fs::copy_file(copy, path, fs::copy_options::overwrite_existing); }
};

/// What b's state file was before its last start: since then the record has changed twice (b is in sync again, then
/// not), and b has voted for it. b is down.
StateFile copy_and_go_on(Cluster& cluster) {
  cluster.host("b").stop();
  StateFile file(cluster, "b");
  cluster.host("b").start();
  cluster.wait_streaming();
  write_blocks(cluster, 2);
  cluster.host("b").stop();
  return file;
}

void wait_noticed(Cluster& cluster, const std::string& host) {
  json view;
  wait_until(host + " says that its state file is an older copy", Millis(30'000), [&] {
    const auto found = cluster.host(host).get("/v1/volumes/vm1");
    if (!found || found->at("state") != "failed") return false;
    view = *found;
    return contains(view.at("error").at("message").get<std::string>(), "older copy that was put");
  });
  CHECK(view.at("error").at("code") == "inconsistent");
  CHECK(contains(view.at("error").at("hint").get<std::string>(),
                 "replicactl readmit vm1 --host " + host));
  const Finished status = cluster.ctl({"status", "vm1"});
  CHECK_MESSAGE(contains(status.out, "older copy that was put back"), status.text());
}

TEST_CASE("put back: an older state file of a replica is noticed, has no vote, and comes back") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  write_blocks(cluster, 1);
  copy_and_go_on(cluster).put_back();
  cluster.host("b").start();
  wait_noticed(cluster, "b");
  // What is marked stays marked.
  cluster.host("b").kill9();
  cluster.host("b").start();
  wait_noticed(cluster, "b");

  // A new term needs two votes of three. b gives none, and gets none but from both others.
  cluster.deactivate();
  cluster.host("c").stop();
  const Finished refused = cluster.ctl({"activate", "vm1"});
  CHECK(refused.exit_code != 0);
  CHECK_MESSAGE(contains(refused.err, "older copy that was put back"), refused.text());
  CHECK(cluster.ctl({"readmit", "vm1", "--host=b"}).exit_code != 0);
  cluster.host("c").start();
  cluster.activate();
  cluster.ctl_ok({"readmit", "vm1", "--host=b"});
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  write_blocks(cluster, 3);
  // It votes again, also after another start.
  cluster.host("b").stop();
  cluster.host("b").start();
  cluster.wait_streaming();
  cluster.deactivate();
  cluster.host("c").stop();
  cluster.activate();
  cluster.host("c").start();
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE(
    "put back: an older state file of a witness is noticed, and it votes again when readmitted") {
  Cluster cluster(3);
  cluster.create({.members = {"a", "b"}, .create_options = {"--witness=c"}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  cluster.host("c").stop();
  const StateFile file(cluster, "c");
  cluster.host("c").start();
  // A term that c promises.
  cluster.deactivate();
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  wait_until("c knows of the term", Millis(30'000), [&] {
    return cluster.volume("c").at("vote").at("record") ==
           cluster.volume("a").at("vote").at("record");
  });
  cluster.host("c").stop();
  file.put_back();
  cluster.host("c").start();
  wait_noticed(cluster, "c");
  cluster.ctl_ok({"readmit", "vm1", "--host=c"});
  CHECK(cluster.volume("c").at("state") == "witness");
  // Only with its vote b can take over.
  const pid_t served_by = cluster.export_pid();
  cluster.host("a").kill9();
  ::kill(served_by, SIGKILL);
  wait_until("b takes over", Millis(60'000), [&] {
    return cluster.ctl({"failover", "vm1"}).exit_code == 0;
  });
  CHECK(cluster.primary_host() == "b");
}

TEST_CASE("put back: a host that is rolled back whole, with image and log, is noticed") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  write_blocks(cluster, 1);
  const std::string state = cluster.host("b").state_directory();
  const std::string image = cluster.image_path("b");
  cluster.host("b").stop();
  const std::string kept = cluster.directory() + "/kept";
  fs::copy(state, kept, fs::copy_options::recursive);
  fs::copy_file(image, kept + "/image.raw");
  const auto changed = fs::last_write_time(image);
  cluster.host("b").start();
  cluster.wait_streaming();
  write_blocks(cluster, 2);
  cluster.host("b").stop();
  fs::remove_all(state);
  fs::copy(kept, state, fs::copy_options::recursive);
  fs::remove(state + "/image.raw");
  fs::copy_file(kept + "/image.raw", image, fs::copy_options::overwrite_existing);
  fs::last_write_time(image, changed);  // nothing tells the image from what the file says of it
  cluster.host("b").start();
  wait_noticed(cluster, "b");
  cluster.ctl_ok({"readmit", "vm1", "--host=b"});
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  cluster.stop_and_compare();
}

TEST_CASE(
    "put back: a primary with an older state file serves nothing, and follows who takes over") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  write_blocks(cluster, 1);
  cluster.deactivate();
  cluster.host("a").stop();
  const StateFile file(cluster, "a");
  cluster.host("a").start();
  cluster.activate();
  cluster.wait_streaming();
  write_blocks(cluster, 2);
  cluster.deactivate();
  cluster.host("a").stop();
  file.put_back();
  cluster.host("a").start();
  wait_noticed(cluster, "a");
  const Finished refused = cluster.ctl({"activate", "vm1"});
  CHECK(refused.exit_code != 0);
  CHECK_MESSAGE(contains(refused.err, "older copy that was put back"), refused.text());
  fail_over_and_readmit(cluster, "a", 2);
}

TEST_CASE("put back: nobody there to tell, the image beside the older state file does") {
  Cluster cluster(3);
  cluster.create({});
  cluster.activate();
  cluster.wait_streaming();
  write_blocks(cluster, 1);
  const StateFile file = copy_and_go_on(cluster);
  cluster.deactivate();
  for (const char* host : {"a", "c"})
    cluster.host(host).stop();
  file.put_back();
  cluster.host("b").start();
  wait_until("b says that its image is another one", Millis(30'000), [&] {
    const auto view = cluster.host("b").get("/v1/volumes/vm1");
    return view && view->at("state") == "failed" &&
           contains(view->at("error").at("message").get<std::string>(),
                    "somebody has written to it");
  });
  cluster.host("a").start();
  cluster.host("c").start();
  wait_noticed(cluster, "b");
}

}  // namespace
}  // namespace replicad::e2e
