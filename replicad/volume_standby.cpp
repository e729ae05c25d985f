// A handover at this host (docs/decisions/0011): the mode that it asks for, and the standby that is to serve while
// another host has the role and this one may get it.

#include <algorithm>

#include "io/file.h"
#include "replicad/log_failure.h"
#include "replicad/volume.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

/// Until what a read waits for has been applied.
constexpr Duration look_interval = std::chrono::milliseconds(2);
/// After the primary has not answered, or not agreed.
constexpr Duration ask_again_delay = std::chrono::milliseconds(200);
constexpr std::chrono::milliseconds ask_timeout{3'000};
/// After a standby has not started.
constexpr Duration standby_retry_delay = std::chrono::seconds(2);
/// A move takes as long as a switchover.
constexpr std::chrono::milliseconds take_timeout{60'000};

}  // namespace

// --- the mode

VolumeSettings Volume::settings_in_force() const {
  VolumeSettings settings = state().settings;
  settings.mode = handover_mode_ ? Mode::sync : mode_in_force(state());
  return settings;
}

void Volume::set_preparing(bool preparing) {
  preparing_ = preparing;
  if (preparing) handover_mode_ = true;
  if (!preparing) follow_handover();
}

void Volume::leave_preparing_open() {
  preparing_open_ = true;
  recheck_ = true;
  environment_.wake_keeper();
}

void Volume::follow_handover() {
  const VoterState& vote = state().vote;
  const bool own_term =
      vote.record && vote.chosen && vote.record->primary == environment_.options.host;
  if (!own_term || !is_primary()) return;
  const bool wanted = preparing_ || vote.record->handover.has_value();
  if (std::exchange(handover_mode_, wanted) == wanted || phase_ != Phase::serving) return;
  plugin_request("set",
                 {{"settings", to_json(settings_in_force())}},
                 plugin_resume_timeout,
                 [name = name_](const Result<json>& told) {
                   if (told) return;
                   log_failure("mode_not_told", name, told.error());
                 });
}

// --- when a standby is to be there

const HandoverState* Volume::handover() const {
  const auto& record = state().vote.record;
  if (!record || !record->handover) return nullptr;
  const HandoverState& handover = *record->handover;
  const std::string& host = environment_.options.host;
  return handover.from == host || handover.to == host ? &handover : nullptr;
}

std::uint32_t Volume::standby_due() const {
  const HandoverState* prepared = handover();
  const bool is_able =
      prepared != nullptr && !is_primary() && replica_ && !replica_busy_ && !released_;
  const std::string& host = environment_.options.host;
  if (!is_able || is_split() || state().vote.record->primary == host) return 0;
  return prepared->id;
}

void Volume::set_standby(std::uint32_t id, std::shared_ptr<ExportProcess> process) {
  standby_id_ = id;
  standby_ = std::move(process);
  standby_error_.reset();
}

bool Volume::is_standby_amiss() const {
  const std::uint32_t due = standby_due();
  if (standby_id_ == due) return false;
  return standby_id_ != 0 || environment_.reactor.now() >= standby_after_;
}

void Volume::note_standby(bool serves) {
  standby_serves_ = serves;
  standby_error_.reset();
}

bool Volume::note_standby_failed(std::uint32_t id, Error error) {
  // It is refused, for instance, when its handover ends before it asks.
  if (id != standby_due()) return false;
  standby_after_ = environment_.reactor.now() + standby_retry_delay;
  standby_error_id_ = id;
  standby_error_ = std::move(error);
  return true;
}

std::shared_ptr<ExportProcess> Volume::take_standby() {
  standby_id_ = 0;
  return std::exchange(standby_, nullptr);
}

std::optional<ExportInfo> Volume::standby_info() const {
  if (!standby_ || !standby_serves_) return std::nullopt;
  return ExportInfo{standby_->pid(), export_command().socket()};
}

bool Volume::is_standby_claim() const {
  return standby_id_ != 0 && standby_id_ == standby_due();
}

json Volume::standby_grant() const {
  json grant = claim_result(false);
  grant["standby"] = standby_id_;
  // Nothing that counts for one who writes nothing.
  grant["history"] = to_json(HistoryPoint{});
  return grant;
}

// --- its requests

void Volume::on_standby_request(const std::shared_ptr<AgentSession>& session,
                                bool wants_role,
                                const json& request,
                                Reply reply) {
  FieldReader fields(request);
  const auto id = fields.number("standby", 1, 0xffffffffU);
  const bool durable = fields.boolean_or("durable", false);
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  if (id != standby_due()) {
    return reply(fail(Errc::refused, "no handover of volume {} waits for its role here", name_));
  }
  gates_.push_back({session, std::move(reply), wants_role, durable, false, {}});
  AgentSession::Handlers handlers;
  handlers.on_closed = [self = weak_from_this(),
                        weak = std::weak_ptr<AgentSession>(session)](const Error& /*error*/) {
    if (const auto volume = self.lock()) {
      std::erase_if(volume->gates_, [&](const Gate& gate) { return gate.session == weak.lock(); });
    }
  };
  session->set_handlers(std::move(handlers));
  tend_gates();
}

void Volume::tend_gates() {
  // What waits when the role comes, or the handover ends, ends with the standby.
  const bool due = standby_due() != 0;
  std::vector<Reply> ready;
  std::erase_if(gates_, [&](Gate& gate) {
    if (!due || gate.wants_role || !has_applied(gate)) return false;
    ready.push_back(std::move(gate.reply));
    return true;
  });
  for (const Reply& reply : ready)
    reply(json::object());
  if (due && environment_.reactor.now() >= ask_after_) {
    ask_for_role();
    ask_for_answered();
  }
  if (gates_.empty() || gates_timer_ || environment_.stopping) return;
  gates_timer_ = true;
  environment_.reactor.add_timer(look_interval, [self = weak_from_this()] {
    const auto volume = self.lock();
    if (!volume) return;
    volume->gates_timer_ = false;
    volume->tend_gates();
  });
}

/// Also when the source reads after the move: what it has stands at the point of the move, and the target has let no
/// write in.
bool Volume::has_applied(Gate& gate) {
  // All that the source had answered was durable everywhere before the role moved.
  const bool moved = handover()->term != 0;
  if (gate.durable && moved) return true;
  if (!gate.awaits) return false;
  if (gate.awaits->epoch.number != state().epoch.number) {
    gate.awaits.reset();  // another term: asked again
    gate.asked = false;
    return false;
  }
  const Watermarks marks = replica_->status().marks;
  const Sequence awaited = gate.awaits->sequence;
  // Only what is durable is applied, and the log's own trigger takes its time.
  if (marks.durable < awaited && awaited <= marks.logged) replica_->sync_soon();
  return (gate.durable ? marks.durable : marks.applied) >= awaited;
}

/// One question for all requests that came before it was sent.
void Volume::ask_for_answered() {
  const bool wanted =
      std::any_of(gates_.begin(), gates_.end(), [](const Gate& gate) { return gate.waits(); });
  if (asking_ || !wanted) return;
  asking_ = true;
  for (Gate& gate : gates_)
    gate.asked = gate.asked || gate.waits();
  ask_primary(fmt::format("handover/answered?id={}", standby_due()),
              nullptr,
              ask_timeout,
              [](Volume& volume, const Result<json>& answer) { volume.on_answered(answer); });
}

void Volume::on_answered(const Result<json>& answer) {
  asking_ = false;
  std::optional<Position> position;
  if (answer) {
    FieldReader fields(*answer);
    const Epoch epoch = fields.epoch("epoch");
    position = Position{epoch, fields.number("sequence", 0, ~std::uint64_t{0})};
    if (!fields.finish_allow_unknown()) position.reset();
  }
  if (!position) ask_after_ = environment_.reactor.now() + ask_again_delay;
  for (Gate& gate : gates_) {
    if (!gate.asked || gate.awaits) continue;
    gate.awaits = position;
    gate.asked = position.has_value();
  }
  tend_gates();
}

/// As long as a client waits to write.
void Volume::ask_for_role() {
  const bool wanted =
      std::any_of(gates_.begin(), gates_.end(), [](const Gate& gate) { return gate.wants_role; });
  if (taking_ || !wanted) return;
  taking_ = true;
  ask_primary("handover/take",
              {{"id", standby_due()}, {"to", environment_.options.host}},
              take_timeout,
              [](Volume& volume, const Result<json>& answer) {
                volume.taking_ = false;
                if (answer) return;
                volume.standby_error_ = answer.error();
                volume.standby_error_id_ = volume.standby_due();
                volume.ask_after_ = volume.environment_.reactor.now() + ask_again_delay;
                volume.tend_gates();
              });
}

void Volume::ask_primary(const std::string& verb,
                         const json& body,
                         std::chrono::milliseconds timeout,
                         std::function<void(Volume&, const Result<json>&)> done) {
  const Record& record = *state().vote.record;
  const MemberState* primary = find_member(record.members, record.primary);
  environment_.votes->ask_later({primary->control,
                                 body.is_null() ? "GET" : "POST",
                                 "/v1/volumes/" + name_ + "/" + verb,
                                 body,
                                 timeout},
                                [self = shared_from_this(), done = std::move(done)](
                                    const Result<json>& answer) { done(*self, answer); });
}

}  // namespace replicad
