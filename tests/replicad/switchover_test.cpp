// Switchovers between hosts with stand-ins for nbdkit, and what happens when a step of it fails.

#include <filesystem>
#include <fstream>

#include <httplib.h>

#include "core/store/log_segment.h"
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

TEST_CASE("switchover: what a promotion has left of its log does not pass for a damaged one") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  // As if a had ended between the record of its promotion and the removal of the log.
  const auto log = std::filesystem::path(a.state_file("vm1")).parent_path() / "log";
  std::filesystem::create_directories(log);
  std::ofstream(log / segment_file_name(5)) << std::string(2 * segment_header_bytes, 'x');
  REQUIRE(a.post("vm1", "switchover", {{"to", "b"}}).ok());
  CHECK_FALSE(std::filesystem::exists(log / segment_file_name(5)));
  CHECK(a.shows("vm1", "role", "replica"));
  CHECK_FALSE(a.shows("vm1", "state", "failed"));
  CHECK(a.get("vm1").at("error").is_null());
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
    const VolumeState before = a.disk_state("vm1");
    const PeerAnswer proof = a.post("vm1", "switchover", {{"to", "b"}, {"dry_run", true}});
    REQUIRE_MESSAGE(proof.ok(), proof.body.dump());
    CHECK(proof.body.at("dry_run") == true);
    CHECK(proof.body.at("export").is_null());
    CHECK(a.disk_state("vm1") == before);
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
  const TestHost a("a");
  const TestHost b("b");
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

/// Stands before a host's control API: passes on, loses answers, or cuts the host off.
class ControlProxy {
 public:
  explicit ControlProxy(const TestHost& behind) : behind_(behind.member()) {
    const auto pass = [this](const httplib::Request& request, httplib::Response& response) {
      handle(request, response);
    };
    server_.Get(".*", pass);
    server_.Post(".*", pass);
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    eventually([this] { return server_.is_running(); });
  }
  ControlProxy(const ControlProxy&) = delete;
  ControlProxy& operator=(const ControlProxy&) = delete;
  ~ControlProxy() {
    server_.stop();
    thread_.join();
  }

  [[nodiscard]] json member() const {
    json member = behind_;
    member["control"] = fmt::format("127.0.0.1:{}", port_);
    return member;
  }

  std::atomic<bool> cut{false};             ///< nothing passes
  std::atomic<bool> swallow_offer{false};   ///< `promote` does not pass
  std::atomic<bool> swallow_answer{false};  ///< `promote` passes, its answer does not
  std::atomic<bool> cut_by_offer{false};    ///< `promote` sets `cut`
  ControlProxy* also_cut = nullptr;         ///< with it
  std::function<void()> at_offer;           ///< before `promote` passes
  std::atomic<int> offers{0};

 private:
  static void hang_up(httplib::Response& response) {
    response.set_content_provider(
        10, "application/json", [](std::size_t, std::size_t, httplib::DataSink&) { return false; });
  }
  void handle(const httplib::Request& request, httplib::Response& response) {
    const bool offer = request.path.ends_with("/promote");
    if (offer) ++offers;
    if (offer && at_offer) at_offer();
    if (offer && cut_by_offer) cut = true;
    if (offer && also_cut != nullptr) also_cut->cut = true;
    if (cut || (offer && swallow_offer)) return hang_up(response);
    const auto answer = ask_peer({behind_.at("control"),
                                  request.method,
                                  request.path,
                                  json::parse(request.body, nullptr, false),
                                  std::chrono::seconds(30)});
    if (!answer || (offer && swallow_answer)) return hang_up(response);
    response.status = answer->status;
    response.set_content(answer->body.dump(), "application/json");
  }

  httplib::Server server_;
  json behind_;
  int port_ = 0;
  std::thread thread_;
};

/// Creates "vm1" with the given members on `hosts`, the first of which is the primary.
void create_with(const std::vector<const TestHost*>& hosts, const std::vector<json>& members) {
  for (const TestHost* host : hosts) {
    const PeerAnswer made =
        host->ask("POST", "/v1/volumes", create_body("vm1", hosts.front()->name(), members));
    REQUIRE_MESSAGE(made.ok(), made.body.dump());
  }
}

