#pragma once
// What the hosts say of themselves and of a volume (docs/control-api.md), parsed and checked.
// Everything here comes from another program: strings are data and are made printable() only where
// they are printed.

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/base/ids.h"
#include "core/base/result.h"
#include "core/vote/voter.h"

namespace replicad {

/// Answer of GET /v1/host.
struct HostFacts {
  std::string host;
  std::string version;
  std::string stream;   ///< address of its stream port; empty = none
  std::string control;  ///< address of its control API on TCP; empty = unix socket only
  std::string image_dir;
  bool draining = false;  ///< takes no new volumes
  double cpus = 0;
  double load_1m = 0;
  std::optional<double> cpu_pressure_percent;  ///< absent where the kernel has none
  std::optional<double> io_pressure_percent;
  std::uint64_t memory_bytes = 0;
  std::uint64_t memory_free_bytes = 0;
  std::uint64_t image_dir_bytes = 0;
  std::uint64_t image_dir_free_bytes = 0;
  double uptime_seconds = 0;
  double unclean_restarts = 0;
  double link_losses = 0;
  double disk_errors = 0;
  std::uint64_t volumes_primary = 0;
  std::uint64_t volumes_replica = 0;
  nlohmann::json raw;  ///< the whole answer, for -o json
};

enum class Role : std::uint8_t { primary, replica };

struct DiskView {
  std::string name;
  std::uint64_t bytes = 0;
  std::string path;
  std::uint64_t allocated_bytes = 0;
  bool adopted = false;
};

struct MemberView {
  std::string host;
  std::string stream;
  std::string control;
  bool witness = false;  ///< votes only, no images

  friend bool operator==(const MemberView&, const MemberView&) = default;
};

struct CopyView {
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
};

struct HistoryView {
  Epoch epoch;
  Sequence sequence = 0;
  std::string digest;
};

/// What a copy lacks of one disk.
struct DiskLoss {
  std::string disk;
  std::uint64_t writes = 0;            ///< changes of any kind
  std::uint64_t bytes = 0;             ///< that they name; what was changed twice counts twice
  std::optional<double> seconds = {};  ///< from the first of them on

  friend bool operator==(const DiskLoss&, const DiskLoss&) = default;
};

/// A replica as the primary sees it.
struct ReplicaView {
  std::string host;
  std::string state;
  bool in_sync = false;
  Sequence sent = 0;
  Sequence received = 0;
  Sequence logged = 0;
  Sequence durable = 0;
  Sequence applied = 0;
  std::string digest;
  std::uint64_t lag_bytes = 0;
  std::optional<double> lag_seconds;
  std::vector<DiskLoss> lag_disks;  ///< empty: nothing is lacking, or an older daemon answers
  std::optional<CopyView> copy;
  std::optional<Error> error;
};

/// A replica as it sees itself.
struct ReplicaSelf {
  bool open =
      true;  ///< false: its log could not be read, the watermarks are those of its checkpoint
  bool connected = false;
  bool consistent = false;
  bool is_short = false;  ///< it may lack what it told a primary before a crash
  Sequence received = 0;
  Sequence logged = 0;
  Sequence durable = 0;
  Sequence applied = 0;
  std::string logged_digest;
  std::string applied_digest;
  std::uint64_t backlog_bytes = 0;
  std::uint64_t log_bytes = 0;
  std::optional<double> heard_seconds;  ///< since the primary's last frame
};

/// What the last verify has found at one replica, or one that is under way so far.
struct VerifySideView {
  struct Found {
    std::string disk;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
  };
  std::string host;
  std::string state;  ///< waiting, running, done, failed, stopped
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t different_blocks = 0;
  std::uint64_t repaired_blocks = 0;  ///< of those
  std::uint64_t not_compared_blocks = 0;
  std::vector<Found> ranges;  ///< that differ; the first ones
  std::optional<Error> error;

  [[nodiscard]] std::uint64_t left_blocks() const {
    return different_blocks - std::min(different_blocks, repaired_blocks);
  }
  /// Compared in full, and equal now.
  [[nodiscard]] bool is_equal() const {
    return state == "done" && left_blocks() == 0 && not_compared_blocks == 0;
  }
};

struct VerifyView {
  std::uint64_t id = 0;
  std::string state;  ///< running, done, failed, stopped
  bool repair = false;
  std::optional<double> ended_seconds_ago;
  std::uint64_t alone_blocks = 0;  ///< different, and no compared replica has them like the primary
  std::uint64_t kept_blocks = 0;   ///< not repaired for that reason
  std::optional<Error> error;
  std::vector<VerifySideView> replicas;
  nlohmann::json raw;  ///< all of it, for -o json
};

struct ExportView {
  std::uint64_t pid = 0;
  std::string uri;
  std::string socket;
  std::map<std::string, std::string> uris;  ///< by disk name
};

struct TransferView {
  std::string to;
  Epoch epoch;
};

/// Answer of GET /v1/volumes/NAME: the volume as one host sees it.
struct VolumeView {
  std::string host;
  std::string name;
  std::string uuid;  ///< hexadecimal digits and dashes only
  Role role = Role::replica;
  std::string primary;
  Epoch epoch;
  nlohmann::json settings;
  std::string mode;
  std::vector<DiskView> disks;
  std::vector<MemberView> members;
  std::vector<std::string> in_sync;
  VoterState vote;
  std::string state;
  std::optional<Error> error;
  HistoryView history;
  bool clean = true;              ///< primary
  std::optional<ExportView> nbd;  ///< primary: the export, while it is served
  std::optional<TransferView> transfer;
  std::vector<ReplicaView> replicas;   ///< primary
  std::optional<VerifyView> verify;    ///< primary: since its export began
  std::optional<ReplicaSelf> replica;  ///< replica
  std::uint64_t lost_files = 0;        ///< files of lost writes on that host
  std::uint64_t lost_bytes = 0;        ///< their size

  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] bool is_in_sync(const std::string& host_name) const;
  [[nodiscard]] const MemberView* member(const std::string& host_name) const;
  [[nodiscard]] const ReplicaView* replica_on(const std::string& host_name) const;
};

/// Errors of all parsers: Errc::protocol with the name of the field. Any JSON is safe. Unknown
/// fields are ignored.
[[nodiscard]] Result<HostFacts> parse_host(const nlohmann::json& json);
/// Also the host's own error when it says that it cannot read what it keeps of the volume.
[[nodiscard]] Result<VolumeView> parse_volume(const nlohmann::json& json);
/// The answer of GET /v1/volumes/NAME/log: what the log has of each disk; nullopt: it does not go back so far.
[[nodiscard]] Result<std::optional<std::vector<DiskLoss>>> parse_log_count(
    const nlohmann::json& json);
/// The body of an error answer, `{"error":{"code","message","hint"}}`; nullopt if it is none.
[[nodiscard]] std::optional<Error> parse_error_body(const nlohmann::json& json);

/// A host of the hosts list and what it answered.
struct HostReport {
  std::string name;
  std::string address;
  Result<HostFacts> facts;
};

/// What one host said of one volume; Errc::not_found = it has no part of it.
struct MemberReport {
  std::string host;
  std::string address;
  Result<VolumeView> volume;
  /// Of a copy that is behind another: what that one's log has beyond it, if it was asked and knows.
  std::vector<DiskLoss> lacks = {};
};

}  // namespace replicad
