#pragma once
// Which hosts a volume should live on: filters hosts, scores them by load, capacity and stability,
// and keeps every term of every score so that the choice can be shown. Pure and deterministic: the
// same facts give the same order.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/control/views.h"

namespace replicad {

/// Shares of the three groups in a host's score; they add up to 1.
struct PlacementWeights {
  double load = 0.4;
  double capacity = 0.3;
  double stability = 0.3;
};

struct PlacementRequest {
  std::uint64_t bytes = 0;  ///< of all disks; what a host must have free, besides the reserve
  std::size_t copies = 3;
  std::string primary;                 ///< wanted primary; empty = the best
  std::vector<std::string> on;         ///< only these; the reserve is then not kept; empty = any
  std::vector<std::string> without;    ///< never these (they are members already)
  bool primary_brings_images = false;  ///< adopted: `primary` needs no free space
  bool overcommit = false;             ///< images are sparse: a lack of space is a warning
  std::string version;                 ///< of replicactl
  PlacementWeights weights;
};

/// One term of a host's score.
struct ScoreTerm {
  std::string group;  ///< load, capacity, stability
  std::string name;
  double value = 0;   ///< the measured value
  std::string unit;   ///< of `value`
  double score = 0;   ///< normalised: 0 worst, 1 best
  double weight = 0;  ///< share of the whole score
};

struct HostScore {
  std::string host;
  std::vector<std::string> rejected;  ///< why it cannot be taken; empty = it can
  std::vector<std::string> warnings;  ///< why it had better not be taken
  std::vector<ScoreTerm> terms;       ///< empty if the host did not answer
  double total = 0;                   ///< 0..1

  /// Weighted mean of the group's terms, 0..1.
  [[nodiscard]] double group_score(const std::string& group) const;
};

struct Placement {
  std::vector<HostScore>
      hosts;  ///< usable ones first, best first, equal ones by name; then the rejected by name
  std::vector<std::string> chosen;  ///< primary first; empty if refused
  std::optional<Error> refusal;     ///< names each host and why it was rejected

  [[nodiscard]] const HostScore* score_of(const std::string& host) const;
};

/// Bytes of an image file system that placement leaves free: 5 percent of it, at most 10 GiB.
[[nodiscard]] std::uint64_t reserve_bytes(std::uint64_t image_dir_bytes);

/// Chooses request.copies hosts. `refusal` is Errc::refused when there are too few, Errc::not_found
/// for an unknown name in `primary` or `on`.
[[nodiscard]] Placement place(const std::vector<HostReport>& hosts,
                              const PlacementRequest& request);

/// The terms of one host's score, for a volume of `bytes`.
[[nodiscard]] std::vector<ScoreTerm> score_terms(const HostFacts& facts,
                                                 std::uint64_t bytes,
                                                 const PlacementWeights& weights);

/// `candidates` that answered, best first by the same score; equal ones by name.
[[nodiscard]] std::vector<std::string> rank_hosts(const std::vector<HostReport>& hosts,
                                                  const std::vector<std::string>& candidates);

}  // namespace replicad
