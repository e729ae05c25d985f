// The plugin's side of a volume: claim, rejoin, serving, records, stop (docs/protocol.md, "The
// agent socket").

#include <algorithm>

#include <fcntl.h>
#include <unistd.h>

#include "core/base/log.h"
#include "io/file.h"
#include "replicad/image_check.h"
#include "replicad/log_failure.h"
#include "replicad/replica_offload.h"
#include "replicad/volume.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

/// Numbers that one claim may give out before it has to reserve more.
constexpr Sequence reserve_step = Sequence{1} << 24;
constexpr std::uint64_t sequence_max = std::uint64_t{1} << 62;
constexpr std::uint64_t pid_max = std::uint64_t{1} << 31;
/// An export that ended sooner counts as one that did not start.
constexpr Duration export_lives = std::chrono::seconds(3);
constexpr Duration restart_delay_base = std::chrono::seconds(1);
constexpr unsigned restart_doublings_max = 6;

/// What counts against the host's stability; want of space does not.
bool is_disk_error(const std::optional<Error>& error) {
  return error && error->code == Errc::io_error;
}

/// A claim's change of the state. After an unclean end the images may hold writes that no replica
/// has, or lack writes that one has: the history is given a new point that no replica can have
/// reached, so that none of them is taken for equal before it was compared.
void change_for_claim(VolumeState& state, const Record& record) {
  state.epoch = record.epoch;
  state.in_sync = record.in_sync;
  state.members = record.members;
  if (!state.clean) state.history = unclean_point(record.epoch, state);
  state.sequence_reserved =
      std::max(state.sequence_reserved, state.history.sequence + reserve_step);
  state.clean = false;
  begin_writing(state);
}

/// Blocks that an export wrote last, by disk.
using RecentBlocks = std::vector<std::vector<std::uint64_t>>;

RecentBlocks read_recent(FieldReader& fields,
                         const json& request,
                         const std::vector<DiskState>& disks) {
  constexpr std::size_t recent_max = 1024;
  RecentBlocks recent(disks.size());
  if (!request.contains("recent")) return recent;
  for (const json& item : fields.list("recent", recent_max)) {
    FieldReader block(item, "recent");
    const auto disk = block.number("disk", 0, disks_max);
    const auto offset = block.number("offset", 0, disk_bytes_max);
    if (const Status valid = block.finish_allow_unknown(); !valid) fields.reject(valid.error());
    if (disk < disks.size()) recent[disk].push_back(offset);
  }
  return recent;
}

/// Marks of images that an export has left at rest; none if that does not work. Blocking.
std::vector<ImageMark> mark_at_rest(const std::vector<DiskState>& disks,
                                    const RecentBlocks& recent) {
  std::vector<ImageMark> marks;
  for (std::size_t i = 0; i < disks.size(); ++i) {
    const Fd fd(::open(disks[i].path.c_str(), O_RDONLY | O_CLOEXEC));
    auto mark =
        fd.valid()
            ? mark_image(fd.get(), disks[i].bytes, choose_samples(disks[i].bytes, recent[i]), true)
            : fail_errno(errno, "open {}", disks[i].path);
    if (!mark) {
      log(LogLevel::warn, "images_not_marked", "message={}", log_value(mark.error().message));
      return {};
    }
    marks.push_back(std::move(*mark));
  }
  return marks;
}

/// What was wanted, then why not.
tl::unexpected<Error> fail_with_context(Error error, const std::string& what) {
  error.message = fmt::format("{}: {}", what, error.message);
  return tl::unexpected<Error>(std::move(error));
}

}  // namespace

void Volume::on_first_request(const std::shared_ptr<AgentSession>& session,
                              const std::string& op,
                              std::uint64_t id,
                              const json& request) {
  Reply reply = [session, id](const Result<json>& result) { session->reply(id, result); };
  if (op == "claim") {
    claim(session, request, std::move(reply));
  } else if (op == "rejoin") {
    rejoin(session, request, std::move(reply));
  } else if (op == "gate" || op == "want_role") {
    on_standby_request(session, op == "want_role", request, std::move(reply));
  } else {
    reply(fail(Errc::protocol, "the first request must be claim or rejoin, not {}", op));
  }
}