TEST_CASE("switchover: that a move is under way is on the disk before the target is asked") {
  const TestHost a("a");
  const TestHost b("b");
  ControlProxy proxy(b);
  std::optional<TransferState> found;
  proxy.at_offer = [&] { found = a.disk_state("vm1").transfer; };
  create_with({&a, &b}, {a.member(), proxy.member()});
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_MESSAGE(answer.ok(), answer.body.dump());
  REQUIRE(found);
  CHECK(found->to == "b");
  CHECK_FALSE(a.disk_state("vm1").transfer.has_value());
}

TEST_CASE("switchover: an offer without an answer is settled by the voters: it was taken") {
  const TestHost a("a");
  const TestHost b("b");
  ControlProxy proxy(b);
  create_with({&a, &b}, {a.member(), proxy.member()});
  proxy.swallow_answer = true;
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_MESSAGE(answer.ok(), answer.body.dump());
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "release"});
  CHECK(a.disk_state("vm1").primary == "b");
  CHECK(a.disk_state("vm1").clean);
  CHECK_FALSE(a.disk_state("vm1").transfer.has_value());
  CHECK(b.shows("vm1", "state", "serving"));
}

TEST_CASE(
    "switchover: an offer without an answer is settled by the voters: it was not taken, and never "
    "will be") {
  const TestHost a("a");
  const TestHost b("b");
  ControlProxy proxy(b);
  create_with({&a, &b}, {a.member(), proxy.member()});
  proxy.swallow_offer = true;
  REQUIRE(a.post("vm1", "activate").ok());
  const Record before = *a.disk_state("vm1").vote.record;
  const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}});
  CHECK_FALSE(answer.ok());
  CHECK(proxy.offers == 1);
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal", "resume"});
  check_still_serving(a);
  const Record after = *a.disk_state("vm1").vote.record;
  CHECK(after.epoch.number == before.epoch.number + 2);
  CHECK(after.in_sync == before.in_sync);
  // The offer comes late.
  const json late = {
      {"from", "a"},
      {"term", {{"number", before.epoch.number}, {"tag", before.epoch.tag}}},
      {"epoch", {{"number", 99}, {"tag", 1}}},
      {"history",
       {{"epoch", {{"number", 0}, {"tag", 0}}}, {"sequence", 0}, {"digest", std::string(32, '0')}}},
      {"activate", true}};
  const PeerAnswer refused = b.post("vm1", "promote", late);
  CHECK(refused.status == 409);
  CHECK(refused.body.at("error").at("code") == "stale_epoch");
  CHECK(b.shows("vm1", "role", "replica"));
}

TEST_CASE(
    "switchover: without a quorum it stays open, outlives a restart, holds the guest, and settles "
    "when voters answer") {
  for (const bool export_dies : {false, true}) {
    CAPTURE(export_dies);
    TestHost a("a");
    const TestHost b("b");
    const TestHost c("c");
    ControlProxy to_b(b);
    ControlProxy to_c(c);
    create_with({&a, &b, &c}, {a.member(), to_b.member(), to_c.member()});
    to_b.cut_by_offer = true;
    to_b.also_cut = &to_c;
    const PeerAnswer started = a.post("vm1", "activate");
    REQUIRE(started.ok());
    const PeerAnswer answer = a.post("vm1", "switchover", {{"to", "b"}, {"deadline_ms", 3000}});
    CHECK(answer.status == 504);
    CHECK(a.shows("vm1", "state", "transferring"));
    CHECK(a.disk_state("vm1").transfer.has_value());
    // Not while it is being settled.
    CHECK(eventually([&] {
      const json error = a.get("vm1").at("error");
      return error.is_object() &&
             error.at("message").get<std::string>().find("not known") != std::string::npos;
    }));
    CHECK(a.post("vm1", "switchover", {{"to", "b"}}).status == 409);
    if (export_dies) {
      ::kill(started.body.at("pid").get<int>(), SIGKILL);
    } else {
      a.restart();
    }
    CHECK(a.shows("vm1", "state", "transferring"));
    CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"hold", "seal"});
    to_b.cut_by_offer = to_b.cut = to_c.cut = false;
    REQUIRE(eventually([&] { return !a.disk_state("vm1").transfer.has_value(); }));
    if (export_dies) {
      const VolumeState state = a.disk_state("vm1");
      CHECK(state.clean);
      CHECK(state.in_sync == std::vector<std::string>{"a", "b", "c"});
      CHECK(eventually([&] { return a.shows("vm1", "state", "stopped"); }));
    } else {
      CHECK(eventually([&] { return a.plugin_ops("vm1").back() == "resume"; }));
      check_still_serving(a);
    }
  }
}

