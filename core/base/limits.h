#pragma once
// Every limit and default of wire and disk formats and of the knobs, with unit and allowed range.

#include <cstddef>
#include <cstdint>

namespace replicad {

constexpr std::uint64_t kib = 1024;
constexpr std::uint64_t mib = 1024 * kib;
constexpr std::uint64_t gib = 1024 * mib;

constexpr std::size_t disks_max = 16;
constexpr std::size_t members_max = 16;
constexpr std::size_t volume_name_bytes_max = 64;
constexpr std::size_t host_name_bytes_max = 64;
constexpr std::size_t disk_name_bytes_max = 32;
constexpr std::uint64_t disk_bytes_max = 256 * kib * gib;
constexpr std::uint64_t disk_granularity_bytes = 512;
/// Largest epoch number, sequence or generation that is taken from a peer or a file.
constexpr std::uint64_t counter_max = std::uint64_t{1} << 62;

// Frames (docs/protocol.md).
constexpr std::size_t frame_header_bytes = 64;
constexpr std::size_t data_payload_bytes_max = 1 * mib;       ///< longer guest writes are split
constexpr std::size_t control_payload_bytes_max = 256 * kib;  ///< JSON
/// one ZERO or TRIM frame; longer ones are split
constexpr std::uint64_t range_bytes_max = 1 * gib;

/// Blocks whose checksums one frame carries, and what stands for one block.
constexpr std::uint64_t compare_block_bytes = 4096;
constexpr std::uint32_t compare_blocks_max = 256;
constexpr std::uint32_t block_sum_bytes = 16;
/// Compare frames that a primary may leave unanswered.
constexpr std::size_t compares_in_flight_max = 32;

/// Highest number of a file of lost writes.
constexpr std::uint64_t lost_files_max = 99'999'999;

constexpr std::uint32_t protocol_version_min = 1;
constexpr std::uint32_t protocol_version_max = 1;

// Ring of the primary.
constexpr std::uint64_t ring_bytes_min = 4 * mib;
constexpr std::uint64_t ring_bytes_default = 64 * mib;
constexpr std::uint64_t ring_bytes_max = 16 * gib;

// Log of a replica (docs/disk-format.md).
constexpr std::size_t segment_header_bytes = 4096;
constexpr std::uint64_t segment_bytes_min = 4 * mib;
constexpr std::uint64_t segment_bytes_default = 64 * mib;
constexpr std::uint64_t segment_bytes_max = 1 * gib;
constexpr std::uint64_t log_bytes_default = 1 * gib;  ///< budget of one volume's log on one host
constexpr std::uint64_t log_segments_min = 2;         ///< smallest budget, in segments
constexpr std::uint64_t log_bytes_max = 64 * kib * gib;

static_assert(ring_bytes_min >= 2 * (data_payload_bytes_max + frame_header_bytes));
static_assert(segment_bytes_min >=
              segment_header_bytes + 2 * (data_payload_bytes_max + frame_header_bytes));

// Times, milliseconds.
constexpr std::uint32_t ack_timeout_ms_min = 100;
constexpr std::uint32_t ack_timeout_ms_default = 5000;
constexpr std::uint32_t ack_timeout_ms_max = 600'000;
/// How long requests wait for a quorum of the voters before they fail; 0: for ever.
constexpr std::uint32_t quorum_timeout_ms_default = 0;
constexpr std::uint32_t quorum_timeout_ms_max = 86'400'000;
constexpr std::uint32_t heartbeat_ms = 1000;
constexpr std::uint32_t switchover_deadline_ms_default = 30'000;
constexpr std::uint32_t switchover_deadline_ms_min = 100;
constexpr std::uint32_t switchover_deadline_ms_max = 3'600'000;

}  // namespace replicad
