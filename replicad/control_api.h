#pragma once
// The control API without HTTP: each member carries out one request of docs/control-api.md and
// returns the body of its answer. Runs on the HTTP server's threads; what belongs to the reactor is
// done there, through reactor_call.h.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <nlohmann/json.hpp>

#include "replicad/stability.h"
#include "replicad/volume_registry.h"

namespace replicad {

/// What the API needs of the daemon. Addresses are fixed once it serves.
struct ControlContext {
  Reactor& reactor;
  VolumeEnvironment& environment;  ///< reactor thread
  VolumeRegistry& registry;        ///< reactor thread
  const Options& options;
  std::function<Stability()> stability;  ///< any thread
  std::string stream_address;
  std::string control_address;  ///< TCP; empty: none
  std::atomic<bool> stopping{false};
  std::mutex
      create_mutex;  ///< one creation at a time: space and paths are checked before they are taken
};

/// Marks a volume's operation for the time it lives.
class OperationGuard {
 public:
  [[nodiscard]] static Result<OperationGuard> begin(ControlContext& context,
                                                    const std::string& name,
                                                    const std::string& what);
  OperationGuard(OperationGuard&& other) noexcept = default;
  OperationGuard& operator=(OperationGuard&&) = delete;
  OperationGuard(const OperationGuard&) = delete;
  OperationGuard& operator=(const OperationGuard&) = delete;
  ~OperationGuard();

  [[nodiscard]] const std::shared_ptr<Volume>& volume() const { return volume_; }

 private:
  OperationGuard(ControlContext& context, std::shared_ptr<Volume> volume)
      : context_(&context), volume_(std::move(volume)) {}

  ControlContext* context_;
  std::shared_ptr<Volume> volume_;
};

class ControlApi {
 public:
  using Answer = Result<nlohmann::json>;

  explicit ControlApi(ControlContext& context) : context_(context) {}

  [[nodiscard]] Answer host();
  [[nodiscard]] Answer volumes();
  [[nodiscard]] Answer volume(const std::string& name);
  [[nodiscard]] Answer create(const std::string& body);
  [[nodiscard]] Answer remove(const std::string& name, const std::string& uuid);
  [[nodiscard]] Answer activate(const std::string& name);
  [[nodiscard]] Answer deactivate(const std::string& name);
  [[nodiscard]] Answer restart(const std::string& name);
  [[nodiscard]] Answer set(const std::string& name, const std::string& body);
  [[nodiscard]] Answer members(const std::string& name, const std::string& body);
  [[nodiscard]] Answer readmit(const std::string& name, const std::string& body);
  [[nodiscard]] Answer resync(const std::string& name, const std::string& body);
  [[nodiscard]] Answer verify(const std::string& name, const std::string& body);
  [[nodiscard]] Answer switchover(const std::string& name, const std::string& body);
  [[nodiscard]] Answer handover(const std::string& name, const std::string& body);
  [[nodiscard]] Answer handover_end(const std::string& name);
  [[nodiscard]] Answer handover_take(const std::string& name, const std::string& body);
  /// Of the standby: what its reads must have seen.
  [[nodiscard]] Answer handover_answered(const std::string& name, const std::string& id);
  [[nodiscard]] Answer promote(const std::string& name, const std::string& body);
  [[nodiscard]] Answer failover(const std::string& name, const std::string& body);
  [[nodiscard]] Answer rival(const std::string& name, const std::string& body);
  [[nodiscard]] Answer resolve(const std::string& name, const std::string& body);
  [[nodiscard]] Answer vote(const std::string& name);
  [[nodiscard]] Answer vote_prepare(const std::string& name, const std::string& body);
  [[nodiscard]] Answer vote_accept(const std::string& name, const std::string& body);
  [[nodiscard]] Answer vote_chosen(const std::string& name, const std::string& body);
  /// What the log here has of each disk behind sequence `after`.
  [[nodiscard]] Answer log_count(const std::string& name, const std::string& after);
  [[nodiscard]] Answer lost_writes(const std::string& name);
  /// A part of one file: the records from byte `at` on.
  [[nodiscard]] Answer lost_file(const std::string& name,
                                 const std::string& number,
                                 const std::string& at);
  [[nodiscard]] Answer remove_lost_file(const std::string& name,
                                        const std::string& number,
                                        const std::string& uuid);

 private:
  ControlContext& context_;
};

// Shared by the requests (control_common.cpp). HTTP threads.

/// A number of a request's path or query; Errc::invalid_argument with `what` if it is none.
[[nodiscard]] Result<std::uint64_t> number_in(const std::string& text, const char* what);
/// The volume, or Errc::not_found.
[[nodiscard]] Result<std::shared_ptr<Volume>> find_volume(ControlContext& context,
                                                          const std::string& name);
/// Its status as JSON, with the space its images take.
[[nodiscard]] nlohmann::json describe_volume(ControlContext& context,
                                             const std::shared_ptr<Volume>& volume);
/// StateStore::update, waited for.
[[nodiscard]] Status update_volume(ControlContext& context,
                                   const std::shared_ptr<Volume>& volume,
                                   StateStore::Change change);
/// Volume::plugin_request, waited for.
[[nodiscard]] Result<nlohmann::json> ask_plugin(ControlContext& context,
                                                const std::shared_ptr<Volume>& volume,
                                                const std::string& op,
                                                nlohmann::json fields,
                                                Duration timeout);
/// Asks `condition` on the reactor thread until it holds. False after `timeout`, or when the daemon
/// stops.
[[nodiscard]] bool wait_for(ControlContext& context,
                            const std::function<bool()>& condition,
                            Duration timeout);
/// Errors: Errc::refused when this host is not the primary of the volume.
[[nodiscard]] Status require_primary(ControlContext& context,
                                     const std::shared_ptr<Volume>& volume);

/// Errors: Errc::busy while a handover is on record.
[[nodiscard]] Status require_no_handover(ControlContext& context,
                                         const std::shared_ptr<Volume>& volume);

/// Starts the standby of the handover `id`, and waits until it greets clients. The caller's thread lives as long as the
/// daemon, and the standby no longer.
[[nodiscard]] Status start_standby(ControlContext& context,
                                   const std::shared_ptr<Volume>& volume,
                                   std::uint32_t id);
/// Kills the standby, if there is one; what it holds is not answered.
void end_standby(ControlContext& context, const std::shared_ptr<Volume>& volume);

/// Starts nbdkit for `volume`, whose operation the caller holds, and waits until it serves.
/// `served` (may be null) becomes true once guests may have been answered, even if an error is
/// returned.
[[nodiscard]] Result<ExportInfo> start_export(ControlContext& context,
                                              const std::shared_ptr<Volume>& volume,
                                              bool* served);
/// Waits for the export's process to end, and ends it if it does not. True when it is gone.
[[nodiscard]] bool end_export_process(ControlContext& context,
                                      const std::shared_ptr<Volume>& volume,
                                      std::chrono::milliseconds patience);

}  // namespace replicad
