// What replicad asks of a serving volume (docs/protocol.md, "The agent socket"). Reactor thread.

#include <unistd.h>

#include "core/base/log.h"
#include "io/clock.h"
#include "nbd-plugin/volume.h"

namespace replicad {

namespace {

using nlohmann::json;

constexpr Duration flush_before_hold_max = std::chrono::milliseconds(500);
constexpr std::uint64_t deadline_ms_max = std::uint64_t{24} * 3600 * 1000;

tl::unexpected<Error> bad_request(const std::string& op, const char* what) {
  return fail(Errc::invalid_argument, "agent request {}: {}", op, what);
}

std::optional<std::string> text_field(const json& fields, const char* name) {
  const auto found = fields.find(name);
  if (found == fields.end() || !found->is_string()) return std::nullopt;
  return found->get<std::string>();
}

std::optional<std::uint64_t> number_field(const json& fields, const char* name) {
  const auto found = fields.find(name);
  if (found == fields.end() || !found->is_number_unsigned()) return std::nullopt;
  return found->get_ref<const json::number_unsigned_t&>();
}

/// False if it is left out.
bool flag_field(const json& fields, const char* name) {
  const auto found = fields.find(name);
  return found != fields.end() && *found == json(true);
}

}  // namespace

void Volume::on_request(const std::string& op,
                        const json& fields,
                        const AgentClient::Reply& reply) {
  if (op == "hold") return on_hold(fields, reply);
  if (op == "resume") return on_resume(fields, reply);
  if (op == "set") return on_set(fields, reply);
  if (op == "members") return on_members(fields, reply);
  if (op == "copy") return on_copy(fields, reply);
  if (op == "voter") return on_voter(fields);
  if (op == "answered") return on_answered(fields, reply);
  if (op == "verify") return on_verify(fields, reply);
  if (op == "seal") {
    const bool reached = bridge_->look(
        [](const Primary& primary) { return primary.hold_phase() == Primary::HoldPhase::reached; });
    if (!reached) {
      reply(fail(Errc::refused, "the hold is over: nothing can be sealed"));
      return;
    }
    bridge_->step(primary_event::Seal{});
    reply(json::object());
    return;
  }
  if (op == "release") {
    const bool sealed = bridge_->look([](const Primary& primary) { return primary.is_sealed(); });
    if (!sealed) {
      reply(fail(Errc::refused, "the volume is not sealed"));
      return;
    }
    // The role has moved. Held requests must not be answered, not even with an error: the client sees the
    // connection end, finds the new primary and sends them again.
    log(LogLevel::info, "released", "volume={}", name_);
    ::_exit(0);
  }
  if (op == "shutdown") {
    if (hold_done_ || stopping_) {
      reply(fail(Errc::busy, "a switchover or a stop is under way"));
      return;
    }
    reply(json::object());
    exit_when_stopped_ = true;
    begin_clean_stop();
    return;
  }
  reply(fail(Errc::not_supported, "unknown agent request {}", log_value(op)));
}

void Volume::on_hold(const json& fields, const AgentClient::Reply& reply) {
  const auto to = text_field(fields, "to");
  const auto deadline_ms = number_field(fields, "deadline_ms");
  const bool only_untouched = flag_field(fields, "only_untouched");
  if (!to || !deadline_ms || *deadline_ms > deadline_ms_max) {
    reply(bad_request("hold", "needs `to` and `deadline_ms`"));
    return;
  }
  const auto target = bridge_->look([&](const Primary& primary) { return primary.find_peer(*to); });
  if (!target) {
    reply(fail(Errc::not_found, "{} is not a member of volume {}", *to, name_));
    return;
  }
  if (hold_done_ || stopping_) {
    reply(fail(Errc::busy, "another switchover or a stop is under way"));
    return;
  }
  hold_done_ = [this, reply](Result<HistoryPoint> result) {
    if (!result) {
      reply(tl::unexpected(result.error()));
      return;
    }
    const double held_ms =
        std::chrono::duration<double, std::milli>(boot_time_now() - hold_began_).count();
    reply(json{
        {"history", point_json(*result)}, {"held_ms", held_ms}, {"replicas", replicas_json()}});
  };
  const auto deadline = boot_time_now() + std::chrono::milliseconds(*deadline_ms);
  flush_before_hold([this, hold = primary_event::Hold{*target, deadline, only_untouched}] {
    hold_began_ = boot_time_now();
    bridge_->step(hold);
  });
}

/// What is not durable yet, here and at the replicas, goes to the disks while the guest goes on: the hold finds little
/// left. Without an answer to that, `begin_hold` runs all the same; nothing depends on it.
void Volume::flush_before_hold(std::function<void()> begin_hold) {
  const auto begun = std::make_shared<bool>(false);
  const auto begin_once = [begun, begin_hold = std::move(begin_hold)] {
    if (!std::exchange(*begun, true)) begin_hold();
  };
  reactor_->add_timer(flush_before_hold_max, begin_once);
  if (!flusher_) flusher_ = Worker::create();
  flusher_->post([this, begin_once] {
    for (DiskIndex disk = 0; disk < images_.size(); ++disk)
      static_cast<void>(bridge_->flush(disk));
    reactor_->post(begin_once);
  });
}

/// What a reader elsewhere must have to see all that was answered here. What is sealed says nothing: the role may have
/// moved by now.
void Volume::on_answered(const json& fields, const AgentClient::Reply& reply) {
  struct Look {
    Epoch epoch;
    Sequence sequence;
    bool refused;
  };
  const bool only_untouched = flag_field(fields, "only_untouched");
  const Look look = bridge_->look([&](const Primary& primary) {
    const bool touched = only_untouched && primary.is_touched();
    return Look{primary.epoch(),
                primary.history().sequence,
                touched || primary.is_sealed() || primary.failure()};
  });
  if (look.refused) {
    reply(fail(Errc::refused, "what was answered is not told: the role moves, or has moved"));
    return;
  }
  reply(json{{"epoch", epoch_json(look.epoch)}, {"sequence", look.sequence}});
}

void Volume::on_resume(const json& fields, const AgentClient::Reply& reply) {
  if (stopping_) {
    reply(fail(Errc::busy, "a stop is under way"));
    return;
  }
  std::optional<Epoch> epoch;
  if (const auto found = fields.find("epoch"); found != fields.end() && !found->is_null()) {
    const auto decoded = decode_epoch(*found);
    const Epoch current = bridge_->look([](const Primary& primary) { return primary.epoch(); });
    if (!decoded || *decoded <= current) {
      reply(bad_request("resume", "the epoch is not a later one"));
      return;
    }
    epoch = *decoded;
  }
  bridge_->step(primary_event::Resume{epoch});
  reply(json::object());
}

void Volume::on_set(const json& fields, const AgentClient::Reply& reply) {
  const auto found = fields.find("settings");
  const auto settings = found == fields.end()
                            ? Result<SettingsGrant>(bad_request("set", "needs `settings`"))
                            : decode_settings(*found);
  if (!settings) {
    reply(tl::unexpected(settings.error()));
    return;
  }
  ack_timeout_ = std::chrono::milliseconds(settings->ack_timeout_ms);
  quorum_timeout_ = std::chrono::milliseconds(settings->quorum_timeout_ms);
  bridge_->step(primary_event::SettingsChanged{
      settings->mode, settings->congestion, ack_timeout_, settings->on_local_error});
  bridge_->local_trouble().set_policy(settings->on_local_error);
  reply(json::object());
}

/// What replicad has heard from a voter. No answer.
void Volume::on_voter(const json& fields) {
  const auto host = text_field(fields, "host");
  const auto ago_ms = number_field(fields, "ago_ms");
  const auto found = fields.find("fence");
  const auto fence = found == fields.end() ? Result<Epoch>(bad_request("voter", "needs `fence`"))
                                           : decode_epoch(*found);
  if (!host || !ago_ms || *ago_ms > deadline_ms_max || !fence) {
    log(LogLevel::warn, "bad_voter_notice", "volume={}", name_);
    return;
  }
  // The clock is the host's: how long the notice was under way, or this process stood still, does not matter. Earlier
  // versions of replicad say `ago_ms` alone.
  const auto asked_ns = number_field(fields, "asked_ns");
  const Instant asked = asked_ns ? Instant(std::chrono::nanoseconds(*asked_ns))
                                 : boot_time_now() - std::chrono::milliseconds(*ago_ms);
  bridge_->step(primary_event::VoterHeard{*host, asked, *fence});
}

void Volume::on_members(const json& fields, const AgentClient::Reply& reply) {
  const auto found = fields.find("members");
  const auto members =
      found == fields.end()
          ? Result<std::vector<MemberGrant>>(bad_request("members", "needs `members`"))
          : decode_members(*found);
  if (!members) {
    reply(tl::unexpected(members.error()));
    return;
  }
  const auto found_voters = fields.find("voters");
  const auto voters = found_voters == fields.end()
                          ? Result<VoterSet>(bad_request("members", "needs `voters`"))
                          : decode_voters(*found_voters);
  if (!voters) {
    reply(tl::unexpected(voters.error()));
    return;
  }
  bridge_->step(primary_event::VotersChanged{*voters});
  const auto is_member = [&](const std::string& host) {
    for (const MemberGrant& member : *members) {
      if (member.host == host) return true;
    }
    return false;
  };
  for (auto entry = links_.begin(); entry != links_.end();) {
    if (is_member(entry->second->host())) {
      ++entry;
      continue;
    }
    bridge_->step(primary_event::PeerRemoved{entry->first});
    entry->second->stop();
    entry = links_.erase(entry);
  }
  for (const MemberGrant& member : *members) {
    if (member.host == grant_.host) continue;
    bridge_->step(primary_event::PeerAdded{member.host});
    const auto peer =
        bridge_->look([&](const Primary& primary) { return primary.find_peer(member.host); });
    if (peer && !links_.contains(*peer)) add_link(*peer, member);
  }
  grant_.members = *members;
  reply(json::object());
}

void Volume::on_copy(const json& fields, const AgentClient::Reply& reply) {
  const auto host = text_field(fields, "host");
  if (!host) {
    reply(bad_request("copy", "needs `host`"));
    return;
  }
  const auto peer = bridge_->look([&](const Primary& primary) { return primary.find_peer(*host); });
  if (!peer) {
    reply(fail(Errc::not_found, "{} is not a member of volume {}", *host, name_));
    return;
  }
  const PeerView view =
      bridge_->look([&](const Primary& primary) { return primary.view(*peer, boot_time_now()); });
  if (view.phase != PeerPhase::detached || view.in_sync) {
    reply(fail(Errc::refused,
               "{} is {}: only a detached member is copied to",
               *host,
               peer_state_name(view.phase, view.caught_up, false)));
    return;
  }
  bridge_->step(primary_event::CopyRequested{*peer});
  reply(json::object());
}

void Volume::on_verify(const json& fields, const AgentClient::Reply& reply) {
  const bool runs = verify_ && !verify_->is_over();
  if (flag_field(fields, "stop")) {
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
                             .repair = flag_field(fields, "repair"),
                             .force = flag_field(fields, "force")};
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

void Volume::on_fenced(const Error& error) {
  log(LogLevel::error, "fenced", "error={}", log_value(error.message));
  // Another term has begun: what is held here must not be answered, not even with an error.
  ::_exit(1);
}

}  // namespace replicad