TEST_CASE("promote: only what the rules allow, durably") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  const json point = {
      {"epoch", {{"number", 0}, {"tag", 0}}}, {"sequence", 0}, {"digest", std::string(32, '0')}};
  const auto promote = [&](const json& change) {
    json body = {{"from", "a"},
                 {"term", {{"number", 0}, {"tag", 0}}},
                 {"epoch", {{"number", 9}, {"tag", 1}}},
                 {"history", point},
                 {"activate", false}};
    body.merge_patch(change);
    return b.post("vm1", "promote", body);
  };
  CHECK(promote({{"from", "z"}}).status == 409);
  CHECK(promote({{"history", {{"sequence", 7}}}}).status == 409);
  CHECK(promote({{"history", {{"digest", std::string(32, 'f')}}}, {"epoch", {{"number", 20}}}})
            .status == 409);
  CHECK(promote({{"epoch", {{"number", 19}}}}).status == 409);
  CHECK(promote({{"term", {{"number", 5}}}, {"epoch", {{"number", 30}}}}).status == 409);
  CHECK(b.disk_state("vm1").primary == "a");
  CHECK(eventually([&] { return b.shows("vm1", "state", "disconnected"); }));

  CHECK(eventually([&] { return promote({{"epoch", {{"number", 31}}}}).ok(); }));
  CHECK(b.disk_state("vm1").primary == "b");
  CHECK(b.shows("vm1", "state", "stopped"));
  // The old primary hears of it as a voter, and gives its role up by itself.
  CHECK(eventually([&] { return a.shows("vm1", "role", "replica"); }));
  CHECK(a.disk_state("vm1").clean);
}

// --- the switchover of a live migration

/// A request of the standby at `host`, as the plugin sends it.
class StandbyRequest {
 public:
  StandbyRequest(const TestHost& host, const std::string& op, std::uint64_t id, json fields = {})
      : peer_(host.connect_agent().value()) {
    fields["id"] = 1;
    fields["op"] = op;
    fields["volume"] = "vm1";
    fields["standby"] = id;
    peer_.send(FrameType::agent_request, fields);
  }
  /// Whether it is let through.
  bool is_granted() {
    const auto received = peer_.receive(std::chrono::seconds(20));
    return received && received->message.value("ok", false);
  }
  /// Whether it was refused, or its connection ended, by now.
  bool is_over() { return peer_.receive(milliseconds(0)).has_value(); }

 private:
  using milliseconds = std::chrono::milliseconds;
  AgentPeer peer_;
};

std::uint64_t prepare_handover(const TestHost& from, const std::string& to) {
  const PeerAnswer prepared = from.post("vm1", "handover", {{"to", to}});
  REQUIRE_MESSAGE(prepared.ok(), prepared.body.dump());
  return prepared.body.at("id").get<std::uint64_t>();
}

std::string told_mode(const TestHost& host) {
  std::string mode;
  for (const json& request : host.plugin_requests("vm1")) {
    if (request.at("op") == "set") mode = request.at("settings").at("mode").get<std::string>();
  }
  return mode;
}

TEST_CASE("handover: the standby's first write moves the role, the source's takes it back") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  const std::uint64_t id = prepare_handover(a, "b");
  CHECK(a.plugin_ops("vm1") == std::vector<std::string>{"set", "hold", "resume"});
  CHECK(b.get("vm1").at("handover").at("export").at("socket") == b.run_file("vm1.sock"));
  CHECK(b.shows("vm1", "role", "replica"));
  CHECK(StandbyRequest(b, "gate", id, {{"durable", false}}).is_granted());
  CHECK(StandbyRequest(b, "gate", id, {{"durable", true}}).is_granted());
  CHECK_FALSE(StandbyRequest(b, "gate", id + 1).is_granted());
  CHECK_FALSE(StandbyRequest(a, "want_role", id).is_granted());
  StandbyRequest write(b, "want_role", id);
  REQUIRE(eventually([&] { return b.shows("vm1", "state", "serving"); }));
  CHECK_FALSE(write.is_over());
  CHECK(eventually([&] { return a.get("vm1").at("handover").at("export").is_object(); }));
  CHECK(b.disk_state("vm1").vote.record->handover->term != 0);
  CHECK(StandbyRequest(a, "gate", id, {{"durable", true}}).is_granted());
  CHECK(StandbyRequest(a, "gate", id, {{"durable", false}}).is_granted());
  StandbyRequest back(a, "want_role", id);
  REQUIRE(eventually([&] { return a.shows("vm1", "state", "serving"); }));
  CHECK(b.plugin_requests("vm1").front().at("only_untouched") == true);
  CHECK_FALSE(a.disk_state("vm1").vote.record->handover.has_value());
  CHECK(eventually([&] { return b.get("vm1").at("handover").is_null(); }));
  CHECK_FALSE(StandbyRequest(b, "want_role", id).is_granted());
}