void Volume::bind_session(const std::shared_ptr<AgentSession>& session) {
  session_ = session;
  AgentSession::Handlers handlers;
  handlers.on_request = [self = weak_from_this(), weak = std::weak_ptr<AgentSession>(session)](
                            const std::string& op, std::uint64_t id, const json& request) {
    const auto volume = self.lock();
    const auto from = weak.lock();
    if (volume && from) volume->on_request(from, op, id, request);
  };
  handlers.on_event = [self = weak_from_this()](const json& event) {
    if (const auto volume = self.lock()) volume->on_event(event);
  };
  handlers.on_closed = [self = weak_from_this(),
                        weak = std::weak_ptr<AgentSession>(session)](const Error& error) {
    const auto volume = self.lock();
    const auto from = weak.lock();
    if (volume && from) volume->on_plugin_closed(from, error);
  };
  session->set_handlers(std::move(handlers));
  if (process_ && process_->pid() == session->peer_pid()) return;
  auto process = ExportProcess::adopt(session->peer_pid());
  set_export_process(process ? std::move(*process) : nullptr);
}

void Volume::set_export_process(std::shared_ptr<ExportProcess> process) {
  if (process_) former_processes_.push_back(std::move(process_));
  process_ = std::move(process);
}

void Volume::on_request(const std::shared_ptr<AgentSession>& session,
                        const std::string& op,
                        std::uint64_t id,
                        const json& request) {
  Reply reply = [session, id](const Result<json>& result) { session->reply(id, result); };
  if (session != session_) {
    return reply(fail(Errc::refused, "volume {} is not claimed by this process", name_));
  }
  if (op == "serving") return serving(request, reply);
  if (op == "record_in_sync") return record_in_sync(request, std::move(reply));
  if (op == "reserve") return reserve(request, std::move(reply));
  if (op == "stopped") return stopped(request, std::move(reply));
  reply(fail(Errc::protocol, "unknown request \"{}\", or not in this place", op));
}

// --- claim

Status Volume::check_claim() const {
  if (load_error_) return tl::unexpected(*load_error_);
  if (is_split()) return tl::unexpected(split_error());
  if (is_put_back()) return tl::unexpected(put_back_error());
  const std::string& host = environment_.options.host;
  if (!is_primary()) {
    return with_hint(fail(Errc::refused,
                          "{} is not the primary of volume {}: {} is",
                          host,
                          name_,
                          state().primary),
                     "start the export there, or move the volume with `replicactl switchover`");
  }
  if (starting_ && abandoned_) {
    return fail(Errc::refused, "the start of this export has been given up");
  }
  if (has_plugin()) {
    return fail(Errc::busy, "volume {} is served by process {} already", name_, plugin_pid_);
  }
  if (state().transfer) {
    return with_hint(fail(Errc::busy,
                          "a switchover of volume {} to {} is not settled",
                          name_,
                          state().transfer->to),
                     "it settles by itself as soon as enough voters answer");
  }
  if (released_ || (has_operation() && !starting_)) {
    return fail(Errc::busy, "volume {}: {} is under way", name_, released_ ? "delete" : operation_);
  }
  return {};
}

void Volume::claim(const std::shared_ptr<AgentSession>& session, const json& request, Reply reply) {
  FieldReader fields(request);
  const auto pid = fields.number("pid", 1, pid_max);
  const std::string version = fields.text("version", 64);
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  if (is_standby_claim()) return reply(standby_grant());
  if (const Status allowed = check_claim(); !allowed) return reply(tl::unexpected(allowed.error()));
  take_role();
  if (images_.empty()) {
    // An export that has not come back yet would lose its term to this claim.
    return reply(open_error_ ? Result<json>(tl::unexpected(*open_error_))
                             : fail(Errc::busy, "the images of volume {} are not free", name_));
  }
  bind_session(session);
  phase_ = Phase::claiming;
  abandoned_ = false;
  plugin_pid_ = static_cast<std::int64_t>(pid);
  plugin_status_.reset();
  log(LogLevel::info,
      "claim",
      "volume={} pid={} version={} unclean={}",
      name_,
      pid,
      log_value(version),
      !state().clean);
  const auto self = shared_from_this();
  environment_.votes->propose_later(
      self,
      change_claim({environment_.options.host, random_tag(), state().epoch.number, state().clean}),
      [self, reply = std::move(reply)](const Result<Record>& record) {
        if (record) return self->record_claim(*record, reply);
        self->note_vote(record.error());
        if (record.error().code == Errc::stale_epoch) {
          self->recheck_ = true;
          self->environment_.wake_keeper();
        }
        self->drop_session();
        reply(fail_with_context(record.error(), "a new term of volume " + self->name_));
      });
}

