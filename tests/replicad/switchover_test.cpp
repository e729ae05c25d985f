// Switchovers between hosts with stand-ins for nbdkit, and what happens when a step of it fails.

#include <httplib.h>

#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

using nlohmann::json;

std::string message_of(const PeerAnswer& answer) {
  return answer.body.at("error").at("message").get<std::string>();
}

/// The old primary serves on as if nothing had been asked.
void check_still_serving(const TestHost& host) {
  const json shown = host.get("vm1");
  CHECK(shown.at("role") == "primary");
  CHECK(eventually([&] { return host.shows("vm1", "state", "serving"); }));
  CHECK(shown.at("transfer").is_null());
  CHECK_FALSE(host.disk_state("vm1").transfer.has_value());
}

TEST_CASE("switchover: the role moves with its export, there and back") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer moved = a.post("vm1", "switchover", {{"to", "b"}});
  REQUIRE_MESSAGE(moved.ok(), moved.body.dump());
  const json& proof = moved.body;
  CHECK(proof.at("from") == "a");
  CHECK(proof.at("to") == "b");
  CHECK(proof.at("equal") == true);
  CHECK(proof.at("held_ms") >= 1.5);
  CHECK(proof.at("primary_digest") == std::string(32, '0'));
  CHECK(proof.at("replicas")[0].at("host") == "b");
  CHECK(proof.at("export").at("socket") == b.run_file("vm1.sock"));
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "release"});

  const VolumeState at_b = b.disk_state("vm1");
  CHECK(at_b.primary == "b");
  CHECK(at_b.active);
  const VolumeState at_a = a.disk_state("vm1");
  CHECK(at_a.primary == "b");
  CHECK(at_a.clean);
  CHECK_FALSE(at_a.active);
  CHECK_FALSE(at_a.transfer.has_value());
  CHECK(at_b.epoch.number >= at_a.epoch.number);
  CHECK(a.shows("vm1", "role", "replica"));
  CHECK(b.shows("vm1", "state", "serving"));
  CHECK(a.post("vm1", "activate").status == 409);

  const PeerAnswer back = b.post("vm1", "switchover", {{"to", "a"}});
  REQUIRE_MESSAGE(back.ok(), back.body.dump());
  CHECK(a.shows("vm1", "state", "serving"));
  CHECK(b.shows("vm1", "role", "replica"));
  a.restart();
  CHECK(eventually([&] { return a.shows("vm1", "state", "serving"); }));
  CHECK(a.post("vm1", "deactivate").ok());
}

TEST_CASE("switchover: a stopped volume moves without an export") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  const PeerAnswer moved = a.post("vm1", "switchover", {{"to", "b"}});
  REQUIRE_MESSAGE(moved.ok(), moved.body.dump());
  CHECK(moved.body.at("export").is_null());
  CHECK(moved.body.at("held_ms") == 0);
  CHECK(b.shows("vm1", "state", "stopped"));
  CHECK(b.shows("vm1", "role", "primary"));
  CHECK(a.shows("vm1", "role", "replica"));
  CHECK(b.post("vm1", "activate").ok());
  CHECK(b.post("vm1", "deactivate").ok());
}

TEST_CASE("switchover: a dry run proves and changes nothing") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  for (const bool serving : {false, true}) {
    if (serving) {
      REQUIRE(a.post("vm1", "activate").ok());
      REQUIRE(eventually([&] { return !a.get("vm1").at("replicas")[0].at("sent").is_null(); }));
    }
    const std::string before = file_text(a.state_file("vm1"));
    const PeerAnswer proof = a.post("vm1", "switchover", {{"to", "b"}, {"dry_run", true}});
    REQUIRE_MESSAGE(proof.ok(), proof.body.dump());
    CHECK(proof.body.at("dry_run") == true);
    CHECK(proof.body.at("export").is_null());
    CHECK(file_text(a.state_file("vm1")) == before);
  }
  CHECK(a.plugin_ops("vm1").empty());
  CHECK(b.shows("vm1", "role", "replica"));
}