TEST_CASE("handover: the volume is sync from before the record until the end of it") {
  TestHost a("a");
  TestHost b("b");
  create_volume({&a, &b});
  for (const TestHost* host : {&a, &b})
    REQUIRE(host->post("vm1", "set", {{"settings", {{"mode", "async"}}}}).ok());
  REQUIRE(a.post("vm1", "activate").ok());
  prepare_handover(a, "b");
  const json first = a.plugin_requests("vm1").front();
  CHECK(first.at("op") == "set");
  CHECK(first.at("settings").at("mode") == "sync");
  CHECK(a.shows("vm1", "settings", b.get("vm1").at("settings")));
  // Whatever is set meanwhile.
  REQUIRE(a.post("vm1", "set", {{"settings", {{"mode", "semi-sync"}}}}).ok());
  CHECK(told_mode(a) == "sync");
  REQUIRE(a.post("vm1", "handover/end").ok());
  CHECK(eventually([&] { return told_mode(a) == "semi-sync"; }));
}

TEST_CASE("handover: where the hold fails nothing is on record, and the mode returns") {
  TestHost a("a", "refuse-hold");
  TestHost b("b");
  create_volume({&a, &b});
  for (const TestHost* host : {&a, &b})
    REQUIRE(host->post("vm1", "set", {{"settings", {{"mode", "async"}}}}).ok());
  REQUIRE(a.post("vm1", "activate").ok());
  CHECK_FALSE(a.post("vm1", "handover", {{"to", "b"}}).ok());
  CHECK(eventually([&] { return told_mode(a) == "async"; }));
  CHECK(a.get("vm1").at("handover").is_null());
}

TEST_CASE(
    "handover: where the target's standby does not start it is ended again, with the reason") {
  TestHost a("a");
  TestHost b("b", "early");
  create_volume({&a, &b});
  REQUIRE(a.post("vm1", "activate").ok());
  const PeerAnswer refused = a.post("vm1", "handover", {{"to", "b"}});
  CHECK_FALSE(refused.ok());
  CHECK(message_of(refused).find("stands on its head") != std::string::npos);
  CHECK(message_of(refused).starts_with("b cannot open volume vm1: "));
  CHECK(a.get("vm1").at("handover").is_null());
  check_still_serving(a);
}

TEST_CASE("handover: a target that is gone between seal and vote is asked again when it is back") {
  const TestHost a("a");
  const TestHost b("b");
  ControlProxy proxy(b);
  create_with({&a, &b}, {a.member(), proxy.member()});
  REQUIRE(a.post("vm1", "activate").ok());
  const std::uint64_t id = prepare_handover(a, "b");
  proxy.swallow_offer = true;
  const StandbyRequest write(b, "want_role", id);
  REQUIRE(eventually([&] { return proxy.offers > 0 && a.shows("vm1", "state", "serving"); }));
  // In a new term, under which the offer cannot be taken any more; the handover is still on record.
  CHECK(a.disk_state("vm1").vote.record->epoch.number > 2);
  CHECK(a.disk_state("vm1").vote.record->handover ==
        HandoverState{static_cast<std::uint32_t>(id), "a", "b", 0});
  proxy.swallow_offer = false;
  CHECK(eventually([&] { return b.shows("vm1", "state", "serving"); }));
}

TEST_CASE("handover: an offer that was taken without an answer has moved the role") {
  const TestHost a("a");
  const TestHost b("b");
  ControlProxy proxy(b);
  create_with({&a, &b}, {a.member(), proxy.member()});
  REQUIRE(a.post("vm1", "activate").ok());
  const std::uint64_t id = prepare_handover(a, "b");
  proxy.swallow_answer = true;
  const StandbyRequest write(b, "want_role", id);
  CHECK(eventually([&] { return b.shows("vm1", "state", "serving"); }));
  CHECK(eventually([&] { return a.get("vm1").at("handover").at("export").is_object(); }));
  CHECK(a.disk_state("vm1").primary == "b");
}

}  // namespace
}  // namespace replicad
