#pragma once
// A ring whose disk operations are cut short, come late and in another order, or fail, as the test says. It also
// watches that no two operations on the same bytes of a file are in flight at once.

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <sys/uio.h>

#include "io/ring.h"

namespace replicad {

/// Set from the test's thread while the reactor runs.
struct DiskFaults {
  std::atomic<unsigned> short_percent{0};
  std::atomic<unsigned> late_percent{0};
  /// Completions of fdatasync wait as long as this is set.
  std::atomic<bool> hold_syncs{false};
  /// Completions of writev likewise.
  std::atomic<bool> hold_writes{false};
  /// So many of the next fdatasyncs fail with EIO.
  std::atomic<int> failing_syncs{0};
  /// The n-th writev from now on fails with EIO; 0: none does.
  std::atomic<int> failing_write{0};
  /// The n-th writev, fdatasync or fallocate from now on fails with `io_error`; 0: none does.
  std::atomic<int> failing_io{0};
  std::atomic<int> io_error{EIO};

  // What was seen.
  std::atomic<int> shortened{0};
  std::atomic<int> delayed{0};
  std::atomic<int> overlaps{0};  ///< operations begun while another on the same bytes was in flight
};

class DiskFaultRing final : public Ring {
 public:
  DiskFaultRing(std::unique_ptr<Ring> ring, std::shared_ptr<DiskFaults> faults, std::uint64_t seed)
      : ring_(std::move(ring)), faults_(std::move(faults)), random_(seed) {}

  [[nodiscard]] Status enable() override { return ring_->enable(); }
  int submit() override { return ring_->submit(); }
  [[nodiscard]] bool prepare(const RingOperation& operation) override {
    if (operation.opcode == RingOpcode::fdatasync && take(faults_->failing_syncs)) {
      held_.push_back({{operation.user_data, -EIO}, 0, {}});
      return true;
    }
    if (operation.opcode == RingOpcode::writev && take(faults_->failing_write) &&
        faults_->failing_write == 0) {
      held_.push_back({{operation.user_data, -EIO}, 0, {}});
      return true;
    }
    const bool is_change = operation.opcode == RingOpcode::writev ||
                           operation.opcode == RingOpcode::fdatasync ||
                           operation.opcode == RingOpcode::fallocate;
    if (is_change && take(faults_->failing_io) && faults_->failing_io == 0) {
      held_.push_back({{operation.user_data, -faults_->io_error}, 0, {}});
      return true;
    }
    RingOperation changed = operation;
    if (operation.opcode == RingOpcode::writev) changed = shortened(operation);
    if (!ring_->prepare(changed)) return false;
    watch(changed);
    return true;
  }
  int submit_and_wait(std::optional<Duration> timeout) override {
    if (!held_.empty()) {
      const Duration soon = std::chrono::microseconds(100);
      timeout = timeout ? std::min(*timeout, soon) : soon;
    }
    return ring_->submit_and_wait(timeout);
  }
  [[nodiscard]] bool ready() const override { return !held_.empty() || ring_->ready(); }
  [[nodiscard]] std::size_t reap(std::span<RingCompletion> completions) override {
    take_from_ring();
    std::size_t count = 0;
    for (std::size_t i = 0; i < held_.size() && count < completions.size();) {
      Held& held = held_[i];
      const bool waits = held.turns > 0 ||
                         (held.of == RingOpcode::fdatasync && faults_->hold_syncs) ||
                         (held.of == RingOpcode::writev && faults_->hold_writes);
      if (held.turns > 0) --held.turns;
      if (waits) {
        ++i;
        continue;
      }
      completions[count++] = held.completion;
      held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return count;
  }

 private:
  struct Held {
    RingCompletion completion;
    unsigned turns;
    std::optional<RingOpcode> of;  ///< a disk operation that was not failed
  };
  struct InFlight {
    RingOpcode opcode;
    int fd;
    std::uint64_t begin;
    std::uint64_t end;
    std::vector<iovec> vectors;
  };

  static bool take(std::atomic<int>& count) {
    int seen = count;
    while (seen > 0 && !count.compare_exchange_weak(seen, seen - 1)) {
    }
    return seen > 0;
  }
  static std::uint64_t bytes_of(const RingOperation& operation) {
    if (operation.opcode == RingOpcode::fallocate) return operation.range_bytes;
    std::uint64_t sum = 0;
    const auto* vectors = static_cast<const iovec*>(operation.address);
    for (std::uint32_t i = 0; i < operation.length; ++i)
      sum += vectors[i].iov_len;
    return sum;
  }
  void watch(const RingOperation& operation) {
    InFlight now{operation.opcode, operation.fd, 0, 0, {}};
    if (operation.opcode == RingOpcode::writev || operation.opcode == RingOpcode::fallocate) {
      now.begin = operation.offset_bytes;
      now.end = now.begin + bytes_of(operation);
      for (const auto& [id, other] : in_flight_) {
        if (other.fd == now.fd && other.begin < now.end && now.begin < other.end)
          ++faults_->overlaps;
      }
    }
    if (operation.opcode == RingOpcode::writev) now.vectors = std::move(next_vectors_);
    in_flight_.insert_or_assign(operation.user_data, std::move(now));
  }
  /// The vectors are copied, so that they can be cut; the copy lives until the completion.
  RingOperation shortened(RingOperation operation) {
    const auto* vectors = static_cast<const iovec*>(operation.address);
    next_vectors_.assign(vectors, vectors + operation.length);
    if (random_() % 100 < faults_->short_percent) {
      ++faults_->shortened;
      std::size_t keep = 1 + random_() % bytes_of(operation);
      for (iovec& vector : next_vectors_) {
        vector.iov_len = std::min(vector.iov_len, keep);
        keep -= vector.iov_len;
      }
    }
    operation.address = next_vectors_.data();
    return operation;
  }
  void take_from_ring() {
    std::array<RingCompletion, 64> taken;
    for (std::size_t count = taken.size(); count == taken.size();) {
      count = ring_->reap(taken);
      for (std::size_t i = 0; i < count; ++i) {
        const auto found = in_flight_.find(taken[i].user_data);
        const bool disk = found != in_flight_.end() && is_disk(found->second.opcode);
        const auto of = disk ? std::optional(found->second.opcode) : std::nullopt;
        if (found != in_flight_.end()) finished_.push_back(std::move(found->second));
        if (found != in_flight_.end()) in_flight_.erase(found);
        unsigned turns = 0;
        if (disk && random_() % 100 < faults_->late_percent) {
          turns = static_cast<unsigned>(1 + random_() % 16);
          ++faults_->delayed;
        }
        held_.push_back({taken[i], turns, of});
      }
    }
    finished_.clear();
  }
  static bool is_disk(RingOpcode opcode) {
    return opcode == RingOpcode::writev || opcode == RingOpcode::fdatasync ||
           opcode == RingOpcode::fallocate || opcode == RingOpcode::write;
  }

  std::unique_ptr<Ring> ring_;
  std::shared_ptr<DiskFaults> faults_;
  std::mt19937_64 random_;
  std::vector<Held> held_;
  std::map<std::uint64_t, InFlight> in_flight_;  ///< by user_data
  std::vector<iovec> next_vectors_;
  std::vector<InFlight> finished_;
};

/// A reactor on such a ring.
inline std::unique_ptr<Reactor> faulty_reactor(const std::shared_ptr<DiskFaults>& faults,
                                               std::uint64_t seed = 1) {
  auto ring = create_uring_ring(256);
  REQUIRE(ring.has_value());
  return create_reactor(std::make_unique<DiskFaultRing>(std::move(*ring), faults, seed));
}

}  // namespace replicad
