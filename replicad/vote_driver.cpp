#include "replicad/vote_driver.h"

#include <deque>
#include <future>
#include <random>
#include <thread>

#include "core/vote/record_json.h"
#include "io/file.h"
#include "replicad/log_failure.h"
#include "replicad/peer_client.h"
#include "replicad/reactor_call.h"

namespace replicad {

using nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

namespace {

/// A voter that takes longer is counted as missing in this round.
constexpr std::chrono::milliseconds voter_timeout{1500};
/// What an earlier version of the voter does not know is left out for it.
constexpr const char* stamps_field = "stamps";
constexpr unsigned back_off_ms_base = 10;
constexpr unsigned back_off_doublings_max = 6;

std::string vote_path(const std::string& volume, const char* verb) {
  return "/v1/volumes/" + volume + "/vote/" + verb;
}

Result<PrepareReply> parse_prepare_reply(const json& body) {
  FieldReader fields(body);
  PrepareReply reply;
  reply.granted = fields.boolean("granted");
  reply.fence = fields.epoch("fence");
  auto state = voter_from_json(fields.object("state"));
  if (!state) return tl::unexpected(state.error());
  reply.state = std::move(*state);
  reply.stamps = fields.stamps(stamps_field);
  RD_TRY(fields.finish_allow_unknown());
  return reply;
}

Result<AcceptReply> parse_accept_reply(const json& body) {
  FieldReader fields(body);
  AcceptReply reply;
  reply.granted = fields.boolean("granted");
  auto promised = ballot_from_json(fields.object("promised"));
  if (!promised) return tl::unexpected(promised.error());
  reply.promised = std::move(*promised);
  reply.stamps = fields.stamps(stamps_field);
  RD_TRY(fields.finish_allow_unknown());
  return reply;
}

Result<json> ask_voter(const MemberState& to, const std::string& path, json body) {
  auto answer = ask_peer({to.control, "POST", path, body, voter_timeout});
  if (answer && !answer->ok() && answer->error().code == Errc::invalid_argument &&
      body.erase(stamps_field) > 0)
    answer = ask_peer({to.control, "POST", path, body, voter_timeout});
  if (!answer) return tl::unexpected(answer.error());
  if (!answer->ok()) return tl::unexpected(answer->error());
  return std::move(answer->body);
}

Result<Epoch> ask_fence(const MemberState& voter,
                        const std::string& name,
                        const std::string& uuid) {
  const auto answer =
      ask_peer({voter.control, "GET", "/v1/volumes/" + name + "/vote", nullptr, voter_timeout});
  if (!answer) return tl::unexpected(answer.error());
  if (!answer->ok()) return tl::unexpected(answer->error());
  FieldReader fields(answer->body);
  const std::string found = fields.text("uuid", 36);
  const Epoch fence = fields.epoch("fence");
  RD_TRY(fields.finish_allow_unknown());
  if (found != uuid) return fail(Errc::refused, "{} has another volume {}", voter.host, name);
  return fence;
}

}  // namespace

/// What the threads of one proposal share with it.
class VoteDriver::Run {
 public:
  Run(std::shared_ptr<Volume> volume_of_run, std::string uuid_of_run)
      : volume(std::move(volume_of_run)), uuid(std::move(uuid_of_run)) {}

  void post(ProposerEvent event) {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    arrived_.notify_one();
  }
  /// The next event; nullopt at `until`.
  std::optional<ProposerEvent> wait(SteadyClock::time_point until) {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_until(lock, until, [this] { return !events_.empty(); })) return std::nullopt;
    ProposerEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

  const std::shared_ptr<Volume> volume;
  const std::string uuid;

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<ProposerEvent> events_;
};

VoteDriver::VoteDriver(VolumeEnvironment& environment) : environment_(environment) {}

VoteDriver::~VoteDriver() {
  stop();
  wait_idle();
}

void VoteDriver::wait_idle() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return threads_ == 0; });
}

void VoteDriver::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
}

void VoteDriver::start_thread(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    ++threads_;
  }
  std::thread([this, work = std::move(work)]() mutable {
    work();
    work = nullptr;
    const std::lock_guard lock(mutex_);
    if (--threads_ == 0) idle_.notify_all();
  }).detach();
}

/// Also what comes when the proposal has its majority.
void VoteDriver::tell_stamps(const std::shared_ptr<Volume>& volume, const StateStamps& stamps) {
  environment_.reactor.post([volume, stamps] { volume->hear_stamps(stamps); });
}

