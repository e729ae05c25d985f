// The agent socket, with a plugin played by the test.

#include "core/wire/messages.h"
#include "io/clock.h"
#include "tests/replicad/daemon_fixture.h"

namespace replicad {
namespace {

using nlohmann::json;

/// A plugin that holds the images' locks as a real one does.
class TestPlugin {
 public:
  explicit TestPlugin(const TestHost& host) : peer_(std::move(*host.connect_agent())) {}

  json claim() {
    json reply =
        peer_.request("claim", {{"volume", "vm1"}, {"pid", ::getpid()}, {"version", "test"}});
    if (reply.value("ok", false)) {
      grant = reply.at("result");
      image = std::move(
          *open_image_locked(grant["disks"][0].at("path"), grant["disks"][0].at("bytes")));
    }
    return reply;
  }
  json serving() { return peer_.request("serving", {{"pid", ::getpid()}, {"export", "vda"}}); }
  json stopped(Sequence sequence) {
    return peer_.request("stopped",
                         {{"history", point(sequence)}, {"in_sync", grant.at("in_sync")}});
  }
  [[nodiscard]] json point(Sequence sequence) const {
    return {{"epoch", grant.at("epoch")},
            {"sequence", sequence},
            {"digest", "0123456789abcdef0123456789abcdef"}};
  }
  void go_away() {
    image.reset();
    peer_.close();
  }
  AgentPeer& peer() { return peer_; }

  json grant;
  Fd image;

 private:
  AgentPeer peer_;
};

std::string code_of(const json& reply) {
  return reply.contains("error") ? reply["error"].value("code", "") : reply.dump();
}

json member_b() {
  return {{"host", "b"}, {"stream", "127.0.0.1:1"}, {"control", "127.0.0.1:2"}};
}

void create_two_member_volume(const TestHost& host) {
  const PeerAnswer made =
      host.ask("POST", "/v1/volumes", create_body("vm1", "a", {host.member(), member_b()}));
  REQUIRE_MESSAGE(made.ok(), made.body.dump());
}

TEST_CASE("agent: a claim raises the epoch and marks the volume unclean before it is answered") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  const json reply = plugin.claim();
  REQUIRE_MESSAGE(reply.at("ok") == true, reply.dump());
  const VolumeState state = host.disk_state("vm1");
  CHECK(state.epoch.number == 1);
  CHECK_FALSE(state.clean);
  CHECK(state.sequence_reserved == Sequence{1} << 24);
  const json& grant = plugin.grant;
  CHECK(grant.at("host") == "a");
  CHECK(grant.at("uuid") == fixture_uuid);
  CHECK(grant.at("epoch") == json{{"number", 1}, {"tag", state.epoch.tag}});
  CHECK(grant.at("disks")[0].at("name") == "vda");
  CHECK(grant.at("members").size() == 2);
  CHECK(grant.at("settings").at("mode") == "sync");
  CHECK(grant.at("reserved") == Sequence{1} << 24);
  CHECK(grant.at("in_sync") == json{"a", "b"});
  CHECK(grant.at("unclean") == false);
  CHECK(host.shows("vm1", "state", "starting"));
  REQUIRE(plugin.serving().at("ok") == true);
  CHECK(host.shows("vm1", "state", "serving"));
}

TEST_CASE("agent: while one plugin has the volume, another is refused, and changes nothing") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin first(host);
  REQUIRE(first.claim().at("ok") == true);
  const std::string before = file_text(host.state_file("vm1"));
  for (const bool serving : {false, true}) {
    if (serving) REQUIRE(first.serving().at("ok") == true);
    TestPlugin second(host);
    CHECK(code_of(second.claim()) == "busy");
  }
  CHECK(file_text(host.state_file("vm1")) == before);
}

TEST_CASE("agent: a claim without serving is undone, but its epoch stays used") {
  const TestHost host("a");
  create_two_member_volume(host);
  {
    TestPlugin plugin(host);
    REQUIRE(plugin.claim().at("ok") == true);
    plugin.go_away();
  }
  CHECK(eventually([&] { return host.shows("vm1", "state", "stopped"); }));
  const VolumeState state = host.disk_state("vm1");
  CHECK(state.clean);
  CHECK(state.epoch.number == 1);
  CHECK(state.history.sequence == 0);
  CHECK(state.in_sync.size() == 2);
  // The images are back with replicad.
  CHECK(eventually(
      [&] { return open_image_locked(state.disks[0].path, 1 * mib).error().code == Errc::busy; }));
  TestPlugin next(host);
  REQUIRE(next.claim().at("ok") == true);
  CHECK(next.grant.at("unclean") == false);
  CHECK(next.grant.at("epoch").at("number") == 2);
}

