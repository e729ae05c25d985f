#include "replicad/failover.h"

#include <algorithm>
#include <future>

#include "core/base/log.h"
#include "core/control/failover_view.h"
#include "io/file.h"
#include "replicad/peer_client.h"
#include "replicad/reactor_call.h"
#include "replicad/settlement.h"
#include "replicad/vote_driver.h"

namespace replicad {

using nlohmann::json;

namespace {

constexpr std::chrono::milliseconds look_timeout{1500};
constexpr Duration apply_patience = std::chrono::seconds(300);

Result<VolumeView> ask_member(const MemberState& member, const VolumeState& state) {
  const auto answer =
      ask_peer({member.control, "GET", volume_path(state.name), nullptr, look_timeout});
  if (!answer) return tl::unexpected(answer.error());
  if (!answer->ok()) return tl::unexpected(answer->error());
  auto view = parse_volume(answer->body);
  if (view && view->uuid != state.uuid)
    return fail(Errc::refused, "it has another volume of that name");
  return view;
}

/// What every member says, this host included; all are asked at once.
std::vector<MemberReport> look_at_members(ControlContext& context,
                                          const std::shared_ptr<Volume>& volume,
                                          const VolumeState& state) {
  std::vector<std::future<Result<VolumeView>>> answers;
  for (const MemberState& member : state.vote.record->members) {
    if (member.host == context.options.host) {
      const json own = describe_volume(context, volume);
      std::promise<Result<VolumeView>> promise;
      promise.set_value(parse_volume(own));
      answers.push_back(promise.get_future());
    } else {
      answers.push_back(
          std::async(std::launch::async, [member, state] { return ask_member(member, state); }));
    }
  }
  std::vector<MemberReport> reports;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const MemberState& member = state.vote.record->members[i];
    reports.push_back({member.host, member.control, answers[i].get()});
  }
  return reports;
}

/// What each copy that is behind lacks, from the log of the furthest one.
void learn_losses(ControlContext& context,
                  const std::string& name,
                  std::vector<MemberReport>& reports) {
  for (const LogQuestion& question : log_questions(reports)) {
    const std::string after = std::to_string(question.after);
    Result<json> answer = fail(Errc::unreachable, "not asked");
    if (question.host == context.options.host) {
      answer = ControlApi(context).log_count(name, after);
    } else {
      const auto told = ask_peer({question.address,
                                  "GET",
                                  volume_path(name, "log?after=" + after),
                                  nullptr,
                                  look_timeout});
      if (told && told->ok()) answer = told->body;
    }
    const auto losses = answer ? parse_log_count(*answer) : tl::unexpected(answer.error());
    if (!losses || !*losses) continue;
    const auto of = std::find_if(reports.begin(), reports.end(), [&](const auto& report) {
      return report.host == question.of;
    });
    of->lacks = **losses;
  }
}

class FailoverRun {
 public:
  FailoverRun(ControlContext& context,
              std::shared_ptr<Volume> volume,
              const FailoverRequest& request)
      : context_(context), volume_(std::move(volume)), request_(request) {}

  Result<json> run() {
    state_ = state_of(context_, volume_);
    RD_TRY(check_here());
    auto reports = look_at_members(context_, volume_, state_);
    learn_losses(context_, state_.name, reports);
    const FailoverView view = look_for_failover(context_.options.host, reports);
    if (const Status allowed = check_failover(view); !allowed && !request_.force)
      return tl::unexpected(allowed.error());
    if (request_.dry_run) return answer(state_.epoch, view, nullptr);
    // Should this daemon end before the new role is on record here, the one after it goes on.
    RD_TRY(update_volume(context_, volume_, [](VolumeState& state) -> Status {
      state.active = true;
      return {};
    }));
    const auto point = call_reactor<HistoryPoint>(
        context_.reactor,
        [this](const auto& done) {
          volume_->seal_replica(state_.epoch, std::nullopt, apply_patience, done);
        },
        apply_patience + reactor_call_timeout);
    if (!point) return tl::unexpected(point.error());
    const auto record = propose(view, *point);
    if (!record) {
      run_on_reactor(context_.reactor, [this] { volume_->reopen_replica(); });
      return tl::unexpected(record.error());
    }
    RD_TRY(call_reactor<void>(context_.reactor, [this, &record, &point](auto done) {
      volume_->record_promotion(*record, *point, true, std::move(done));
    }));
    log(LogLevel::warn,
        "failover",
        "volume={} from={} epoch={} sequence={} forced={}",
        state_.name,
        state_.vote.record->primary,
        record->epoch.number,
        point->sequence,
        request_.force);
    return serve(record->epoch, view);
  }

