// An `async` primary that is cut off from the voters, or was replaced without its knowledge.
#include <atomic>
#include <thread>

#include <doctest/doctest.h>
#include <signal.h>

#include "tests/e2e/load.h"

namespace replicad::e2e {
namespace {

bool is_held_for(Cluster& cluster, const std::string& host, const std::string& reason) {
  const auto view = cluster.host(host).get("/v1/volumes/vm1");
  return view && view->at("state") == "held" && view->at("error").is_object() &&
         view->at("error").at("message").get<std::string>().find(reason) != std::string::npos;
}

/// One write in a thread of its own.
class LateWrite {
 public:
  LateWrite(const std::string& uri, std::uint64_t offset)
      : client_(uri), thread_([this, offset] {
          try {
            client_.write(offset, std::vector<std::byte>(block_bytes, std::byte{9}));
            outcome_ = "answered";
          } catch (const NbdError& error) {
            outcome_ = error.connection_lost ? "connection lost" : error.what();
          }
          done_ = true;
        }) {}
  LateWrite(const LateWrite&) = delete;
  LateWrite& operator=(const LateWrite&) = delete;
  ~LateWrite() { thread_.join(); }
  [[nodiscard]] bool is_done() const { return done_; }
  [[nodiscard]] const std::string& outcome() const { return outcome_; }

 private:
  NbdClient client_;
  std::string outcome_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

TEST_CASE(
    "cut off: an async primary that hears nobody holds, and goes on when it hears them again") {
  Cluster cluster(3);
  cluster.create({.mode = "async", .create_options = {"--set=ack-timeout=1s"}});
  cluster.activate();
  cluster.wait_streaming();
  const std::string uri = cluster.uri();
  {
    NbdClient client(uri);
    client.write(0, std::vector<std::byte>(block_bytes, std::byte{1}));
  }
  cluster.host("b").signal(SIGSTOP);
  cluster.host("c").signal(SIGSTOP);
  wait_until("a holds", Millis(30'000), [&] {
    return is_held_for(cluster, "a", "no majority of the voters has been heard");
  });
  {
    LateWrite late(uri, block_bytes);
    // What waits is seen to wait; one voter of the two is enough to go on.
    wait_until("it is still held", Millis(30'000), [&] {
      return is_held_for(cluster, "a", "no majority of the voters has been heard");
    });
    CHECK_FALSE(late.is_done());
    cluster.host("b").signal(SIGCONT);
    wait_until("it is answered", Millis(60'000), [&] { return late.is_done(); });
    CHECK(late.outcome() == "answered");
  }
  cluster.host("c").signal(SIGCONT);
  cluster.wait_streaming();
  cluster.stop_and_compare();
}

TEST_CASE("cut off: an async primary of two with a witness needs one of them") {
  Cluster cluster(3);
  cluster.create({.mode = "async",
                  .members = {"a", "b"},
                  .create_options = {"--witness=c", "--set=ack-timeout=1s"}});
  cluster.activate();
  cluster.wait_streaming("vm1", {"b"});
  NbdClient client(cluster.uri());
  cluster.host("b").kill9();
  // The witness is heard by replicad.
  for (std::uint64_t i = 0; i < 3; ++i) {
    wait_until("b has left the set", Millis(30'000), [&] {
      return cluster.volume("a").at("in_sync") == json::array({"a"});
    });
    client.write(i * block_bytes, std::vector<std::byte>(block_bytes, std::byte{2}));
  }
  CHECK(cluster.volume("a").at("state") == "serving");
  cluster.host("c").kill9();
  wait_until("a holds", Millis(30'000), [&] {
    return is_held_for(cluster, "a", "no majority of the voters has been heard");
  });
  cluster.host("c").start();
  client.write(0, std::vector<std::byte>(block_bytes, std::byte{3}));
}

TEST_CASE("cut off: an async primary that was replaced answers nothing any more") {
  Cluster cluster(3);
  cluster.create({.mode = "async", .create_options = {"--set=ack-timeout=2s"}});
  cluster.activate();
  cluster.wait_streaming();
  const std::string uri = cluster.uri();
  {
    NbdClient client(uri);
    client.write(0, std::vector<std::byte>(block_bytes, std::byte{1}));
  }
  // Its replicad cannot tell it; the members refuse its sessions.
  cluster.host("a").signal(SIGSTOP);
  const Finished forced = cluster.ctl({"failover", "vm1", "--to=b", "--force"});
  CHECK_MESSAGE(forced.exit_code == 0, forced.text());
  wait_until("c follows b", Millis(30'000), [&] {
    const auto view = cluster.host("b").get("/v1/volumes/vm1");
    if (!view || view->value("state", "") != "serving") return false;
    for (const json& replica : view->at("replicas")) {
      if (replica.at("host") == "c") return replica.at("state") == "streaming";
    }
    return false;
  });
  {
    LateWrite late(uri, block_bytes);
    // It ends with the export, unanswered.
    cluster.host("a").signal(SIGCONT);
    wait_until("a is a replica", Millis(60'000), [&] {
      const auto view = cluster.host("a").get("/v1/volumes/vm1");
      return view && view->at("role") == "replica";
    });
    wait_until("the write has ended", Millis(30'000), [&] { return late.is_done(); });
    CHECK(late.outcome() == "connection lost");
  }
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  cluster.stop_and_compare();
}

}  // namespace
}  // namespace replicad::e2e
