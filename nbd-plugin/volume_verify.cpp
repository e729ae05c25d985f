// The request `verify` (docs/protocol.md, "The agent socket"). Reactor thread.

#include "nbd-plugin/volume.h"

namespace replicad {

namespace {

using nlohmann::json;

/// A field that may be left out.
bool flag(const json& fields, const char* name) {
  const auto found = fields.find(name);
  return found != fields.end() && found->is_boolean() && found->get<bool>();
}

}  // namespace

void Volume::on_verify(const json& fields, const AgentClient::Reply& reply) {
  const bool runs = verify_ && !verify_->is_over();
  if (flag(fields, "stop")) {
    if (!runs) {
      reply(fail(Errc::refused, "no verify of volume {} is under way", name_));
      return;
    }
    verify_->stop();
    reply(json::object());
    return;
  }
  if (runs) {
    reply(fail(Errc::busy, "a verify of volume {} is under way", name_));
    return;
  }
  if (hold_done_ || stopping_) {
    reply(fail(Errc::busy, "a switchover or a stop is under way"));
    return;
  }
  VerifyRun::Request request{.id = verify_id_ + 1,
                             .targets = {},
                             .repair = flag(fields, "repair"),
                             .force = flag(fields, "force")};
  const auto host = fields.find("host");
  for (const auto& [peer, link] : links_) {
    if (host == fields.end() || host->is_null() || *host == link->host())
      request.targets.push_back({peer, link->host()});
  }
  if (request.targets.empty()) {
    reply(host == fields.end() || !host->is_string()
              ? fail(Errc::refused, "volume {} has no replica to compare with", name_)
              : fail(Errc::not_found,
                     "{} is no replica of volume {}",
                     host->get<std::string>(),
                     name_));
    return;
  }
  if (!verifier_) verifier_ = Worker::create();
  ++verify_id_;
  verify_ = std::make_shared<VerifyRun>(
      VerifyRun::Context{*reactor_, *verifier_, *bridge_, images_},
      std::move(request),
      VerifyRun::Hooks{.link = [this](PeerIndex peer) { return link(peer); },
                       .on_over = [this] { agent_->send_event("status", status_json()); }});
  verify_->start();
  // So that whoever asks next sees it.
  agent_->send_event("status", status_json());
  reply(json{{"id", verify_id_}});
}

}  // namespace replicad
