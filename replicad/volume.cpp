#include "replicad/volume.h"

#include <algorithm>

#include <fcntl.h>

#include "core/base/log.h"
#include "core/base/names.h"
#include "core/store/failed_sync.h"
#include "io/file.h"
#include "io/image_identity.h"
#include "replicad/image_check.h"
#include "replicad/log_failure.h"
#include "replicad/replica_log_files.h"
#include "replicad/replica_offload.h"

namespace replicad {

namespace {

constexpr Duration open_retry_delay = std::chrono::milliseconds(300);
/// Behind whatever a guest waits for while a role moves.
constexpr Duration close_delay = std::chrono::seconds(1);
/// How long images that another process holds are no error yet: a plugin may be leaving or coming
/// back.
constexpr Duration open_grace = std::chrono::seconds(5);

Error unclean_end() {
  return Error{Errc::inconsistent,
               0,
               "the export ended uncleanly",
               "activate starts a new epoch and replicas will need `replicactl resync`"};
}

}  // namespace

Volume::Volume(VolumeEnvironment& environment, std::string name)
    : environment_(environment),
      name_(std::move(name)),
      endpoint_(name_, environment.options.run_dir + "/" + name_ + ".sock") {}

Volume::~Volume() = default;

std::shared_ptr<Volume> Volume::make(VolumeEnvironment& environment, const std::string& name) {
  return {new Volume(environment, name), [&reactor = environment.reactor](Volume* volume) {
            reactor.post([volume] { delete volume; });
          }};
}

std::shared_ptr<Volume> Volume::create(VolumeEnvironment& environment, const std::string& name) {
  auto volume = make(environment, name);
  volume->store_ = std::make_unique<StateStore>(environment.reactor,
                                                environment.worker,
                                                environment.volume_dir(name) + "/state",
                                                VolumeState{});
  volume->recheck_ = false;
  return volume;
}

std::shared_ptr<Volume> Volume::load(VolumeEnvironment& environment, const std::string& name) {
  const std::string path = environment.volume_dir(name) + "/state";
  auto state = StateStore::load(path);
  if (state && state->name != name) {
    state = fail(Errc::corrupt, "{} is the state of volume {}, not of {}", path, state->name, name);
  }
  auto volume = make(environment, name);
  if (!state) {
    volume->load_error_ = state.error();
    log_failure("volume_broken", name, state.error());
    // Something to show; never written, because every operation on a broken volume is refused.
    VolumeState unknown;
    unknown.name = name;
    unknown.uuid = unknown_uuid;
    state = std::move(unknown);
  }
  volume->store_ = std::make_unique<StateStore>(
      environment.reactor, environment.worker, path, std::move(*state));
  if (!volume->load_error_ && volume->is_primary()) volume->discard_leftover_log();
  volume->handover_mode_ = volume->state().vote.record && volume->state().vote.record->handover;
  volume->endpoint_.take_given(environment.given_sockets);
  return volume;
}

/// A promotion is recorded before the log, applied in full by then, is removed. This is for its space; that none is
/// there is made certain where the role is given up.
void Volume::discard_leftover_log() const {
  if (const Status removed = remove_log(log_dir()); !removed) {
    log(LogLevel::warn,
        "log_not_removed",
        "volume={} error={}",
        name_,
        log_value(removed.error().message));
  }
}

ExportCommand Volume::export_command() const {
  const Options& options = environment_.options;
  return {options.nbdkit, options.plugin, name_, options.agent_socket(), options.run_dir};
}

Status Volume::begin_operation(const std::string& what) {
  if (load_error_) return tl::unexpected(*load_error_);
  if (released_) return fail(Errc::not_found, "volume {} is being deleted", name_);
  if (!operation_.empty()) {
    return with_hint(fail(Errc::busy, "volume {}: {} is under way", name_, operation_),
                     "try again when it has ended");
  }
  operation_ = what;
  return {};
}

// --- what is shown

VolumeSnapshot Volume::snapshot() const {
  VolumeSnapshot snapshot;
  snapshot.host = environment_.options.host;
  snapshot.state = state();
  snapshot.shown_state = shown_state();
  snapshot.error = shown_error();
  snapshot.nbd_export = export_info();
  snapshot.plugin = plugin_status_;
  snapshot.plugin_running = phase_ == Phase::serving;
  if (replica_) snapshot.replica = replica_->status();
  snapshot.standby = standby_info();
  if (standby_error_id_ == standby_due()) snapshot.standby_error = standby_error_;
  return snapshot;
}

std::string Volume::shown_state() const {
  if (load_error_) return "failed";
  const bool open_failed = open_error_ && environment_.reactor.now() - open_since_ > open_grace;
  if (is_split()) return "split";
  if (is_put_back() && phase_ == Phase::none) return "failed";
  if (state().disks.empty()) return "witness";
  if (!is_primary()) {
    if (replica_) return replica_->status().state;
    return open_failed ? "failed" : "disconnected";
  }
  if (state().transfer) return "transferring";
  switch (phase_) {
    case Phase::claiming:
    case Phase::claimed:
      return "starting";
    case Phase::serving:
      if (!plugin_status_ || plugin_status_->state == "serving") return "serving";
      return plugin_status_->state == "failed" ? "failed" : "held";
    case Phase::stopped:
      return "stopped";
    case Phase::none:
      break;
  }
  if (starting_) return "starting";
  if (awaits_start() && !open_error_) return "starting";
  if (open_error_ && open_error_->code != Errc::busy) return "failed";
  // A plugin that lives may still come back.
  if (open_error_ && !open_failed && !state().clean) return "starting";
  return "stopped";
}

std::optional<Error> Volume::shown_error() const {
  if (load_error_) return load_error_;
  if (is_split()) return split_error();
  if (is_put_back()) return put_back_error();
  if (!is_primary()) {
    if (replica_) return replica_->status().error;
    return shown_state() == "failed" ? open_error_ : std::nullopt;
  }
  if (state().transfer && operation_.empty()) {
    return Error{
        Errc::timeout,
        0,
        fmt::format("whether {} has become the primary is not known", state().transfer->to),
        "guests wait; it settles by itself as soon as enough voters answer"};
  }
  if (phase_ == Phase::serving && plugin_status_ && plugin_status_->error)
    return plugin_status_->error;
  if (vote_error_) return vote_error_;
  if (phase_ != Phase::none) return std::nullopt;
  if (open_error_ && environment_.reactor.now() - open_since_ > open_grace) return open_error_;
  if (open_error_ && open_error_->code != Errc::busy) return open_error_;
  if (awaits_start() && start_error_) return start_error_;
  if (!state().clean && shown_state() == "stopped") return last_end_ ? last_end_ : unclean_end();
  return std::nullopt;
}

// --- role and images

bool Volume::has_images() const {
  return replica_ != nullptr || !images_.empty() || has_plugin();
}

void Volume::take_role() {
  if (load_error_ || released_ || environment_.stopping || replica_busy_ || has_images()) return;
  if (state().disks.empty()) return;  // a witness
  if (is_put_back()) {
    note_open(tl::unexpected(put_back_error()));
    return;
  }
  if (!open_error_) open_since_ = environment_.reactor.now();
  if (is_primary()) {
    lock_images();
  } else {
    open_replica();
  }
}

void Volume::lock_images() {
  std::vector<Fd> images;
  for (const DiskState& disk : state().disks) {
    auto image = open_image_locked(disk.path, disk.bytes);
    if (!image) return note_open(tl::unexpected(image.error()));
    images.push_back(std::move(*image));
  }
  std::vector<int> fds;
  for (const Fd& image : images)
    fds.push_back(image.get());
  if (auto noted = note_failed_writes(); !noted) return note_open(std::move(noted));
  if (auto checked = check_images(state(), environment_.options.host, fds, {}); !checked)
    return note_open(std::move(checked));
  images_ = std::move(images);
  note_open({});
  learn_identities(fds);
  if (awaits_start()) environment_.wake_keeper();
}

void Volume::watch_images() {
  watches_.clear();
  for (const DiskState& disk : state().disks) {
    Fd fd(::open(disk.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    watches_.push_back(std::move(fd));  // invalid: it cannot be watched
  }
}

/// A plugin that was killed while a sync failed has left no mark of that (nbd-plugin/durable_fds.h).
Status Volume::note_failed_writes() {
  for (std::size_t i = 0; i < watches_.size(); ++i) {
    if (!watches_[i].valid()) continue;
    const Status written = check_written_back(watches_[i].get());
    if (written) continue;
    const std::string mark = environment_.volume_dir(name_) + "/" + failed_sync_name;
    log_failure("durability_lost", name_, written.error());
    RD_TRY(write_file_durably(mark, state().disks[i].path + "\n"));
  }
  watches_.clear();
  return {};
}

/// Of images that have not been looked at before.
void Volume::learn_identities(const std::vector<int>& fds) {
  std::vector<std::string> identities;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const auto identity = image_identity(fds[i]);
    if (!identity || !state().disks[i].mark.identity.empty()) return;
    identities.push_back(*identity);
  }
  update(
      [identities = std::move(identities)](VolumeState& state) -> Status {
        for (std::size_t i = 0; i < identities.size(); ++i)
          state.disks[i].mark.identity = identities[i];
        return {};
      },
      [](const Status& /*written*/) {});  // the next one who opens them tries again
}

void Volume::look_again() {
  open_error_.reset();
  take_role();
}

void Volume::accept_images(bool trust, Done done) {
  auto change = [host = environment_.options.host, trust](VolumeState& state) -> Status {
    forget_images(state, host, trust);
    return {};
  };
  update(std::move(change),
         [self = shared_from_this(), done = std::move(done)](const Status& written) {
           if (written) {
             log(LogLevel::warn, "images_accepted", "volume={}", self->name_);
             self->look_again();
           }
           done(written);
         });
}

void Volume::open_replica() {
  auto replica = ReplicaVolume::open(
      environment_.reactor, environment_.options.host, log_dir(), replica_hooks());
  if (!replica) return note_open(tl::unexpected(replica.error()));
  replica_ = std::move(*replica);
  note_open({});
  learn_identities(replica_->image_fds());
}

void Volume::note_open(Status status) {
  if (status) {
    if (open_error_) log(LogLevel::info, "volume_opened", "volume={}", name_);
    open_error_.reset();
    return;
  }
  const Error& error = status.error();
  if (!open_error_ || open_error_->message != error.message) {
    log_failure("volume_not_open", name_, error);
  }
  open_error_ = error;
  // In use, away, of another size: that is seen before anything is read. Others do not heal by
  // waiting, and reading a large log again and again would disturb the other volumes.
  if (error.code == Errc::busy || error.code == Errc::not_found ||
      error.code == Errc::invalid_argument)
    retry_role();
}

void Volume::retry_role() {
  if (opening_) return;
  opening_ = true;
  environment_.reactor.add_timer(open_retry_delay, [self = weak_from_this()] {
    const auto volume = self.lock();
    if (!volume) return;
    volume->opening_ = false;
    volume->take_role();
  });
}

ReplicaVolume::Hooks Volume::replica_hooks() {
  ReplicaVolume::Hooks hooks;
  hooks.update_state = [this](std::function<void(VolumeState&)> change, Done done) {
    update(
        [change = std::move(change)](VolumeState& state) -> Status {
          const HistoryPoint before = state.checkpoint;
          change(state);
          // A copy or resync that is complete ends what an unclean end as primary had left: the
          // image stands on the primary's history from then on.
          if (state.consistent && state.checkpoint != before) state.clean = true;
          return {};
        },
        std::move(done));
  };
  hooks.state = [this]() -> const VolumeState& { return state(); };
  hooks.on_locked = [this] { return note_failed_writes(); };
  hooks.on_link_lost = [this] { environment_.count_trouble(HostTrouble::link_loss); };
  hooks.on_disk_error = [this] { environment_.count_trouble(HostTrouble::disk_error); };
  hooks.close_later = [this](std::vector<Fd> fds) {
    const auto kept = std::make_shared<std::vector<Fd>>(std::move(fds));
    environment_.reactor.add_timer(close_delay, [&background = environment_.background, kept] {
      background.post([kept] { kept->clear(); });
    });
  };
  return hooks;
}

void Volume::release(bool discard_log, std::function<void()> done) {
  released_ = true;
  images_.clear();
  if (replica_busy_) {
    environment_.reactor.add_timer(
        open_retry_delay, [self = weak_from_this(), discard_log, done = std::move(done)]() mutable {
          if (const auto volume = self.lock()) volume->release(discard_log, std::move(done));
        });
    return;
  }
  if (!replica_) {
    done();
    return;
  }
  replica_busy_ = true;
  replica_->shutdown(discard_log, [self = shared_from_this(), done = std::move(done)] {
    self->replica_.reset();
    self->replica_busy_ = false;
    done();
  });
}

void Volume::tend() {
  if (process_ && process_->wait_exit(std::chrono::milliseconds(0)) && phase_ == Phase::none) {
    process_.reset();
  }
  std::erase_if(former_processes_, [](const std::shared_ptr<ExportProcess>& process) {
    return process->wait_exit(std::chrono::milliseconds(0));
  });
  const bool is_used = has_plugin() || has_operation() || starting_ || state().transfer ||
                       standby_id_ != 0 || handover() != nullptr;
  if (is_used || awaits_start()) return;
  endpoint_.drop();
  endpoint_.turn_away();
}

// --- the replica's side

Status Volume::attach(const std::shared_ptr<FrameConnection>& connection,
                      const AttachMessage& message) {
  if (load_error_) return tl::unexpected(*load_error_);
  if (is_split()) return tl::unexpected(split_error());
  if (message.volume_uuid != state().uuid) {
    return fail(Errc::refused,
                "volume {} on {} is another volume: its uuid is {}, not {}",
                name_,
                environment_.options.host,
                state().uuid,
                message.volume_uuid);
  }
  if (is_primary()) {
    // Somebody with a later epoch believes otherwise: the voters know.
    if (message.epoch.number > state().epoch.number) {
      recheck_ = true;
      environment_.wake_keeper();
    }
    return fail(
        Errc::refused, "{} is itself the primary of volume {}", environment_.options.host, name_);
  }
  if (state().disks.empty()) {
    return fail(Errc::refused,
                "{} is a witness of volume {} and has no images",
                environment_.options.host,
                name_);
  }
  if (!replica_ || replica_busy_) {
    if (open_error_) return tl::unexpected(*open_error_);
    return fail(Errc::busy, "volume {} on {} changes its role", name_, environment_.options.host);
  }
  // A promise that led to no record stands in the way of a term that was chosen: the voters know.
  const Epoch& promised = state().epoch;
  if (message.epoch.number == promised.number && message.epoch != promised) {
    recheck_ = true;
    environment_.wake_keeper();
  }
  replica_->attach(connection, message);
  return {};
}

Status Volume::check_promotion(const PromotionRequest& request) const {
  if (load_error_) return tl::unexpected(*load_error_);
  if (is_split()) return tl::unexpected(split_error());
  const std::string& host = environment_.options.host;
  if (is_primary())
    return fail(Errc::refused, "{} is the primary of volume {} already", host, name_);
  if (state().primary != request.from) {
    return fail(Errc::refused,
                "{} takes {} for the primary of volume {}, not {}",
                host,
                state().primary,
                name_,
                request.from);
  }
  if (!contains_host(state().in_sync, host)) {
    return fail(Errc::refused, "{} is not in the in-sync set of volume {}", host, name_);
  }
  if (is_put_back()) return tl::unexpected(put_back_error());
  if (!state().consistent || !state().clean) {
    return fail(Errc::inconsistent, "the images of volume {} on {} are incomplete", name_, host);
  }
  if (!replica_ || replica_busy_) {
    if (open_error_) return tl::unexpected(*open_error_);
    return fail(Errc::busy, "volume {} on {} changes its role", name_, host);
  }
  return {};
}

void Volume::seal_replica(const Epoch& epoch,
                          const std::optional<HistoryPoint>& point,
                          Duration timeout,
                          const std::function<void(Result<HistoryPoint>)>& done) {
  if (!replica_ || replica_busy_) {
    return done(open_error_ ? Result<HistoryPoint>(tl::unexpected(*open_error_))
                            : fail(Errc::busy, "volume {} changes its role", name_));
  }
  replica_busy_ = true;
  // Whoever comes first decides: the replica being ready, or the deadline.
  const auto decided = std::make_shared<bool>(false);
  const auto self = shared_from_this();
  const auto timer = environment_.reactor.add_timer(timeout, [self, decided, done] {
    if (std::exchange(*decided, true)) return;
    done(fail(
        Errc::timeout, "volume {} could not be made ready for its promotion in time", self->name_));
  });
  replica_->prepare_promotion(epoch, point, [self, decided, timer, done](const Status& ready) {
    if (std::exchange(*decided, true)) {
      self->replica_busy_ = false;
      if (ready) self->reopen_replica();
      return;
    }
    self->environment_.reactor.cancel_timer(timer);
    if (!ready) {
      self->replica_busy_ = false;
      return done(tl::unexpected(ready.error()));
    }
    done(self->replica_->status().logged);
  });
}

void Volume::record_promotion(const Record& record,
                              const HistoryPoint& point,
                              bool activate,
                              Done done) {
  const auto self = shared_from_this();
  const std::string host = environment_.options.host;
  auto change = [record, point, activate, host](VolumeState& state) -> Status {
    if (state.vote.record && state.vote.record->epoch.number > record.epoch.number) {
      return fail(Errc::stale_epoch,
                  "{} has accepted epoch {} meanwhile",
                  host,
                  state.vote.record->epoch.number);
    }
    if (state.put_back)
      return fail(Errc::inconsistent, "the state file on {} is an older copy", host);
    state.primary = host;
    state.in_sync = record.in_sync;
    if (state.epoch.number <= record.epoch.number) state.epoch = record.epoch;
    state.history = point;
    state.checkpoint = point;
    state.sequence_reserved = std::max(state.sequence_reserved, point.sequence);
    state.clean = true;
    state.active = activate;
    state.consistent = true;
    state.whole = true;
    state.transfer.reset();
    return {};
  };
  update(std::move(change), [self, done = std::move(done)](const Status& written) {
    if (!written) {
      // The voters may have chosen this host all the same.
      self->recheck_ = true;
      self->reopen_replica();
      return done(written);
    }
    self->replica_->shutdown(true, [self, done] {
      self->replica_.reset();
      self->replica_busy_ = false;
      log(LogLevel::info,
          "promoted",
          "volume={} epoch={} sequence={}",
          self->name_,
          self->state().epoch.number,
          self->state().history.sequence);
      self->take_role();
      done({});
    });
  });
}

void Volume::reopen_replica() {
  if (!replica_) return take_role();
  replica_busy_ = true;
  replica_->shutdown(false, [self = shared_from_this()] {
    self->replica_.reset();
    self->replica_busy_ = false;
    self->take_role();
  });
}

void Volume::reopen_failed_replica() {
  if (replica_ && !replica_busy_ && replica_->status().state == "failed") reopen_replica();
}

void Volume::become_replica(const std::string& primary,
                            const std::optional<HistoryPoint>& point,
                            Done done) {
  const auto self = shared_from_this();
  auto change = [primary, point](VolumeState& state) -> Status {
    state.primary = primary;
    state.epoch = raised_fence(state.epoch, state.vote);
    if (state.vote.record && state.vote.chosen) state.in_sync = state.vote.record->in_sync;
    // A tag of its own: no history, also not that of the new primary, stands at this point.
    // Nor does what an old state file knows of the images.
    const bool known = point.has_value() && !state.put_back;
    state.history = known ? *point : unclean_point({state.epoch.number, random_tag()}, state);
    state.checkpoint = state.history;
    state.consistent = true;
    state.whole = true;
    state.clean = known;
    state.active = false;
    state.transfer.reset();
    return {};
  };
  auto on_written = [self, primary, done](const Status& written) {
    if (written) {
      self->images_.clear();
      self->last_end_.reset();
      self->lost_ = false;
      // Of a handover that has moved the role, the client stays.
      if (self->handover() == nullptr) self->endpoint_.drop();
      // The new record may not have come to this host's voter yet.
      self->recheck_ = self->state().vote.record->primary == self->environment_.options.host;
      log(LogLevel::info,
          "now_replica",
          "volume={} primary={} clean={}",
          self->name_,
          primary,
          self->state().clean);
    }
    done(written);
  };
  // What a promotion left of its log, ended before it had removed it, would pass for a damaged one.
  offload(
      environment_.worker,
      environment_.reactor,
      [directory = log_dir()] { return remove_log(directory); },
      [self, change = std::move(change), on_written = std::move(on_written), done](
          const Status& removed) mutable {
        if (!removed) return done(removed);
        self->update(std::move(change), std::move(on_written));
      });
}

}  // namespace replicad