void VoteDriver::send(const proposer_effect::SendPrepare& effect, const std::shared_ptr<Run>& run) {
  start_thread([this, effect, run] {
    const bool local = effect.to.host == environment_.options.host;
    Result<PrepareReply> reply = [&]() -> Result<PrepareReply> {
      if (local) {
        return call_reactor<PrepareReply>(environment_.reactor, [&](auto done) {
          run->volume->vote_prepare(effect.request, std::move(done));
        });
      }
      const auto body = ask_voter(effect.to,
                                  vote_path(run->volume->name(), "prepare"),
                                  {{"uuid", run->uuid},
                                   {"fork", effect.request.fork},
                                   {"ballot", ballot_json(effect.request.ballot)},
                                   {stamps_field, stamps_json(effect.request.stamps)}});
      if (!body) return tl::unexpected(body.error());
      return parse_prepare_reply(*body);
    }();
    const Ballot& ballot = effect.request.ballot;
    if (reply) {
      if (!local) tell_stamps(run->volume, reply->stamps);
      run->post(proposer_event::PrepareAnswered{effect.to.host, ballot, std::move(*reply)});
    } else {
      run->post(proposer_event::Lost{effect.to.host, ballot, reply.error().message});
    }
  });
}

void VoteDriver::send(const proposer_effect::SendAccept& effect, const std::shared_ptr<Run>& run) {
  start_thread([this, effect, run] {
    const bool local = effect.to.host == environment_.options.host;
    Result<AcceptReply> reply = [&]() -> Result<AcceptReply> {
      if (local) {
        return call_reactor<AcceptReply>(environment_.reactor, [&](auto done) {
          run->volume->vote_accept(effect.request, std::move(done));
        });
      }
      const auto body = ask_voter(effect.to,
                                  vote_path(run->volume->name(), "accept"),
                                  {{"uuid", run->uuid},
                                   {"ballot", ballot_json(effect.request.ballot)},
                                   {"record", record_json(effect.request.record)},
                                   {stamps_field, stamps_json(effect.request.stamps)}});
      if (!body) return tl::unexpected(body.error());
      return parse_accept_reply(*body);
    }();
    const Ballot& ballot = effect.request.ballot;
    if (reply) {
      if (!local) tell_stamps(run->volume, reply->stamps);
      run->post(proposer_event::AcceptAnswered{effect.to.host, ballot, std::move(*reply)});
    } else {
      run->post(proposer_event::Lost{effect.to.host, ballot, reply.error().message});
    }
  });
}

/// To this host at once, so that it knows what its own proposal led to; to others in passing.
void VoteDriver::send(const proposer_effect::SendChosen& effect, const std::shared_ptr<Run>& run) {
  if (effect.to.host == environment_.options.host) {
    const Status learnt = call_reactor<void>(environment_.reactor, [&](auto done) {
      run->volume->vote_chosen(effect.notice, std::move(done));
    });
    if (!learnt) {
      log_failure("vote_not_learnt", run->volume->name(), learnt.error());
    }
    return;
  }
  start_thread([effect, run] {
    static_cast<void>(ask_voter(effect.to,
                                vote_path(run->volume->name(), "chosen"),
                                {{"uuid", run->uuid},
                                 {"ballot", ballot_json(effect.notice.ballot)},
                                 {"record", record_json(effect.notice.record)},
                                 {stamps_field, stamps_json(effect.notice.stamps)}}));
  });
}