TEST_CASE(
    "agent: an export that is lost leaves the volume unclean, and the next claim starts a history "
    "of its own") {
  const TestHost host("a");
  create_two_member_volume(host);
  {
    TestPlugin plugin(host);
    REQUIRE(plugin.claim().at("ok") == true);
    REQUIRE(plugin.serving().at("ok") == true);
    plugin.go_away();
  }
  CHECK(eventually([&] { return host.shows("vm1", "state", "stopped"); }));
  const json shown = host.get("vm1");
  CHECK(shown.at("clean") == false);
  CHECK(shown.at("active") == false);
  CHECK(shown.at("error").at("hint").get<std::string>().find("compared") != std::string::npos);

  TestPlugin next(host);
  REQUIRE(next.claim().at("ok") == true);
  CHECK(next.grant.at("unclean") == true);
  CHECK(next.grant.at("in_sync") == json{"a"});
  const VolumeState state = host.disk_state("vm1");
  CHECK(state.in_sync == std::vector<std::string>{"a"});
  CHECK(state.history.sequence == Sequence{1} << 24);
  CHECK(state.history.epoch == state.epoch);
  DigestItem item;
  item.epoch = state.epoch;
  item.sequence = state.history.sequence;
  CHECK(state.history.digest == extend_digest({}, item));
  CHECK(state.sequence_reserved == Sequence{2} << 24);
  // Undone, it is still unclean.
  next.go_away();
  CHECK(eventually([&] { return host.shows("vm1", "state", "stopped"); }));
  CHECK_FALSE(host.disk_state("vm1").clean);
}

TEST_CASE("agent: record_in_sync is on disk when it is answered, and takes members only") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  for (const json& in_sync : {json{"a"}, json{"a", "b"}, json{"a"}}) {
    CHECK(plugin.peer()
              .request("record_in_sync", {{"in_sync", in_sync}, {"reason", "test"}})
              .at("ok") == true);
    CHECK(json(host.disk_state("vm1").in_sync) == in_sync);
  }
  const VolumeState before = host.disk_state("vm1");
  for (const json& bad : {json{"b"}, json::array(), json("a"), json(nullptr), json{"a", 5}}) {
    CHECK(code_of(plugin.peer().request(
              "record_in_sync", {{"in_sync", bad}, {"reason", "test"}})) == "invalid_argument");
  }
  // A member that has been removed while the report was under way.
  CHECK(plugin.peer()
            .request("record_in_sync", {{"in_sync", {"a", "gone"}}, {"reason", "test"}})
            .at("ok") == true);
  CHECK(host.disk_state("vm1").vote.record == before.vote.record);
}

TEST_CASE("agent: numbers are reserved durably and never given back") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  const Sequence until = Sequence{1} << 30;
  CHECK(plugin.peer().request("reserve", {{"until", until}}).at("result").at("reserved") == until);
  CHECK(host.disk_state("vm1").sequence_reserved == until);
  CHECK(plugin.peer().request("reserve", {{"until", 5}}).at("result").at("reserved") == until);
  CHECK(code_of(plugin.peer().request("reserve", {{"until", ~std::uint64_t{0}}})) ==
        "invalid_argument");
  CHECK(code_of(plugin.peer().request("reserve", {{"until", -1}})) == "invalid_argument");
}

TEST_CASE(
    "agent: a clean stop is on disk when it is answered, and the next claim continues there") {
  const TestHost host("a");
  create_two_member_volume(host);
  {
    TestPlugin plugin(host);
    REQUIRE(plugin.claim().at("ok") == true);
    REQUIRE(plugin.serving().at("ok") == true);
    REQUIRE(plugin.stopped(42).at("ok") == true);
    const VolumeState state = host.disk_state("vm1");
    CHECK(state.clean);
    CHECK(state.history.sequence == 42);
    CHECK(to_hex(state.history.digest) == "0123456789abcdef0123456789abcdef");
    plugin.go_away();
  }
  CHECK(eventually([&] { return host.get("vm1").at("error").is_null(); }));
  TestPlugin next(host);
  REQUIRE(eventually([&] { return next.claim().at("ok") == true; }));
  CHECK(next.grant.at("unclean") == false);
  CHECK(next.grant.at("history").at("sequence") == 42);
  CHECK(next.serving().at("ok") == true);
  // A history cannot end before it began.
  CHECK(code_of(next.stopped(41)) == "invalid_argument");
}