TEST_CASE("switchover: what preflight finds is refused before the guest is held") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  CHECK(a.post("vm1", "switchover", {{"to", "a"}}).status == 400);
  CHECK(a.post("vm1", "switchover", {{"to", "z"}}).status == 404);
  CHECK(a.post("vm1", "switchover", {{"to", nullptr}}).status == 400);
  CHECK(a.post("vm1", "switchover", {{"to", "b"}, {"deadline_ms", 0}}).status == 400);
  CHECK(b.post("vm1", "switchover", {{"to", "a"}}).status == 409);
  b.stop();
  const PeerAnswer unreachable = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK(unreachable.status == 502);
  CHECK(message_of(unreachable).find("b does not answer") != std::string::npos);
  CHECK(a.plugin_ops("vm1").empty());
  CHECK(a.disk_state("vm1").epoch.number == 1);
  check_still_serving(a);
}

TEST_CASE("switchover: a member that is not in sync is refused") {
  TestHost a("a");
  TestHost b("b");
  const std::vector<json> members{a.member(), b.member()};
  for (const TestHost* host : {&a, &b}) {
    json body = create_body("vm1", "a", members);
    body["in_sync"] = {"a"};
    REQUIRE(host->ask("POST", "/v1/volumes", body).ok());
  }
  const PeerAnswer refused = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK(refused.status == 409);
  CHECK(message_of(refused).find("not in sync") != std::string::npos);
}

TEST_CASE("switchover: when the hold fails, the reason is the plugin's and nothing has changed") {
  TestHost a("a", "refuse-hold");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer refused = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK(refused.status == 504);
  CHECK(message_of(refused).find("the target lags behind") != std::string::npos);
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold"});
  CHECK(a.disk_state("vm1").epoch.number == 1);
  check_still_serving(a);
}

TEST_CASE(
    "switchover: a target that compares and differs refuses, and the old primary goes on two "
    "epochs up") {
  // The stand-in says it is at write 5, which the replica has never seen.
  TestHost a("a", "sequence=5");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer refused = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_FALSE(refused.ok());
  CHECK(message_of(refused).find("has not been moved") != std::string::npos);
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "resume"});
  const VolumeState at_a = a.disk_state("vm1");
  CHECK(at_a.epoch.number == 3);
  CHECK(a.last_plugin_request("vm1").at("epoch") == json{{"number", 3}, {"tag", at_a.epoch.tag}});
  CHECK(b.disk_state("vm1").epoch == at_a.epoch);
  CHECK(b.disk_state("vm1").primary == "a");
  check_still_serving(a);
}

TEST_CASE("switchover: a target whose export does not start puts itself back") {
  TestHost a("a");
  TestHost b("b", "early");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer refused = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_FALSE(refused.ok());
  CHECK(message_of(refused).find("stands on its head") != std::string::npos);
  check_still_serving(a);
  const VolumeState at_b = b.disk_state("vm1");
  CHECK(at_b.primary == "a");
  CHECK(at_b.clean);
  CHECK(at_b.epoch == a.disk_state("vm1").epoch);
  CHECK(eventually([&] { return b.shows("vm1", "state", "disconnected"); }));
  CHECK(b.get("vm1").at("replica").at("consistent") == true);
}

TEST_CASE(
    "switchover: a target that claimed and never served puts itself back, and epochs stay "
    "ordered") {
  TestHost a("a");
  TestHost b("b", "mute");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  CHECK_FALSE(a.post("vm1", "switchover", {{"to", "b"}}).ok());
  check_still_serving(a);
  // The claim at b used the number that the fence would have had.
  CHECK(a.disk_state("vm1").epoch.number > 3);
  CHECK(b.disk_state("vm1").epoch == a.disk_state("vm1").epoch);
  CHECK(b.shows("vm1", "role", "replica"));
}