void Volume::record_claim(const Record& record, const Reply& reply) {
  vote_error_.reset();
  const bool was_clean = state().clean;
  const auto self = shared_from_this();
  update(
      [host = environment_.options.host, record](VolumeState& state) -> Status {
        const bool overtaken =
            state.primary != host || (state.vote.record && *state.vote.record != record);
        if (overtaken) return fail(Errc::refused, "{} is no longer the primary", host);
        if (state.put_back)
          return fail(Errc::inconsistent, "the state file on {} is an older copy", host);
        change_for_claim(state, record);
        return {};
      },
      [self, was_clean, reply](const Status& written) {
        self->on_claimed(written, was_clean, reply);
      });
}

void Volume::on_claimed(Status written, bool was_clean, const Reply& reply) {
  if (!written) {
    drop_session();
    return reply(tl::unexpected(written.error()));
  }
  claim_was_clean_ = was_clean;
  follow_handover();
  last_end_.reset();
  phase_ = Phase::claimed;
  watch_images();
  images_.clear();
  reply(claim_result(!was_clean));
  if (!session_->is_open()) undo_claim();
}

json Volume::claim_result(bool unclean) const {
  const VolumeState& now = state();
  json disks = json::array();
  for (const DiskState& disk : now.disks) {
    disks.push_back({{"name", disk.name}, {"bytes", disk.bytes}, {"path", disk.path}});
  }
  return {{"host", environment_.options.host},
          {"uuid", now.uuid},
          {"epoch", to_json(now.vote.record ? now.vote.record->epoch : now.epoch)},
          {"disks", disks},
          {"members", data_members_json(now.members)},
          {"voters", voters_json(now.vote.record)},
          {"settings", to_json(settings_in_force())},
          {"history", to_json(now.history)},
          {"reserved", now.sequence_reserved},
          {"in_sync", now.in_sync},
          {"unclean", unclean},
          {"directory", environment_.volume_dir(name_)}};
}

/// The plugin went away before it served anything: the images are as they were.
void Volume::undo_claim() {
  log(LogLevel::info, "claim_undone", "volume={}", name_);
  const auto self = shared_from_this();
  update(
      [clean = claim_was_clean_](VolumeState& state) -> Status {
        state.clean = clean;
        return {};
      },
      [self](const Status& written) {
        if (!written) log_failure("undo_failed", self->name_, written.error());
        self->drop_session();
        self->take_role();
      });
}

void Volume::abandon_claim(std::function<void()> done) {
  if (phase_ == Phase::claimed) {
    abandoned_ = true;
    session_->close(Error{Errc::unreachable, 0, "replicad is stopping", {}});
  }
  if (phase_ != Phase::claimed && phase_ != Phase::claiming) return done();
  environment_.reactor.add_timer(std::chrono::milliseconds(20),
                                 [self = weak_from_this(), done = std::move(done)]() mutable {
                                   if (const auto volume = self.lock())
                                     volume->abandon_claim(std::move(done));
                                 });
}

void Volume::drop_session() {
  phase_ = Phase::none;
  session_.reset();
  plugin_pid_ = 0;
}

// --- rejoin

