#pragma once
// The payloads of the stream's control frames and of `watermarks` and `digest`: one struct per
// message. docs/protocol.md has the table of who sends what when. Decoders accept any bytes and say
// what is wrong.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/wire/frame.h"

namespace replicad {

/// A position with the digest of the history up to it.
struct HistoryPoint {
  Epoch epoch;
  Sequence sequence = 0;
  Digest digest;

  friend bool operator==(const HistoryPoint&, const HistoryPoint&) = default;
};

/// Feature: a staged copy that was interrupted goes on (`stage` in attached, `go_on` in start).
inline constexpr std::string_view feature_go_on = "go-on";

/// Feature: where histories part (`history` in attach, `parted` in attached and start).
inline constexpr std::string_view feature_trail = "trail";

/// Feature: block_sums on a stream (`verify`).
inline constexpr std::string_view feature_verify = "verify";

/// A term of a history, and its last sequence there.
struct HistoryTerm {
  Epoch epoch;
  Sequence end = 0;

  friend bool operator==(const HistoryTerm&, const HistoryTerm&) = default;
};

/// Primary to replica, first frame of a connection.
struct AttachMessage {
  std::uint32_t protocol_min = protocol_version_min;
  std::uint32_t protocol_max = protocol_version_max;
  std::vector<std::string> features;
  std::string volume;
  std::string volume_uuid;
  std::string primary;  ///< host name of the sender
  std::string replica;  ///< host name the sender believes it talks to
  Epoch epoch;
  std::vector<std::uint64_t> disk_bytes;
  std::vector<HistoryTerm> history;  ///< earlier terms of the primary's history
};

/// Replica to primary: accepted; where the replica stands.
struct AttachedMessage {
  std::uint32_t protocol = protocol_version_max;
  std::vector<std::string> features;
  std::string boot_id;
  bool consistent = true;  ///< false: a copy has begun and not ended
  /// Inconsistent: the term whose resync was interrupted. The image then differs from the history at
  /// `logged` in blocks alone that this term's primary changed behind it. nullopt: nothing is known.
  std::optional<Epoch> resync;
  /// The term whose staged copy was interrupted, if it is the session's: what it brought is kept.
  std::optional<Epoch> stage;
  HistoryPoint logged;  ///< last frame in its log; the stream continues after it
  Sequence durable = 0;
  Sequence applied = 0;
  /// Up to this position both histories are one, as far as `history` of the attach tells; the images, with the log,
  /// differ from it in these ranges alone. nullopt: nothing is known.
  struct Parted {
    Epoch epoch;
    Sequence sequence = 0;
    std::vector<Range> ranges;  ///< at most parted_ranges_max

    friend bool operator==(const Parted&, const Parted&) = default;
  };
  std::optional<Parted> parted = {};
};
constexpr std::size_t parted_ranges_max = 4096;
constexpr std::size_t history_terms_max = 256;

/// Either side, then it closes: why, and what to do.
struct RefuseMessage {
  Errc code = Errc::refused;
  std::string message;
  std::string hint;
};

/// Primary to replica: `copy` false: numbered frames after `after` follow. `copy` true: copy frames
/// and numbered frames after `after` follow; a consistent replica stages them, others, and those
/// that are told to take them `in_place`, mark themselves inconsistent, durably, before they take
/// anything. `keep`: the copy brings only what changed behind the replica's point, so the replica
/// first applies its whole log, and records that point. `save`: the replica is not on the primary's
/// history (rewind): it first applies its whole log, marks itself inconsistent, and keeps aside what
/// a block held before it changes it.
/// `go_on`: with what the kept stage holds; the copy brings, or compares, all that may be in there.
/// `answered`: no write beyond it has been answered, so a replica that has it durable lacks nothing
/// that it ever acknowledged.
struct StartMessage {
  bool copy = false;
  Sequence after = 0;
  bool keep = false;
  bool save = false;
  bool in_place = false;
  Sequence answered = 0;
  bool go_on = false;
  bool parted = false;  ///< with `save`: only what lies in the ranges of `parted` is kept aside
};

/// Primary to replica: all of the copy was sent; `point` is the history point reached in this
/// stream.
struct CopyEndMessage {
  HistoryPoint point;
};

/// Replica to primary: the copy is durable in the image and recorded; the replica is consistent at
/// `point`.
struct CopyDoneMessage {
  HistoryPoint point;
};

/// Payload of `watermarks` (64 bytes): a replica's four watermarks and two digests. Monotonic per
/// connection.
struct Watermarks {
  Sequence received = 0;
  Sequence logged = 0;
  Sequence durable = 0;
  Sequence applied = 0;
  Digest logged_digest;   ///< of the history up to `logged`
  Digest applied_digest;  ///< up to `applied`, taken over the bytes handed to the image