Result<Record> VoteDriver::propose(const std::shared_ptr<Volume>& volume,
                                   RecordChange change,
                                   Duration timeout) {
  const auto end = SteadyClock::now() + timeout;
  VolumeState state = run_on_reactor(environment_.reactor, [volume] { return volume->state(); });
  // Above every round that it may have promised: its own vote does not count meanwhile.
  if (state.put_back) state.vote.promised.round += forgotten_max;
  const auto run = std::make_shared<Run>(volume, state.uuid);
  Proposer proposer(environment_.options.host, random_tag(), std::move(change));
  std::mt19937 random(random_tag());
  std::vector<ProposerEffect> effects;
  constexpr auto never = SteadyClock::time_point::max();
  auto retry_at = never;
  proposer.step(proposer_event::Start{state.vote, state.stamps}, effects);
  while (true) {
    for (const ProposerEffect& effect : std::exchange(effects, {})) {
      if (const auto* prepare = std::get_if<proposer_effect::SendPrepare>(&effect)) {
        send(*prepare, run);
      } else if (const auto* accept = std::get_if<proposer_effect::SendAccept>(&effect)) {
        send(*accept, run);
      } else if (const auto* chosen = std::get_if<proposer_effect::SendChosen>(&effect)) {
        send(*chosen, run);
      } else if (const auto* back_off = std::get_if<proposer_effect::BackOff>(&effect)) {
        const unsigned limit_ms = back_off_ms_base
                                  << std::min(back_off->attempt, back_off_doublings_max);
        // The first time at once: mostly it was a promise that led to nothing.
        const unsigned wait_ms =
            back_off->attempt == 1 ? 0 : static_cast<unsigned>(random()) % limit_ms;
        retry_at = SteadyClock::now() + std::chrono::milliseconds(wait_ms);
      } else if (const auto* done = std::get_if<proposer_effect::Done>(&effect)) {
        return done->record;
      } else if (const auto* failed = std::get_if<proposer_effect::Failed>(&effect)) {
        return tl::unexpected(failed->error);
      }
    }
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return fail(Errc::unreachable, "replicad is stopping");
    }
    const auto until = std::min(retry_at, end);
    if (auto event = run->wait(until)) {
      proposer.step(*event, effects);
    } else if (SteadyClock::now() < end) {
      retry_at = never;
      proposer.step(proposer_event::Retry{}, effects);
    } else {
      return with_hint(fail(Errc::unreachable, "no quorum of the voters in time"),
                       "it goes on as soon as enough of them answer");
    }
  }
}

void VoteDriver::hear(const MemberState& voter,
                      const std::string& name,
                      const std::string& uuid,
                      std::function<void(Result<Epoch>)> done) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
  }
  start_thread([this, voter, name, uuid, done = std::move(done)]() mutable {
    environment_.reactor.post(
        [done = std::move(done), fence = ask_fence(voter, name, uuid)] { done(fence); });
  });
}

void VoteDriver::ask_later(PeerRequest request, std::function<void(Result<json>)> done) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
  }
  start_thread([this, request = std::move(request), done = std::move(done)]() mutable {
    auto answer = ask_peer(request);
    Result<json> result = fail(Errc::unreachable, "not asked");
    if (!answer) result = tl::unexpected(answer.error());
    if (answer && !answer->ok()) result = tl::unexpected(answer->error());
    if (answer && answer->ok()) result = std::move(answer->body);
    environment_.reactor.post(
        [done = std::move(done), result = std::move(result)] { done(result); });
  });
}

Status VoteDriver::hear_quorum(const VolumeState& state) const {
  if (!state.vote.record) return {};
  const Record& record = *state.vote.record;
  std::vector<std::string> yes;
  std::vector<std::pair<std::string, std::future<Result<Epoch>>>> answers;
  for (const std::string& host : hosts_to_ask(record)) {
    const MemberState* member = find_member(record.members, host);
    // Of a voter of the version before only a proposal knows the way.
    if (member == nullptr) return {};
    if (host == environment_.options.host) {
      yes.push_back(host);
    } else {
      answers.emplace_back(host, std::async(std::launch::async, [voter = *member, state] {
                             return ask_fence(voter, state.name, state.uuid);
                           }));
    }
  }
  std::string missing;
  for (auto& [host, answer] : answers) {
    const auto fence = answer.get();
    if (fence) yes.push_back(host);
    if (!fence)
      missing += fmt::format("{}{} ({})", missing.empty() ? "" : ", ", host, fence.error().message);
  }
  if (has_quorum(record, yes, state.vote.chosen)) return {};
  return with_hint(fail(Errc::unreachable,
                        "no quorum of the {} voters: awaited {}",
                        record.members.size(),
                        missing),
                   "it goes on as soon as enough of them answer");
}

void VoteDriver::propose_later(const std::shared_ptr<Volume>& volume,
                               RecordChange change,
                               std::function<void(Result<Record>)> done) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      environment_.reactor.post(
          [done = std::move(done)] { done(fail(Errc::unreachable, "replicad is stopping")); });
      return;
    }
  }
  start_thread([this, volume, change = std::move(change), done = std::move(done)] {
    auto record = propose(volume, change);
    environment_.reactor.post([volume, done, record = std::move(record)] { done(record); });
  });
}

}  // namespace replicad
