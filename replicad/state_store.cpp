#include "replicad/state_store.h"

#include "io/file.h"

namespace replicad {

StateStore::StateStore(Reactor& reactor, Worker& worker, std::string path, VolumeState state)
    : reactor_(reactor),
      worker_(worker),
      path_(std::move(path)),
      state_(std::move(state)),
      start_(random_tag()),
      loaded_(state_.generation) {}

StateStore::~StateStore() {
  *alive_ = false;
}

Result<VolumeState> StateStore::load(const std::string& path) {
  const auto content = read_file(path, volume_state_bytes_max);
  if (!content) return tl::unexpected(content.error());
  auto state = decode_volume_state(*content);
  if (!state) {
    return with_hint(fail(state.error().code, "{}: {}", path, state.error().message),
                     "nothing was changed; restore the file from a backup, or move the volume's "
                     "directory away and add this host to the volume again");
  }
  // A process that is gone may have renamed it and not synced that: nobody acts on what power could take back.
  RD_TRY(sync_directory(path.substr(0, path.rfind('/'))));
  return state;
}

void StateStore::update(Change change, Done done) {
  queue_.push_back({std::move(change), std::move(done)});
  if (!writing_) schedule();
}

// Never inside update(): `done` runs later even for a refused change.
void StateStore::schedule() {
  writing_ = true;
  reactor_.post([this, alive = alive_] {
    if (*alive) run_next();
  });
}

void StateStore::run_next() {
  next_ = state_;
  if (const Status allowed = queue_.front().change(next_); !allowed) return finish(allowed);
  if (next_ == state_) return finish({});
  if (const Status valid = check_volume_state(next_); !valid) return finish(valid);
  ++next_.generation;
  // The store may be gone when the worker comes to it: `alive` is for the reactor thread to read.
  worker_.post([this,
                alive = alive_,
                &reactor = reactor_,
                path = path_,
                content = encode_volume_state(next_)] {
    Status written = write_file_durably(path, content);
    reactor.post([this, alive, written = std::move(written)] {
      if (*alive) finish(written);
    });
  });
}

void StateStore::remember(const std::string& host, const StateStamp& heard) {
  replicad::remember(state_.stamps, host, heard);
}

void StateStore::finish(Status status) {
  if (status) {
    if (next_.generation > state_.generation + 1) loaded_ = next_.generation - 1;
    // What was heard of while it was being written; not of a host that this change has removed.
    for (auto& [host, stamp] : next_.stamps) {
      const auto heard = state_.stamps.find(host);
      if (heard != state_.stamps.end()) stamp = heard->second;
    }
    for (const auto& [host, stamp] : state_.stamps)
      if (find_member(next_.members, host) != nullptr) next_.stamps.emplace(host, stamp);
    state_ = next_;
  }
  const Done done = std::move(queue_.front().done);
  queue_.pop_front();
  writing_ = false;
  if (!queue_.empty()) schedule();
  if (done) done(std::move(status));
}

}  // namespace replicad
