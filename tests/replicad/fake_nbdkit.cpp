// Stands in for nbdkit with the plugin in tests of replicad: takes nbdkit's arguments, claims the
// volume, locks the images, greets NBD clients, answers what replicad asks and writes each request
// down in AGENT-DIR/VOLUME.ops. The plugin argument says how it behaves, words separated by commas:
//   early            ends with a message before it claims
//   mute             claims and never says `serving`
//   sequence=N       its history is at N with a made-up digest, at which it believes the target to
//   be too wait-hold        answers `hold` once AGENT-DIR/VOLUME.go exists refuse-hold      refuses
//   to hold

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>
#include <vector>

#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "tests/replicad/agent_peer.h"

namespace replicad {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

volatile std::sig_atomic_t terminated = 0;

void on_terminate(int /*signal*/) {
  terminated = 1;
}

[[noreturn]] void die(const std::string& message) {
  std::fprintf(stderr, "nbdkit: replica: error: %s\n", message.c_str());
  std::exit(EXIT_FAILURE);  // NOLINT(concurrency-mt-unsafe): there is one thread
}

class FakePlugin {
 public:
  FakePlugin(std::map<std::string, std::string> settings, const std::string& behaviour)
      : settings_(std::move(settings)) {
    std::istringstream words(behaviour);
    for (std::string word; std::getline(words, word, ',');) {
      const auto equals = word.find('=');
      behaviour_[word.substr(0, equals)] =
          equals == std::string::npos ? "" : word.substr(equals + 1);
    }
  }

  int run() {
    if (has("early")) die("the volume stands on its head");
    claim();
    if (grant_.contains("standby")) return stand_by();
    for (const json& disk : grant_.at("disks")) {
      auto image = open_image_locked(disk.at("path").get<std::string>(),
                                     disk.at("bytes").get<std::uint64_t>());
      if (!image) die(image.error().message);
      images_.push_back(std::move(*image));
    }
    take_socket();
    if (!has("mute")) serve();
    while (terminated == 0)
      turn();
    stop_cleanly();
    return EXIT_SUCCESS;
  }

 private:
  [[nodiscard]] bool has(const std::string& word) const { return behaviour_.count(word) != 0; }
  [[nodiscard]] std::string side_file(const std::string& ending) const {
    const std::string& agent = settings_.at("agent");
    return agent.substr(0, agent.rfind('/') + 1) + settings_.at("volume") + ending;
  }
  void note(const json& request) const {
    std::ofstream(side_file(".ops"), std::ios::app) << request.dump() << "\n";
  }

  void take_socket() {
    const char* listen_pid =
        std::getenv("LISTEN_PID");  // NOLINT(concurrency-mt-unsafe): one thread
    if (listen_pid == nullptr || std::atoi(listen_pid) != ::getpid()) die("no socket was passed");
    listening_ = Fd(3);
    std::ofstream(settings_.at("pidfile")) << ::getpid() << "\n";
  }

  /// The standby of a handover greets, ends with its replicad, and asks nothing: the test does that.
  int stand_by() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    take_socket();
    serving_ = true;
    while (terminated == 0) {
      pollfd waiting{listening_.get(), POLLIN, 0};
      if (::poll(&waiting, 1, 20) > 0) greet();
    }
    return EXIT_SUCCESS;
  }

  void claim() {
    auto peer = AgentPeer::connect(settings_.at("agent"));
    if (!peer) die(peer.error().message);
    agent_ = std::make_unique<AgentPeer>(std::move(*peer));
    const json reply = agent_->request(
        "claim", {{"volume", settings_.at("volume")}, {"pid", ::getpid()}, {"version", "fake"}});
    if (!reply.value("ok", false))
      die(reply.empty() ? "no answer" : reply["error"].value("message", "?"));
    grant_ = reply.at("result");
    history_ = grant_.at("history");
    epoch_ = grant_.at("epoch");
    if (has("sequence")) {
      history_["sequence"] = std::stoull(behaviour_.at("sequence"));
      history_["digest"] = "00112233445566778899aabbccddeeff";
    }
  }

  void serve() {
    const json reply = agent_->request("serving", {{"pid", ::getpid()}, {"export", "vda"}});
    if (!reply.value("ok", false)) die("serving was refused");
    serving_ = true;
  }

  void rejoin() {
    auto peer = AgentPeer::connect(settings_.at("agent"));
    if (!peer) {
      // Nobody is left to end it when its test has died and taken the directory along.
      if (::access(settings_.at("pidfile").c_str(), F_OK) != 0) ::_exit(EXIT_FAILURE);
      ::poll(nullptr, 0, 20);
      return;
    }
    agent_ = std::make_unique<AgentPeer>(std::move(*peer));
    const json reply = agent_->request("rejoin",
                                       {{"volume", settings_.at("volume")},
                                        {"pid", ::getpid()},
                                        {"epoch", epoch_},
                                        {"reserved", grant_.at("reserved")}});
    if (!reply.empty() && !reply.value("ok", false))
      die("fenced: " + reply["error"].value("message", "?"));
  }