void Volume::rejoin(const std::shared_ptr<AgentSession>& session,
                    const json& request,
                    Reply reply) {
  FieldReader fields(request);
  const auto pid = fields.number("pid", 1, pid_max);
  const Epoch epoch = fields.epoch("epoch");
  const Sequence reserved = fields.number("reserved", 0, sequence_max);
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  if (load_error_) {
    // No answer: a refusal would end an export that may well be in its rights. It asks again.
    session->close(*load_error_);
    return;
  }
  const std::string& host = environment_.options.host;
  if (is_split()) {
    // This daemon ended before it had ended the export.
    return reply(fail(Errc::stale_epoch, "{}", split_error().message));
  }
  // A plugin that a switchover had sealed may have missed its new term: replicad ended between
  // recording and telling it. It is the one that holds the images, so nobody has had a term since.
  const VoterState& vote = state().vote;
  const bool recorded = vote.record && vote.record->primary == host;
  const Epoch term = recorded ? vote.record->epoch : state().epoch;
  const bool missed_term =
      recorded && epoch.number < term.number && open_error_ && open_error_->code == Errc::busy;
  const bool undecided = !vote.chosen && !state().transfer && (!recorded || missed_term);
  if (is_primary() && undecided) {
    // A move that may or may not have been decided: no answer until the voters have said so.
    session->close(Error{Errc::busy, 0, "the record is being asked for", {}});
    environment_.wake_keeper();
    return;
  }
  if (!is_primary() || !recorded || state().clean || (term != epoch && !missed_term)) {
    return reply(fail(Errc::stale_epoch,
                      "the term {} of this export of volume {} is over on {}",
                      epoch.number,
                      name_,
                      host));
  }
  if (phase_ == Phase::serving && session_->peer_pid() == session->peer_pid()) {
    drop_session();  // the same plugin; the end of its old connection has not been seen yet
  }
  if (has_plugin()) {
    return reply(fail(Errc::busy, "volume {} is served by process {}", name_, plugin_pid_));
  }
  if (!images_.empty() || released_) {
    return reply(fail(Errc::refused, "{} has taken the images of volume {} back", host, name_));
  }
  bind_session(session);
  watch_images();
  phase_ = Phase::serving;
  plugin_pid_ = static_cast<std::int64_t>(pid);
  plugin_status_.reset();
  open_error_.reset();
  serving_since_ = environment_.reactor.now();
  log(LogLevel::info, "rejoined", "volume={} pid={} epoch={}", name_, pid, epoch.number);
  watch_voters();
  take_socket_back();
  const auto self = shared_from_this();
  update(
      [reserved](VolumeState& state) -> Status {
        state.sequence_reserved = std::max(state.sequence_reserved, reserved);
        state.active = true;
        return {};
      },
      [self, missed_term, reserved, reply = std::move(reply)](const Status& written) {
        // What is promised to the plugin must be on disk; the rest can wait.
        const bool reservation_kept = reserved <= self->state().sequence_reserved;
        if (!written && !reservation_kept) return reply(tl::unexpected(written.error()));
        reply(self->claim_result(false));
        // With a switchover open it stays sealed until that is settled. One that was not on record yet has ended with
        // the daemon that ran it.
        if (!self->state().transfer) self->end_hold(missed_term);
      });
}

/// Of an export that an earlier daemon has started. Without its socket the next export gets a new one, and clients
/// find the old one closed meanwhile.
void Volume::take_socket_back() {
  if (!process_) return;
  const Status taken = endpoint_.take_from(*process_);
  if (taken) return;
  log(LogLevel::warn,
      "socket_not_taken",
      "volume={} error={}",
      name_,
      log_value(taken.error().message));
}

void Volume::end_hold(bool missed_term) {
  plugin_request(
      "resume",
      missed_term ? json{{"epoch", to_json(state().vote.record->epoch)}} : json::object(),
      plugin_resume_timeout,
      [name = name_](const Result<json>& resumed) {
        if (resumed) return;
        log_failure("resume_failed", name, resumed.error());
      });
}

// --- requests of a plugin that has claimed

void Volume::serving(const json& request, const Reply& reply) {
  FieldReader fields(request);
  const auto pid = fields.number("pid", 1, pid_max);
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  if (phase_ != Phase::claimed && phase_ != Phase::serving) {
    return reply(fail(Errc::refused, "volume {} is not claimed by this process", name_));
  }
  has_served_ = true;
  phase_ = Phase::serving;
  if (abandoned_) {
    return reply(fail(Errc::refused, "the start of this export has been given up"));
  }
  plugin_pid_ = static_cast<std::int64_t>(pid);
  ended_by_request_ = false;
  lost_ = false;
  serving_since_ = environment_.reactor.now();
  start_error_.reset();
  log(LogLevel::info, "serving", "volume={} pid={} epoch={}", name_, pid, state().epoch.number);
  watch_voters();
  reply(json::object());
}