TEST_CASE(
    "switchover: a target that is gone when the offer is made changes nothing but the epoch") {
  TestHost a("a", "wait-hold");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  PeerAnswer answer;
  std::thread request([&] { answer = a.post("vm1", "switchover", {{"to", "b"}}); });
  const bool held =
      eventually([&] { return a.plugin_ops("vm1") == std::vector<std::string>{"hold"}; });
  b.stop();
  std::ofstream(a.run_file("vm1.go")) << "go";
  request.join();
  REQUIRE(held);
  CHECK_FALSE(answer.ok());
  CHECK(message_of(answer).find("has not been moved") != std::string::npos);
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "resume"});
  CHECK(a.disk_state("vm1").epoch.number == 3);
  check_still_serving(a);
}

TEST_CASE("switchover: two at once are one") {
  TestHost a("a", "wait-hold");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  PeerAnswer answer;
  std::thread request([&] { answer = a.post("vm1", "switchover", {{"to", "b"}}); });
  const bool held =
      eventually([&] { return a.plugin_ops("vm1") == std::vector<std::string>{"hold"}; });
  const PeerAnswer second = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK(second.status == 409);
  CHECK(message_of(second).find("switchover is under way") != std::string::npos);
  CHECK(a.post("vm1", "deactivate").status == 409);
  std::ofstream(a.run_file("vm1.go")) << "go";
  request.join();
  REQUIRE(held);
  CHECK_MESSAGE(answer.ok(), answer.body.dump());
}

/// A host that takes promotions and says nothing, and answers questions as it is told.
class SilentTarget {
 public:
  SilentTarget() {
    server_.Post("/v1/volumes/vm1/promote",
                 [this](const httplib::Request& request, httplib::Response& response) {
                   offered = json::parse(request.body);
                   ++promotions;
                   // Closes without an answer.
                   response.set_content_provider(
                       10, "application/json", [](std::size_t, std::size_t, httplib::DataSink&) {
                         return false;
                       });
                 });
    server_.Post("/v1/volumes/vm1/fence",
                 [this](const httplib::Request& request, httplib::Response& response) {
                   fenced = json::parse(request.body).at("epoch");
                   ++fences;
                   response.set_content("{\"schema\":1}", "application/json");
                 });
    server_.Get("/v1/volumes/vm1", [this](const httplib::Request&, httplib::Response& response) {
      const std::lock_guard lock(mutex_);
      if (promotions > 0 && refusals_left_ > 0) {
        --refusals_left_;
        response.status = 500;
        response.set_content("{}", "application/json");
        return;
      }
      json view = promotions > 0 && !view_after_offer_.is_null() ? view_after_offer_ : view_;
      if (promotions > 0 && promoted_) {
        view["role"] = "primary";
        view["primary"] = "b";
        view["replicas"] = json::array();
        view["epoch"] = offered.at("epoch");
      }
      if (promotions > 0 && deciding_left_ > 0) {
        --deciding_left_;
        view["operation"] = "promote";
      }
      response.set_content(view.dump(), "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    eventually([this] { return server_.is_running(); });
  }
  SilentTarget(const SilentTarget&) = delete;
  SilentTarget& operator=(const SilentTarget&) = delete;
  ~SilentTarget() {
    server_.stop();
    thread_.join();
  }

  [[nodiscard]] json member() const {
    return {
        {"host", "b"}, {"stream", "127.0.0.1:1"}, {"control", fmt::format("127.0.0.1:{}", port_)}};
  }
  /// `view`: what a real replica would say. `promoted`: it has taken the offer it did not answer.
  void play(const json& view, bool promoted, int refusals, int deciding) {
    const std::lock_guard lock(mutex_);
    view_ = view;
    promoted_ = promoted;
    refusals_left_ = refusals;
    deciding_left_ = deciding;
  }

  /// What it shows once it has been offered the role.
  void play_after_offer(const json& view) {
    const std::lock_guard lock(mutex_);
    view_after_offer_ = view;
  }

  std::atomic<int> promotions{0};
  std::atomic<int> fences{0};
  json offered;
  json fenced;

 private:
  httplib::Server server_;
  std::mutex mutex_;
  json view_;
  json view_after_offer_;
  bool promoted_ = false;
  int refusals_left_ = 0;
  int deciding_left_ = 0;
  int port_ = 0;
  std::thread thread_;
};

/// A replica's view of the volume, made by a real one.
json replica_view(const TestHost& a, const SilentTarget& target) {
  const TestHost b("b");
  json body = create_body("vm1", "a", {a.member(), target.member()});
  const PeerAnswer made = b.ask("POST", "/v1/volumes", body);
  REQUIRE_MESSAGE(made.ok(), made.body.dump());
  return made.body;
}

TEST_CASE("switchover: an offer without an answer is settled by asking: it was taken") {
  TestHost a("a");
  SilentTarget target;
  REQUIRE(
      a.ask("POST", "/v1/volumes", create_body("vm1", "a", {a.member(), target.member()})).ok());
  target.play(replica_view(a, target), true, 2, 2);
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_MESSAGE(answer.ok(), answer.body.dump());
  CHECK(target.fences == 0);
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "release"});
  CHECK(a.disk_state("vm1").primary == "b");
  CHECK_FALSE(a.disk_state("vm1").transfer.has_value());
}

TEST_CASE(
    "switchover: an offer without an answer is settled by asking: it was not taken, and never will "
    "be") {
  TestHost a("a");
  SilentTarget target;
  REQUIRE(
      a.ask("POST", "/v1/volumes", create_body("vm1", "a", {a.member(), target.member()})).ok());
  target.play(replica_view(a, target), false, 2, 2);
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_FALSE(answer.ok());
  CHECK(target.fences == 1);
  CHECK(target.fenced.at("number") == 3);
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "resume"});
  check_still_serving(a);
}

