#pragma once
// Asks many hosts at once, each within the same short time, so that a dead one does not hold up the
// others.

#include <map>
#include <string>
#include <vector>

#include "core/control/views.h"
#include "ctl/api_client.h"
#include "ctl/hosts_list.h"

namespace replicad::ctl {

/// What the hosts said of all their volumes.
struct VolumesAnswer {
  std::map<std::string, std::vector<MemberReport>> volumes;  ///< by name; one report per host asked
  std::vector<HostAddress> hosts;                            ///< that answered
  std::vector<std::pair<HostAddress, Error>> silent;         ///< that did not
};

class Cluster {
 public:
  Cluster(std::vector<HostAddress> hosts, Timeouts timeouts)
      : hosts_(std::move(hosts)), timeouts_(timeouts) {}

  /// Finds the names of hosts given without one, and the members of their volumes. Errors:
  /// Errc::unreachable. Call once, before the others.
  [[nodiscard]] Status discover();

  /// GET /v1/host of every host, in the order of the list. A daemon that calls itself otherwise
  /// than the list does is an error of that host.
  [[nodiscard]] std::vector<HostReport> ask_hosts();
  /// GET /v1/volumes/NAME of every host, and of members that only the answers name.
  [[nodiscard]] std::vector<MemberReport> ask_volume(const std::string& name);
  /// Asks the furthest copy's log what the others lack, and puts the answers into `reports`. A host that cannot say
  /// leaves them as they are.
  void ask_losses(const std::string& name, std::vector<MemberReport>& reports) const;
  /// GET /v1/volumes of every host, and of members that only the answers name. Errors:
  /// Errc::unreachable when no host answers.
  [[nodiscard]] Result<VolumesAnswer> ask_volumes();

  [[nodiscard]] const std::vector<HostAddress>& hosts() const { return hosts_; }
  [[nodiscard]] const Timeouts& timeouts() const { return timeouts_; }

 private:
  /// Adds members that were not known; true if there were any.
  bool learn(const VolumeView& volume);

  std::vector<HostAddress> hosts_;
  Timeouts timeouts_;
};

}  // namespace replicad::ctl