TEST_CASE("agent: a plugin that outlives replicad rejoins, with its own term only") {
  TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  const VolumeState before = host.disk_state("vm1");
  host.restart();
  CHECK(plugin.peer().wait_closed(std::chrono::seconds(5)));
  CHECK(host.shows("vm1", "state", "starting"));
  CHECK(host.post("vm1", "activate").status == 409);
  CHECK(host.disk_state("vm1").vote.record == before.vote.record);
  CHECK_FALSE(host.disk_state("vm1").clean);

  const auto rejoin = [&](const json& epoch) {
    AgentPeer peer = std::move(*host.connect_agent());
    json reply = peer.request("rejoin",
                              {{"volume", "vm1"},
                               {"pid", ::getpid()},
                               {"epoch", epoch},
                               {"reserved", plugin.grant.at("reserved")}});
    return std::make_pair(std::move(peer), std::move(reply));
  };
  json stale = plugin.grant.at("epoch");
  stale["tag"] = stale["tag"].get<std::uint32_t>() ^ 1U;
  CHECK(code_of(rejoin(stale).second) == "stale_epoch");
  // A hold whose switchover was not on record has ended with the daemon that ran it.
  const auto check_resumed = [](AgentPeer& peer) {
    const auto told = peer.receive(std::chrono::seconds(5));
    REQUIRE(told.has_value());
    CHECK(told->message.at("op") == "resume");
    CHECK_FALSE(told->message.contains("epoch"));
  };
  auto first = rejoin(plugin.grant.at("epoch"));
  CHECK_MESSAGE(first.second.at("ok") == true, first.second.dump());
  check_resumed(first.first);
  CHECK(host.shows("vm1", "state", "serving"));
  // The same process again: its old connection may not have been seen to end.
  auto second = rejoin(plugin.grant.at("epoch"));
  CHECK_MESSAGE(second.second.at("ok") == true, second.second.dump());
  check_resumed(second.first);
  first.first.close();
  CHECK(host.shows("vm1", "state", "serving"));
  CHECK(second.first.request("record_in_sync", {{"in_sync", {"a"}}, {"reason", "test"}}).at("ok") ==
        true);
}

TEST_CASE("agent: a sealed plugin that missed its new term is told it when it rejoins") {
  TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  host.stop();
  // What a switchover that was refused records before it tells the plugin.
  VolumeState state = host.disk_state("vm1");
  state.epoch = {state.epoch.number + 2, 77};
  state.vote.record->epoch = state.epoch;
  REQUIRE(write_file_durably(host.state_file("vm1"), encode_volume_state(state)).has_value());
  host.start();
  AgentPeer peer = std::move(*host.connect_agent());
  const json reply = peer.request("rejoin",
                                  {{"volume", "vm1"},
                                   {"pid", ::getpid()},
                                   {"epoch", plugin.grant.at("epoch")},
                                   {"reserved", plugin.grant.at("reserved")}});
  REQUIRE_MESSAGE(reply.at("ok") == true, reply.dump());
  CHECK(reply.at("result").at("epoch") == json{{"number", 3}, {"tag", 77}});
  const auto told = peer.receive(std::chrono::seconds(5));
  REQUIRE(told.has_value());
  CHECK(told->message.at("op") == "resume");
  CHECK(told->message.at("epoch") == json{{"number", 3}, {"tag", 77}});
}

TEST_CASE("agent: a term that a member refuses, with nobody in a later one, is renewed") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  json replica = {
      {"host", "b"},
      {"state", "refused"},
      {"in_sync", false},
      {"sent", 0},
      {"received", 0},
      {"logged", 0},
      {"durable", 0},
      {"applied", 0},
      {"digest", std::string(32, '0')},
      {"lag_bytes", 0},
      {"lag_seconds", nullptr},
      {"copy", nullptr},
      {"error", {{"code", "stale_epoch"}, {"message", "epoch 9 was promised"}, {"hint", ""}}}};
  plugin.peer().send(FrameType::agent_event,
                     {{"op", "status"},
                      {"state", "serving"},
                      {"history", plugin.point(0)},
                      {"replicas", {replica}},
                      {"counters", json::object()},
                      {"error", nullptr}});
  const auto told = plugin.peer().receive(std::chrono::seconds(30));
  REQUIRE(told.has_value());
  CHECK(told->message.at("op") == "resume");
  CHECK(told->message.at("epoch").at("number") > plugin.grant.at("epoch").at("number"));
  CHECK(host.disk_state("vm1").vote.record->epoch.number == told->message.at("epoch").at("number"));
  plugin.peer().reply(told->message, json::object());
}