  void turn() {
    pollfd waiting[2] = {{listening_.get(), POLLIN, 0}, {agent_->fd(), POLLIN, 0}};
    ::poll(waiting, 2, 20);
    if ((waiting[0].revents & POLLIN) != 0) greet();
    if (!agent_->open()) {
      if (!serving_) std::exit(EXIT_FAILURE);  // NOLINT(concurrency-mt-unsafe): there is one thread
      rejoin();
      return;
    }
    while (auto received = agent_->receive(milliseconds(0))) {
      if (received->type == FrameType::agent_request) answer(received->message);
    }
    if (held_ && pending_hold_) try_hold();
    if (serving_) {
      agent_->send(FrameType::agent_event,
                   {{"op", "status"},
                    {"state",
                     sealed_ ? "sealed"
                     : held_ ? "held"
                             : "serving"},
                    {"history", history_},
                    {"replicas", replicas()},
                    {"counters", json::object()},
                    {"error", nullptr}});
    }
  }

  void greet() const {
    const Fd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!client.valid() || !serving_) return;
    ::send(client.get(), "NBDMAGICIHAVEOPT\0\3", 18, MSG_NOSIGNAL);
    std::array<char, 64> farewell{};
    pollfd waiting{client.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 1000) > 0)
      static_cast<void>(::recv(client.get(), farewell.data(), farewell.size(), 0));
    ::send(client.get(), std::array<char, 20>{}.data(), 20, MSG_NOSIGNAL);
  }

  [[nodiscard]] json replicas() const {
    json list = json::array();
    for (const json& member : grant_.at("members")) {
      if (member.at("host") == grant_.at("host")) continue;
      const json sequence = history_.at("sequence");
      list.push_back({{"host", member.at("host")},
                      {"state", "streaming"},
                      {"in_sync", true},
                      {"sent", sequence},
                      {"received", sequence},
                      {"logged", sequence},
                      {"durable", sequence},
                      {"applied", sequence},
                      {"digest", history_.at("digest")},
                      {"lag_bytes", 0},
                      {"lag_seconds", 0.0},
                      {"copy", nullptr},
                      {"error", nullptr}});
    }
    return list;
  }

  void try_hold() {
    if (has("wait-hold") && ::access(side_file(".go").c_str(), F_OK) != 0) return;
    agent_->reply(*pending_hold_,
                  {{"history", history_}, {"held_ms", 1.5}, {"replicas", replicas()}});
    pending_hold_.reset();
  }

  void answer(const json& request) {
    note(request);
    const std::string op = request.value("op", "");
    if (op == "hold" && has("refuse-hold"))
      return agent_->refuse(request, "timeout", "the target lags behind");
    if (op == "hold") {
      held_ = true;
      pending_hold_ = request;
      return;
    }
    if (op == "release") ::_exit(0);
    if (op == "answered") {
      agent_->reply(request, {{"epoch", epoch_}, {"sequence", history_.at("sequence")}});
      return;
    }
    if (op == "seal") sealed_ = true;
    if (op == "resume") {
      held_ = sealed_ = false;
      if (request.contains("epoch")) epoch_ = request.at("epoch");
    }
    agent_->reply(request, json::object());
    if (op == "shutdown") terminated = 1;
  }

  void stop_cleanly() {
    if (has("mute")) return;
    agent_->request("stopped", {{"history", history_}, {"in_sync", grant_.at("in_sync")}});
  }

  std::map<std::string, std::string> settings_;
  std::map<std::string, std::string> behaviour_;
  std::unique_ptr<AgentPeer> agent_;
  json grant_;
  json history_;
  json epoch_;
  std::vector<Fd> images_;
  Fd listening_;
  bool serving_ = false;
  bool held_ = false;
  bool sealed_ = false;
  std::optional<json> pending_hold_;
};

int run(const std::vector<std::string>& arguments) {
  std::map<std::string, std::string> settings;
  std::string behaviour;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const auto equals = argument.find('=');
    if (argument == "-f") continue;
    if (argument == "-P") {
      settings["pidfile"] = arguments.at(++i);
    } else if (behaviour.empty()) {
      behaviour = argument;
    } else if (equals != std::string::npos) {
      settings[argument.substr(0, equals)] = argument.substr(equals + 1);
    }
  }
  return FakePlugin(settings, behaviour).run();
}

}  // namespace
}  // namespace replicad

int main(int argc, char** argv) {
  struct sigaction action {};
  action.sa_handler = replicad::on_terminate;
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  return replicad::run(std::vector<std::string>(argv + 1, argv + argc));
}