  friend bool operator==(const Watermarks&, const Watermarks&) = default;
};

/// Whether `features` names `feature`.
[[nodiscard]] bool has_feature(const std::vector<std::string>& features, std::string_view feature);

/// A whole control frame (header and JSON). For the messages below.
[[nodiscard]] std::vector<std::byte> encode_attach(const AttachMessage& message);
[[nodiscard]] std::vector<std::byte> encode_attached(const AttachedMessage& message);
[[nodiscard]] std::vector<std::byte> encode_refuse(const RefuseMessage& message);
[[nodiscard]] std::vector<std::byte> encode_start(const StartMessage& message);
[[nodiscard]] std::vector<std::byte> encode_copy_end(const CopyEndMessage& message);
[[nodiscard]] std::vector<std::byte> encode_copy_done(const CopyDoneMessage& message);
/// Whole binary frames.
/// `heartbeat`: number of the last one that had come, 0 if none.
[[nodiscard]] std::vector<std::byte> encode_watermarks(const Watermarks& marks,
                                                       std::uint64_t heartbeat = 0);
/// `number`: 1, 2, 3 ... of a connection.
[[nodiscard]] std::vector<std::byte> encode_heartbeat(std::uint64_t number);
[[nodiscard]] std::vector<std::byte> encode_digest(const HistoryPoint& point);
[[nodiscard]] std::vector<std::byte> encode_empty(FrameType type);
/// block_sums: `range` as in check_compare's rules, one sum per block. `after`: on a stream, the sequence that is to
/// be applied before they are compared; in a copy 0.
[[nodiscard]] std::vector<std::byte> encode_block_sums(const Range& range,
                                                       std::span<const Digest> sums,
                                                       Sequence after = 0);
/// block_diffs: `differs` has one entry per block of the range.
[[nodiscard]] std::vector<std::byte> encode_block_diffs(const Range& range,
                                                        const std::vector<bool>& differs);
/// Of a frame whose header was decoded: the payload's size is right.
[[nodiscard]] std::vector<Digest> decode_block_sums(std::span<const std::byte> payload);
/// Ranges of the blocks that differ, within `range`.
[[nodiscard]] std::vector<Range> decode_block_diffs(const Range& range,
                                                    std::span<const std::byte> payload);
/// A frame of `type` around any JSON text (the agent frames).
[[nodiscard]] std::vector<std::byte> encode_json_frame(FrameType type, const std::string& json);

/// Errors of all: Errc::protocol with the field's name.
[[nodiscard]] Result<AttachMessage> decode_attach(std::span<const std::byte> payload);
[[nodiscard]] Result<AttachedMessage> decode_attached(std::span<const std::byte> payload);
[[nodiscard]] Result<RefuseMessage> decode_refuse(std::span<const std::byte> payload);
[[nodiscard]] Result<StartMessage> decode_start(std::span<const std::byte> payload);
[[nodiscard]] Result<CopyEndMessage> decode_copy_end(std::span<const std::byte> payload);
[[nodiscard]] Result<CopyDoneMessage> decode_copy_done(std::span<const std::byte> payload);
[[nodiscard]] Result<Watermarks> decode_watermarks(std::span<const std::byte> payload);
/// Digest frame: the point is (header epoch, header sequence, payload).
[[nodiscard]] Result<HistoryPoint> decode_digest(const FrameHeader& header,
                                                 std::span<const std::byte> payload);

}  // namespace replicad