TEST_CASE("agent: after an unclean end of both, replicad says so and takes the images back") {
  TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  host.stop();
  plugin.go_away();
  host.start();
  // Nobody has the images: no need to wait for a plugin.
  CHECK(host.shows("vm1", "state", "stopped"));
  CHECK(host.get("vm1").at("error").at("message").get<std::string>().find("uncleanly") !=
        std::string::npos);
  CHECK(host.get("vm1").at("clean") == false);
}

TEST_CASE("agent: claims are for volumes of this primary only") {
  const TestHost host("a");
  json body = create_body("vm1", "b", {member_b(), host.member()});
  REQUIRE(host.ask("POST", "/v1/volumes", body).ok());
  AgentPeer peer = std::move(*host.connect_agent());
  const auto claim = [&](const json& fields) { return peer.request("claim", fields); };
  const json replica = claim({{"volume", "vm1"}, {"pid", 5}, {"version", "test"}});
  CHECK(code_of(replica) == "refused");
  CHECK(replica["error"].at("message").get<std::string>().find("b is") != std::string::npos);
  CHECK(code_of(claim({{"volume", "vm9"}, {"pid", 5}, {"version", "test"}})) == "not_found");
  CHECK(code_of(claim({{"volume", "vm1"}, {"pid", "x"}, {"version", "test"}})) ==
        "invalid_argument");
  CHECK(code_of(claim({{"volume", 5}})) == "invalid_argument");
  CHECK(code_of(peer.request("serving", {{"volume", "vm1"}, {"pid", 1}})) == "protocol");
}

TEST_CASE("agent: bytes that are no agent frames end their connection and nothing else") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin good(host);
  REQUIRE(good.claim().at("ok") == true);
  REQUIRE(good.serving().at("ok") == true);
  const auto bytes = [](const std::string& text) {
    const auto view = std::as_bytes(std::span(text));
    return std::vector<std::byte>(view.begin(), view.end());
  };
  for (const auto& garbage :
       {bytes(std::string(200, 'x')),
        encode_empty(FrameType::heartbeat),
        encode_json_frame(FrameType::agent_request, "{"),
        encode_json_frame(FrameType::agent_request, "[]"),
        encode_json_frame(FrameType::agent_request, "{\"id\":-1,\"op\":\"claim\"}"),
        encode_json_frame(FrameType::agent_request, std::string(50'000, '[')),
        encode_json_frame(FrameType::agent_reply, "{\"id\":1}")}) {
    AgentPeer peer = std::move(*host.connect_agent());
    peer.send_bytes(garbage);
    CHECK(peer.wait_closed(std::chrono::seconds(4)));
  }
  // From the plugin that serves: an event that makes no sense is dropped.
  good.peer().send(FrameType::agent_event, {{"op", "status"}, {"state", 5}});
  good.peer().send(FrameType::agent_event, {{"op", 7}});
  CHECK(good.peer().request("reserve", {{"until", 1}}).at("ok") == true);
  CHECK(host.shows("vm1", "state", "serving"));
}

TEST_CASE("agent: the plugin's status is what the control API shows") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  const json replica = {
      {"host", "b"},
      {"state", "copying"},
      {"in_sync", false},
      {"sent", 12},
      {"received", 11},
      {"logged", 10},
      {"durable", 9},
      {"applied", 8},
      {"digest", std::string(32, 'a')},
      {"lag_bytes", 4096},
      {"lag_seconds", 0.5},
      {"lag_disks", {{{"disk", "vda"}, {"writes", 1}, {"bytes", 4096}, {"seconds", 0.5}}}},
      {"copy", {{"done_bytes", 1}, {"total_bytes", 2}, {"sent_bytes", 3}, {"blocks_left", 4}}},
      {"error", nullptr}};
  plugin.peer().send(FrameType::agent_event,
                     {{"op", "status"},
                      {"state", "held"},
                      {"history", plugin.point(12)},
                      {"replicas", {replica}},
                      {"counters", {{"writes", 7}}},
                      {"error", nullptr}});
  REQUIRE(eventually([&] { return host.shows("vm1", "state", "held"); }));
  const json shown = host.get("vm1");
  CHECK(shown.at("replicas") == json::array({replica}));
  CHECK(shown.at("history") == plugin.point(12));
  CHECK(shown.at("counters").at("writes") == 7);
  CHECK(host.ask("DELETE", std::string("/v1/volumes/vm1?uuid=") + fixture_uuid).status == 409);
}

TEST_CASE("agent: a disk error of the export counts once against the host's stability") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  const auto report = [&](Sequence at, const json& error) {
    plugin.peer().send(FrameType::agent_event,
                       {{"op", "status"},
                        {"state", error.is_null() ? "serving" : "held"},
                        {"history", plugin.point(at)},
                        {"replicas", json::array()},
                        {"error", error}});
    REQUIRE(eventually([&] { return host.get("vm1").at("history") == plugin.point(at); }));
  };
  const auto disk_errors = [&] {
    return host.ask("GET", "/v1/host").body.at("metrics").at("disk_errors").get<double>();
  };
  const json error = {{"code", "io_error"}, {"message", "write: Input/output error"}, {"hint", ""}};
  report(1, nullptr);
  CHECK(disk_errors() == 0);
  report(2, error);
  report(3, error);
  CHECK(disk_errors() == doctest::Approx(1).epsilon(0.01));
  report(4, nullptr);
  report(5, error);
  CHECK(disk_errors() == doctest::Approx(2).epsilon(0.01));
}