TEST_CASE(
    "switchover: unsettled it outlives a restart, holds the guest, and settles when the target "
    "answers") {
  for (const bool promoted : {false, true}) {
    CAPTURE(promoted);
    TestHost a("a");
    SilentTarget target;
    REQUIRE(
        a.ask("POST", "/v1/volumes", create_body("vm1", "a", {a.member(), target.member()})).ok());
    const json view = replica_view(a, target);
    target.play(view, promoted, 1'000'000, 0);
    REQUIRE(a.post("vm1", "activate").ok());
    const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}, {"deadline_ms", 3000}});
    CHECK(answer.status == 504);
    CHECK(a.shows("vm1", "state", "transferring"));
    CHECK(a.disk_state("vm1").transfer.has_value());
    CHECK(a.post("vm1", "switchover", {{"to", "b"}}).status == 409);
    a.restart();
    CHECK(a.shows("vm1", "state", "transferring"));
    CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal"});
    target.play(view, promoted, 0, 0);
    REQUIRE(eventually([&] { return !a.disk_state("vm1").transfer.has_value(); }));
    if (promoted) {
      CHECK(eventually([&] { return a.shows("vm1", "role", "replica"); }));
      CHECK(eventually([&] { return a.plugin_ops("vm1").back() == "release"; }));
    } else {
      CHECK(eventually([&] { return a.plugin_ops("vm1").back() == "resume"; }));
      check_still_serving(a);
    }
  }
}