 private:
  Status check_here() const {
    const std::string& host = context_.options.host;
    if (!state_.vote.record)
      return fail(Errc::refused, "{} has no record of volume {} yet", host, state_.name);
    if (state_.rival) {
      return with_hint(fail(Errc::diverged, "two histories of volume {}", state_.name),
                       "choose by `replicactl resolve` first");
    }
    if (state_.put_back) {
      return with_hint(fail(Errc::inconsistent,
                            "the state file of volume {} on {} is an older copy that was put back",
                            state_.name,
                            host),
                       fmt::format("`replicactl readmit {} --host {}`", state_.name, host));
    }
    const Record& record = *state_.vote.record;
    if (record.primary == host) {
      return with_hint(fail(Errc::refused, "{} is the primary of volume {}", host, state_.name),
                       "start its export with `replicactl activate`");
    }
    if (!is_data_member(record, host))
      return fail(Errc::refused, "{} has no images of volume {}", host, state_.name);
    if (!state_.consistent) {
      return fail(Errc::inconsistent,
                  "the images of volume {} on {} are incomplete: they are no state that its disk "
                  "ever had",
                  state_.name,
                  host);
    }
    return {};
  }

  /// The replica may have started anew since the members were looked at.
  Status check_whole(const FailoverView& view, const HistoryPoint& point) const {
    const auto replica =
        run_on_reactor(context_.reactor, [this] { return volume_->snapshot().replica; });
    if (request_.force || !replica || !replica->is_short || mode_in_force(state_) == Mode::async)
      return {};
    if (is_longest(view, point)) return {};
    return with_hint(fail(Errc::refused,
                          "{} may lack acknowledged writes of {}: it has just failed",
                          context_.options.host,
                          state_.name),
                     "try again: `replicactl status` says who can take over");
  }

  /// Every replica in sync is short, and what is durable here now is still as long as any copy was.
  bool is_longest(const FailoverView& view, const HistoryPoint& point) const {
    const std::string& host = context_.options.host;
    const auto longest = longest_of_short(*view.record, view.copies);
    const auto own = std::find_if(view.copies.begin(), view.copies.end(), [&](const auto& copy) {
      return copy.host == host;
    });
    return contains_host(longest, host) && *view.record == *state_.vote.record &&
           point.epoch == own->epoch && point.sequence >= own->sequence;
  }

  Result<Record> propose(const FailoverView& view, const HistoryPoint& point) {
    RD_TRY(check_whole(view, point));
    const Record& base = *state_.vote.record;
    auto chosen = context_.environment.votes->propose(
        volume_,
        change_failover({context_.options.host, base.epoch, random_tag(), request_.force}));
    const bool no_quorum = !chosen && chosen.error().code == Errc::unreachable;
    if (!no_quorum || !request_.force) return chosen;
    return open_fork();
  }

  /// Without a majority: a history of this host's own, which members of the old one never join by
  /// themselves.
  Result<Record> open_fork() {
    const VolumeState now = state_of(context_, volume_);
    const Epoch epoch{std::max(now.epoch.number, now.vote.record->epoch.number) + 1, random_tag()};
    const std::string& host = context_.options.host;
    auto record = forced_record(*now.vote.record, host, {host}, epoch);
    if (!record) return record;
    RD_TRY(update_volume(context_, volume_, [record](VolumeState& state) -> Status {
      const Ballot ballot{state.vote.promised.round + 1, record->primary, record->fork};
      state.fork_base = state.vote.record;
      state.vote = {ballot, ballot, true, *record};
      state.epoch = record->epoch;
      state.members = record->members;
      return {};
    }));
    log(LogLevel::warn, "fork_opened", "volume={} fork={:08x}", state_.name, record->fork);
    return record;
  }

  Result<json> serve(const Epoch& epoch, const FailoverView& view) {
    const auto started = start_export(context_, volume_, nullptr);
    if (!started) {
      return with_hint(fail(started.error().code,
                            "{} is the primary of volume {} now, but its export did not start: {}",
                            context_.options.host,
                            state_.name,
                            started.error().message),
                       "`replicactl activate` starts it");
    }
    const json nbd_export = run_on_reactor(
        context_.reactor, [this, info = *started] { return export_json(info, volume_->state()); });
    return answer(epoch, view, nbd_export);
  }

  Result<json> answer(const Epoch& epoch, const FailoverView& view, const json& nbd_export) const {
    return json{{"schema", 1},
                {"volume", state_.name},
                {"from", state_.vote.record->primary},
                {"to", context_.options.host},
                {"epoch", to_json(epoch)},
                {"forced", request_.force},
                {"dry_run", request_.dry_run},
                {"copies", copies_json(view)},
                {"export", nbd_export}};
  }

  ControlContext& context_;
  std::shared_ptr<Volume> volume_;
  FailoverRequest request_;
  VolumeState state_;
};

}  // namespace

Result<json> run_failover(ControlContext& context,
                          const std::shared_ptr<Volume>& volume,
                          const FailoverRequest& request) {
  return FailoverRun(context, volume, request).run();
}

}  // namespace replicad