TEST_CASE("agent: a peer's long words do not keep a status from being taken") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  // Cut in the middle of a character of two bytes.
  std::string words = "x";
  while (words.size() < 5000)
    words += "\xc3\xa4";
  plugin.peer().send(FrameType::agent_event,
                     {{"op", "status"},
                      {"state", "held"},
                      {"history", plugin.point(12)},
                      {"replicas", json::array()},
                      {"error", {{"code", "io_error"}, {"message", words}, {"hint", words}}}});
  REQUIRE(eventually([&] { return host.shows("vm1", "state", "held"); }));
  const auto shown = host.get("vm1").at("error").at("message").get<std::string>();
  CHECK(shown == words.substr(0, 1023));
}

TEST_CASE("agent: what a voter accepts for another primary is told to the plugin at once") {
  const TestHost host("a");
  create_two_member_volume(host);
  TestPlugin plugin(host);
  REQUIRE(plugin.claim().at("ok") == true);
  REQUIRE(plugin.serving().at("ok") == true);
  const json seen = host.ask("GET", "/v1/volumes/vm1/vote").body;
  CHECK(seen.at("uuid") == fixture_uuid);
  CHECK(seen.at("fence") == plugin.grant.at("epoch"));
  CHECK(plugin.grant.at("voters").at("hosts") == json::array({"a", "b"}));
  CHECK(plugin.grant.at("voters").at("tie_break") == "a");
  json record = host.get("vm1").at("vote").at("record");
  const json ballot{{"round", 1000}, {"host", "b"}, {"nonce", 7}};
  record["version"] = record["version"].get<std::uint64_t>() + 1;
  record["epoch"] = {{"number", 9}, {"tag", 99}};
  record["primary"] = "b";
  record["in_sync"] = {"b"};
  record["tie_break"] = "b";
  record["before"] = {{"hosts", {"a", "b"}}, {"tie_break", "a"}};
  const PeerAnswer accepted =
      host.ask("POST",
               "/v1/volumes/vm1/vote/accept",
               {{"uuid", fixture_uuid}, {"ballot", ballot}, {"record", record}});
  REQUIRE_MESSAGE(accepted.ok(), accepted.body.dump());
  CHECK(accepted.body.at("granted") == true);
  json told;
  REQUIRE(eventually([&] {
    const auto received = plugin.peer().receive(std::chrono::milliseconds(20));
    if (received && received->message.value("op", "") == "voter") told = received->message;
    return !told.is_null();
  }));
  CHECK(told.at("host") == "a");
  CHECK(told.at("fence") == record["epoch"]);
  const Instant asked{std::chrono::nanoseconds(told.at("asked_ns").get<std::int64_t>())};
  CHECK(asked <= boot_time_now());
  CHECK(asked > boot_time_now() - std::chrono::minutes(5));
  CHECK(host.ask("GET", "/v1/volumes/vm1/vote").body.at("fence") == record["epoch"]);
}

}  // namespace
}  // namespace replicad