TEST_CASE("switchover: a target that cannot read its state, or has lost it, has not said no") {
  TestHost a("a");
  SilentTarget target;
  REQUIRE(
      a.ask("POST", "/v1/volumes", create_body("vm1", "a", {a.member(), target.member()})).ok());
  json view = replica_view(a, target);
  target.play(view, false, 0, 0);
  REQUIRE(a.post("vm1", "activate").ok());
  // From the offer on it shows what replicad shows of a damaged state file.
  json broken = view;
  broken["uuid"] = "00000000-0000-0000-0000-000000000000";
  broken["primary"] = "";
  broken["state"] = "failed";
  broken["error"] = {{"code", "corrupt"}, {"message", "damaged"}, {"hint", ""}};
  target.play_after_offer(broken);
  const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}, {"deadline_ms", 3000}});
  CHECK(answer.status == 504);
  CHECK(message_of(answer).find("damaged") != std::string::npos);
  CHECK(target.fences == 0);
  CHECK(a.disk_state("vm1").transfer.has_value());
  CHECK(a.get("vm1").at("error").at("message").get<std::string>().find("not known") !=
        std::string::npos);
  target.play_after_offer(view);
  CHECK(eventually([&] { return !a.disk_state("vm1").transfer.has_value(); }));
  check_still_serving(a);
}

TEST_CASE(
    "switchover: an unsettled one whose export died is clean at its point when the target says "
    "no") {
  TestHost a("a");
  SilentTarget target;
  REQUIRE(
      a.ask("POST", "/v1/volumes", create_body("vm1", "a", {a.member(), target.member()})).ok());
  const json view = replica_view(a, target);
  target.play(view, false, 1'000'000, 0);
  const PeerAnswer started = a.post("vm1", "activate");
  REQUIRE(started.ok());
  CHECK(a.post("vm1", "switchover", {{"to", "b"}, {"deadline_ms", 3000}}).status == 504);
  ::kill(started.body.at("pid").get<int>(), SIGKILL);
  target.play(view, false, 0, 0);
  REQUIRE(eventually([&] { return !a.disk_state("vm1").transfer.has_value(); }));
  const VolumeState state = a.disk_state("vm1");
  CHECK(state.clean);
  CHECK(state.epoch.number == 3);
  CHECK(state.in_sync == std::vector<std::string>{"a", "b"});
  CHECK(eventually([&] { return a.shows("vm1", "state", "stopped"); }));
}

TEST_CASE("promote and fence: only what the rules allow, durably") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  const json point = {
      {"epoch", {{"number", 0}, {"tag", 0}}}, {"sequence", 0}, {"digest", std::string(32, '0')}};
  const auto promote = [&](const json& change) {
    json body = {{"from", "a"},
                 {"epoch", {{"number", 9}, {"tag", 1}}},
                 {"history", point},
                 {"in_sync", {"a", "b"}},
                 {"activate", false}};
    body.merge_patch(change);
    return b.post("vm1", "promote", body);
  };
  CHECK(promote({{"from", "z"}}).status == 409);
  CHECK(promote({{"in_sync", {"a"}}}).status == 409);
  CHECK(promote({{"history", {{"sequence", 7}}}}).status == 409);
  CHECK(promote({{"history", {{"digest", std::string(32, 'f')}}}, {"epoch", {{"number", 20}}}})
            .status == 409);
  CHECK(b.disk_state("vm1").primary == "a");
  CHECK(eventually([&] { return b.shows("vm1", "state", "disconnected"); }));

  CHECK(b.post("vm1", "fence", {{"epoch", {{"number", 30}, {"tag", 5}}}}).ok());
  CHECK(b.disk_state("vm1").epoch == Epoch{30, 5});
  CHECK(b.post("vm1", "fence", {{"epoch", {{"number", 30}, {"tag", 5}}}}).ok());
  CHECK(b.post("vm1", "fence", {{"epoch", {{"number", 30}, {"tag", 6}}}}).status == 409);
  CHECK(promote({{"epoch", {{"number", 30}}}}).status == 409);
  CHECK(a.post("vm1", "fence", {{"epoch", {{"number", 30}, {"tag", 5}}}}).status == 409);

  CHECK(eventually([&] { return promote({{"epoch", {{"number", 31}}}}).ok(); }));
  CHECK(b.disk_state("vm1").primary == "b");
  CHECK(b.shows("vm1", "state", "stopped"));
}

}  // namespace
}  // namespace replicad
