#pragma once
// All volumes of this host by name, and the two servers that bring them connections: the stream
// port (primaries' plugins on other hosts) and the agent socket (plugins on this host). Reactor
// thread only.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "replicad/listener.h"
#include "replicad/volume.h"

namespace replicad {

class VolumeRegistry {
 public:
  explicit VolumeRegistry(VolumeEnvironment& environment) : environment_(environment) {}

  /// Reads every volume below the state directory and lets it take up its role. Damaged ones are
  /// listed as failed. Errors: the directory cannot be read.
  [[nodiscard]] Status load_all();
  /// nullptr if there is none.
  [[nodiscard]] std::shared_ptr<Volume> find(const std::string& name) const;
  [[nodiscard]] std::vector<std::shared_ptr<Volume>> all() const;
  void add(const std::shared_ptr<Volume>& volume) { volumes_[volume->name()] = volume; }
  void remove(const std::string& name) { volumes_.erase(name); }
  void clear() { volumes_.clear(); }
  /// Sets `name` aside for a volume that is being created. Errors: Errc::exists, Errc::busy.
  [[nodiscard]] Status reserve(const std::string& name);
  void unreserve(const std::string& name) { reserved_.erase(name); }

  void serve_stream(Fd listening);
  void serve_agents(Fd listening);
  /// Takes no more connections.
  void stop_serving();

 private:
  struct Newcomer;

  void on_stream_connection(Fd socket);
  Status on_first_frame(const std::shared_ptr<Newcomer>& newcomer, const FrameView& frame);
  void on_agent_connection(Fd socket);
  void note_refusal(std::string_view what, const Error& error);

  VolumeEnvironment& environment_;
  std::map<std::string, std::shared_ptr<Volume>> volumes_;
  std::set<std::string> reserved_;
  std::unique_ptr<Listener> stream_;
  std::unique_ptr<Listener> agents_;
  std::set<std::shared_ptr<Newcomer>> newcomers_;  ///< connections that have not said who they are
  std::size_t agent_newcomers_ = 0;
  Instant last_refusal_{};
  std::uint64_t refusals_unlogged_ = 0;
};

}  // namespace replicad
