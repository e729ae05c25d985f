#pragma once
// What a host durably knows of one volume. File format: docs/disk-format.md, "State file". One writer: the
// host's replicad.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/modes.h"
#include "core/base/names.h"
#include "core/store/image_mark.h"
#include "core/vote/voter.h"
#include "core/wire/messages.h"

namespace replicad {

struct DiskState {
  std::string name;  ///< NBD export name
  std::uint64_t bytes = 0;
  std::string path;      ///< of the image on this host
  bool adopted = false;  ///< it was there before the volume; `delete` leaves it
  ImageMark mark = {};   ///< how the image is recognised

  friend bool operator==(const DiskState&, const DiskState&) = default;
};

/// Knobs of a volume, the same on all its members; `replicactl set` changes them.
struct VolumeSettings {
  Mode mode = Mode::sync;
  Congestion congestion = Congestion::throttle;
  OnLocalError on_local_error = OnLocalError::hold;
  bool autostart = false;  ///< an export that ended otherwise than by request is started again
  std::uint64_t ring_bytes = ring_bytes_default;
  std::uint64_t log_bytes = log_bytes_default;
  std::uint64_t segment_bytes = segment_bytes_default;
  std::uint32_t ack_timeout_ms = ack_timeout_ms_default;
  std::uint32_t quorum_timeout_ms = quorum_timeout_ms_default;  ///< 0: requests wait for ever

  friend bool operator==(const VolumeSettings&, const VolumeSettings&) = default;
};

/// A switchover that has passed its point of no return on the old primary.
struct TransferState {
  std::string to;
  Epoch epoch;         ///< the epoch offered to `to`
  HistoryPoint point;  ///< where the history stood

  friend bool operator==(const TransferState&, const TransferState&) = default;
};

struct VolumeState {
  std::uint64_t generation = 0;  ///< counts writes of the file
  std::string name;
  std::string uuid;  ///< incarnation of the volume
  std::vector<DiskState> disks;
  std::vector<MemberState> members;
  VolumeSettings settings;

  /// This member's vote. The fields below follow the record once that is known to be chosen and what
  /// it asks of this host is done.
  VoterState vote;
  std::string primary;  ///< host that this member takes for the primary
  Epoch epoch;          ///< highest epoch promised here: streams below it are refused
  std::vector<std::string>
      in_sync;  ///< hosts, the primary included; replicas keep the last they heard

  /// Of the other members, as last heard of (core/vote/state_stamp.h). Goes to the disk with other changes.
  StateStamps stamps;
  /// This file is an older copy that was put back: others know of a state of this generation. No vote, no copy and no
  /// export until an operator has readmitted this member.
  std::optional<std::uint64_t> put_back;

  /// The record that this member's history was opened on by force.
  std::optional<Record> fork_base;
  /// State SPLIT: the record of another history that was met. Nothing is served nor followed until an
  /// operator has chosen.
  std::optional<Record> rival;

  // As primary.
  bool active = false;  ///< the export should be served; at a replica: what a promotion shall do
  bool clean =
      true;  ///< false while a plugin holds the images; still false after it = unclean stop
  HistoryPoint history;  ///< where the history stood at the last clean stop, transfer or creation
  Sequence sequence_reserved = 0;  ///< no plugin may have numbered a write beyond this
  std::optional<TransferState> transfer;

  // As replica.
  bool consistent = true;  ///< false: the image is no prefix of any history (first copy, full copy)
  HistoryPoint
      checkpoint;  ///< the image durably holds everything up to here; the log continues from it
  /// Inconsistent only: a resync of this term has begun and not ended. The image differs from the
  /// history at `checkpoint` in blocks alone that this term's primary changed behind it.
  std::optional<Epoch> resync;
  /// Inconsistent only: a rewind has begun and not ended. What the image held before is kept in the
  /// files of lost writes from this number on; what has not been replaced yet is only in the image.
  std::optional<std::uint64_t> rewind;
  /// A committed stage: its first so many bytes, brought into the images, make them `checkpoint`.
  std::optional<std::uint64_t> stage_bytes;
  /// Holds everything that it ever told a primary. False while it takes part in a stream, of which a
  /// crash may take a part, and after such a crash (*short*) until a primary finds nothing missing.
  bool whole = true;

  /// The disks' samples are of the images at this point; at another one they say nothing.
  std::optional<HistoryPoint> marked_at;

  friend bool operator==(const VolumeState&, const VolumeState&) = default;
};

/// Longest state file that is read.
constexpr std::size_t volume_state_bytes_max = 1 * mib;

/// The file's content for `state`.
[[nodiscard]] std::string encode_volume_state(const VolumeState& state);
/// Errors: Errc::corrupt with what is wrong; Errc::version_mismatch for a later format. Any bytes are safe.
[[nodiscard]] Result<VolumeState> decode_volume_state(std::string_view content);
/// The JSON document alone, without the line that guards it against damage: for people.
[[nodiscard]] std::string encode_volume_state_body(const VolumeState& state);
/// Errors: Errc::corrupt. Any bytes are safe.
[[nodiscard]] Result<VolumeState> decode_volume_state_body(std::string_view body);
/// The images are about to be written to: the times of their last change say nothing from now on.
void begin_writing(VolumeState& state);
/// The mode that the primary answers by: `sync` while a handover is on record.
[[nodiscard]] Mode mode_in_force(const VolumeState& state);
/// Nothing tells the images from others any more: at a replica they count as nothing that a disk ever had, or, with
/// `trust`, for what they should be; at the primary as what an unclean end has left.
void forget_images(VolumeState& state, std::string_view host, bool trust = false);
/// Of a state that takes part again: whatever was told of it before its file was put back stands before it.
void begin_anew(VolumeState& state, std::uint64_t generation);
/// Whether `hosts` names `host`.
[[nodiscard]] bool contains_host(const std::vector<std::string>& hosts, std::string_view host);
/// Host that a replica on `host` has promised `state.epoch` to, as far as that is known: a vote may have
/// raised the epoch before `state.primary` follows. Empty if the epoch is this host's own, whose role is
/// still to be recorded.
[[nodiscard]] std::string promised_primary(const VolumeState& state, std::string_view host);
/// A history point behind everything that `state`'s images may hold, with a digest that nobody else
/// can have: after an unclean end no member is taken for equal.
[[nodiscard]] HistoryPoint unclean_point(const Epoch& epoch, const VolumeState& state);
/// Rules that every accepted state or creation request obeys (names, sizes, counts, limits.h ranges).
[[nodiscard]] Status check_volume_state(const VolumeState& state);

}  // namespace replicad