void Volume::record_in_sync(const json& request, Reply reply) {
  FieldReader fields(request);
  const auto in_sync = fields.texts("in_sync", members_max, host_name_bytes_max);
  const std::string reason = fields.optional_text("reason", 4096).value_or("");
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  const std::string& host = environment_.options.host;
  const auto& record = state().vote.record;
  if (!contains_host(in_sync, host))
    return reply(fail(Errc::invalid_argument, "the in-sync set lacks the primary {}", host));
  if (!record || record->primary != host) {
    recheck_ = !state().vote.chosen;
    environment_.wake_keeper();
    return reply(fail(state().vote.chosen ? Errc::stale_epoch : Errc::busy,
                      "another host may have become the primary of {}",
                      name_));
  }
  const auto self = shared_from_this();
  environment_.votes->propose_later(
      self,
      change_in_sync(host, record->epoch, in_sync),
      [self, in_sync, reason, reply = std::move(reply)](const Result<Record>& chosen) {
        self->note_vote(chosen ? std::nullopt : std::optional<Error>(chosen.error()));
        log(chosen ? LogLevel::warn : LogLevel::error,
            chosen ? "in_sync_changed" : "in_sync_not_recorded",
            "volume={} in_sync={} reason={}",
            self->name_,
            fmt::join(in_sync, ","),
            log_value(chosen ? reason : chosen.error().message));
        reply(chosen ? Result<json>(json::object()) : tl::unexpected(chosen.error()));
      });
}

void Volume::reserve(const json& request, Reply reply) {
  FieldReader fields(request);
  const Sequence until = fields.number("until", 0, sequence_max);
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  const auto self = shared_from_this();
  update(
      [until](VolumeState& state) -> Status {
        state.sequence_reserved = std::max(state.sequence_reserved, until);
        return {};
      },
      [self, reply = std::move(reply)](const Status& written) {
        if (!written) return reply(tl::unexpected(written.error()));
        reply(json{{"reserved", self->state().sequence_reserved}});
      });
}

void Volume::stopped(const json& request, Reply reply) {
  FieldReader fields(request);
  const HistoryPoint history = fields.point("history");
  const RecentBlocks recent = read_recent(fields, request, state().disks);
  if (const Status valid = fields.finish_allow_unknown(); !valid)
    return reply(tl::unexpected(valid.error()));
  if ((phase_ != Phase::claimed && phase_ != Phase::serving) || abandoned_) {
    return reply(fail(Errc::refused, "volume {} is not served by this process", name_));
  }
  offload(
      environment_.worker,
      environment_.reactor,
      [disks = state().disks, recent] { return mark_at_rest(disks, recent); },
      [self = shared_from_this(), history, reply = std::move(reply)](
          const std::vector<ImageMark>& marks) { self->record_stop(history, marks, reply); });
}

void Volume::record_stop(const HistoryPoint& history,
                         const std::vector<ImageMark>& marks,
                         const Reply& reply) {
  const auto self = shared_from_this();
  update(
      [host = environment_.options.host, history, marks, restarting = restarting_](
          VolumeState& state) -> Status {
        // During a switchover the point that counts is on record already.
        if (state.primary != host || state.transfer) {
          return fail(Errc::refused, "a switchover of volume {} is under way", state.name);
        }
        if (history.sequence < state.history.sequence) {
          return fail(Errc::invalid_argument,
                      "the history cannot end at {}, before {}",
                      history.sequence,
                      state.history.sequence);
        }
        state.history = history;
        state.sequence_reserved = std::max(state.sequence_reserved, history.sequence);
        state.clean = true;
        set_marks(state, marks, history);
        if (!restarting && !state.settings.autostart) state.active = false;
        return {};
      },
      [self, reply](const Status& written) {
        if (!written) return reply(tl::unexpected(written.error()));
        log(LogLevel::info,
            "stopped",
            "volume={} sequence={}",
            self->name_,
            self->state().history.sequence);
        self->ended_by_request_ = !self->restarting_;
        const bool gone = !self->session_ || !self->session_->is_open();
        if (gone) self->drop_session();
        if (!gone) self->phase_ = Phase::stopped;
        reply(json::object());
        if (gone) self->take_role();
      });
}

