#pragma once
// Brings every volume's role on this host into line with the record, in a thread of its own: asks the
// voters when the record here may be out of date, gives a role up that another host has, finishes a
// promotion that a crash cut short, settles switchovers that no request is working on, starts the
// exports of volumes set `autostart` again, and looks for members that have another history than one
// that was opened here by force.

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "replicad/control_api.h"

namespace replicad {

class RoleKeeper {
 public:
  explicit RoleKeeper(ControlContext& context);
  RoleKeeper(const RoleKeeper&) = delete;
  RoleKeeper& operator=(const RoleKeeper&) = delete;
  ~RoleKeeper();

  /// Looks at all volumes soon; any thread.
  void wake();

 private:
  void run();
  void tend(const std::shared_ptr<Volume>& volume);
  void settle(const std::shared_ptr<Volume>& volume);
  void ask(const std::shared_ptr<Volume>& volume);
  void demote(const std::shared_ptr<Volume>& volume);
  void promote(const std::shared_ptr<Volume>& volume);
  void renew(const std::shared_ptr<Volume>& volume);
  void serve(const std::shared_ptr<Volume>& volume);
  void tend_standby(const std::shared_ptr<Volume>& volume);
  void look_for_rivals(const std::shared_ptr<Volume>& volume);
  void meet_member(const std::shared_ptr<Volume>& volume,
                   const VolumeState& state,
                   const MemberState& member);
  void start(const std::shared_ptr<Volume>& volume);

  ControlContext& context_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool woken_ = false;
  bool ending_ = false;
  std::map<std::string, std::chrono::steady_clock::time_point> looked_at_;  ///< by volume
  std::thread thread_;
};

}  // namespace replicad