void Volume::on_event(const json& event) {
  FieldReader fields(event);
  if (fields.text("op", 64) != "status") return;
  auto status = plugin_status_from(event);
  if (!status) {
    log(LogLevel::warn,
        "bad_status",
        "volume={} error={}",
        name_,
        log_value(status.error().message));
    return;
  }
  const bool failed_before = plugin_status_ && is_disk_error(plugin_status_->error);
  plugin_status_ = std::move(*status);
  if (!failed_before && is_disk_error(plugin_status_->error))
    environment_.count_trouble(HostTrouble::disk_error);
  if (role_due() == RoleDue::renew && !has_operation()) environment_.wake_keeper();
}

// --- the end of a connection

void Volume::on_plugin_closed(const std::shared_ptr<AgentSession>& session, const Error& error) {
  if (session != session_ || environment_.stopping) return;
  switch (phase_) {
    case Phase::none:
    case Phase::claiming:  // on_claimed sees that the session is closed
      return;
    case Phase::claimed:
      return undo_claim();
    case Phase::serving:
      // After a switchover this is how the old primary's export ends; with one unsettled, its point
      // is on record.
      if (is_primary() && !state().transfer) note_unclean_end(error);
      break;
    case Phase::stopped:
      break;
  }
  drop_session();
  take_role();
}

void Volume::note_unclean_end(const Error& error) {
  log(LogLevel::error,
      "export_lost",
      "volume={} pid={} error={}",
      name_,
      plugin_pid_,
      log_value(error.message));
  last_end_ =
      Error{Errc::inconsistent,
            0,
            fmt::format("the export (process {}) ended uncleanly", plugin_pid_),
            "activate starts a new epoch, and replicas are compared where they differ; its last "
            "words are in " +
                export_command().log_file()};
  if (environment_.reactor.now() - serving_since_ >= export_lives) failed_starts_ = 0;
  lost_ = true;
  delay_start();
  environment_.wake_keeper();
}

// --- requests to the plugin

void Volume::plugin_request(const std::string& op,
                            json fields,
                            Duration timeout,
                            AgentSession::Answer answer) {
  if (phase_ != Phase::serving) {
    answer(with_hint(fail(Errc::refused, "volume {} is not being served", name_),
                     "start the export with `replicactl activate`"));
    return;
  }
  session_->request(op, std::move(fields), timeout, std::move(answer));
}

void Volume::plugin_release() {
  if (session_) session_->notify("release");
}

// --- autostart

bool Volume::awaits_start() const {
  // Clean and still to be served: a promotion or a restart that was cut short before its export began.
  const bool wanted = state().active && (state().settings.autostart || state().clean || lost_);
  return wanted && !ended_by_request_ && !is_split() && is_primary() && !has_plugin() &&
         !starting_ && !load_error_ && !released_;
}

bool Volume::export_due() const {
  // Only free images prove that no plugin lives that has not come back yet.
  return awaits_start() && !images_.empty() && !has_operation() && !state().transfer &&
         role_due() == RoleDue::none && environment_.reactor.now() >= start_again_at_;
}

/// The first time at once.
void Volume::delay_start() {
  const unsigned doublings = std::min(failed_starts_++, restart_doublings_max);
  start_again_at_ = environment_.reactor.now();
  if (doublings > 0) start_again_at_ += restart_delay_base * (1U << doublings);
}

void Volume::note_start_failed(const Error& error) {
  start_error_ = error;
  recheck_ = true;
  failed_starts_ = std::max(failed_starts_, 1U);
  delay_start();
}

std::optional<ExportInfo> Volume::export_info() const {
  if (phase_ != Phase::serving || !is_primary()) return std::nullopt;
  ExportInfo info{plugin_pid_, {}};
  const ExportCommand command = export_command();
  // An export that was started by hand may listen elsewhere: the pid file tells.
  const auto pid = read_file(command.pid_file(), 64);
  const bool ours = pid && pid->substr(0, pid->find('\n')) == std::to_string(plugin_pid_);
  if (ours) info.socket = command.socket();
  return info;
}

Status Volume::prepare_export() {
  starting_ = true;
  abandoned_ = false;
  has_served_ = false;
  if (Status allowed = check_claim(); !allowed) {
    starting_ = false;
    return allowed;
  }
  take_role();
  if (images_.empty() && open_error_) {
    starting_ = false;
    return tl::unexpected(*open_error_);
  }
  return {};
}

}  // namespace replicad
