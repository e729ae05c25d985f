#pragma once
// A ring over the kernel's that behaves badly within what the kernel may do: transfers are cut short,
// operations are interrupted or told to try again, completions come late and in another order.

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <sys/uio.h>

#include "io/ring.h"

namespace replicad {

class FaultyRing final : public Ring {
 public:
  /// Chances of each fault, in percent.
  struct Faults {
    unsigned cut_short = 0;
    unsigned interrupted = 0;  ///< -EINTR before anything was done
    unsigned try_again = 0;    ///< -EAGAIN on a socket before anything was done
    unsigned late = 0;         ///< the completion waits a few turns; others overtake it
  };

  FaultyRing(std::unique_ptr<Ring> ring, std::uint64_t seed, Faults faults)
      : ring_(std::move(ring)), random_(seed), faults_(faults) {}

  [[nodiscard]] Status enable() override { return ring_->enable(); }
  int submit() override { return ring_->submit(); }

  [[nodiscard]] bool prepare(const RingOperation& operation) override {
    if (operation.opcode == RingOpcode::cancel) return ring_->prepare(operation);
    const bool socket =
        operation.opcode == RingOpcode::recv || operation.opcode == RingOpcode::sendmsg;
    if (operation.opcode != RingOpcode::connect && chance(faults_.interrupted)) {
      return invent(operation.user_data, -EINTR);
    }
    if (socket && chance(faults_.try_again)) return invent(operation.user_data, -EAGAIN);
    return ring_->prepare(chance(faults_.cut_short) ? shortened(operation) : operation);
  }

  int submit_and_wait(std::optional<Duration> timeout) override {
    if (!held_.empty()) {
      const Duration soon = std::chrono::microseconds(random_() % 3 * 50);
      timeout = timeout ? std::min(*timeout, soon) : soon;
    }
    return ring_->submit_and_wait(timeout);
  }

  [[nodiscard]] bool ready() const override { return !held_.empty() || ring_->ready(); }

  [[nodiscard]] std::size_t reap(std::span<RingCompletion> completions) override {
    take_from_ring();
    std::shuffle(held_.begin(), held_.end(), random_);
    std::size_t count = 0;
    for (std::size_t i = 0; i < held_.size();) {
      if (held_[i].turns > 0) {
        --held_[i++].turns;
        continue;
      }
      if (count == completions.size()) break;
      completions[count++] = held_[i].completion;
      held_[i] = held_.back();
      held_.pop_back();
    }
    return count;
  }

  [[nodiscard]] std::uint64_t faults_done() const { return faults_done_; }

 private:
  struct Held {
    RingCompletion completion;
    unsigned turns;
  };
  /// A message cut short, alive until its completion.
  struct ShortMessage {
    msghdr message{};
    std::vector<iovec> vectors;
  };

  bool chance(unsigned percent) { return random_() % 100 < percent; }

  bool invent(std::uint64_t user_data, int result) {
    ++faults_done_;
    held_.push_back({{user_data, result}, static_cast<unsigned>(random_() % 3)});
    return true;
  }

  void take_from_ring() {
    std::array<RingCompletion, 64> taken;
    for (std::size_t count = taken.size(); count == taken.size();) {
      count = ring_->reap(taken);
      for (std::size_t i = 0; i < count; ++i) {
        messages_.erase(taken[i].user_data);
        unsigned turns = 0;
        if (chance(faults_.late)) turns = static_cast<unsigned>(1 + random_() % 8);
        if (turns > 0) ++faults_done_;
        held_.push_back({taken[i], turns});
      }
    }
  }

  RingOperation shortened(RingOperation operation) {
    ++faults_done_;
    switch (operation.opcode) {
      case RingOpcode::recv:
      case RingOpcode::read:
      case RingOpcode::write:
        if (operation.length > 1) {
          operation.length = 1 + static_cast<std::uint32_t>(random_() % operation.length);
        }
        return operation;
      case RingOpcode::sendmsg:
        operation.address = shorten_message(*static_cast<const msghdr*>(operation.address),
                                            messages_[operation.user_data]);
        return operation;
      case RingOpcode::accept:
      case RingOpcode::connect:
      case RingOpcode::writev:
      case RingOpcode::fdatasync:
      case RingOpcode::fallocate:
      case RingOpcode::cancel:
        return operation;
    }
    return operation;
  }

  msghdr* shorten_message(const msghdr& message, ShortMessage& to) {
    to.vectors.assign(message.msg_iov, message.msg_iov + message.msg_iovlen);
    std::size_t total = 0;
    for (const iovec& vector : to.vectors)
      total += vector.iov_len;
    std::size_t keep = 1 + random_() % total;
    for (std::size_t i = 0; i < to.vectors.size(); ++i) {
      to.vectors[i].iov_len = std::min(to.vectors[i].iov_len, keep);
      keep -= to.vectors[i].iov_len;
    }
    to.message = message;
    to.message.msg_iov = to.vectors.data();
    return &to.message;
  }

  std::unique_ptr<Ring> ring_;
  std::mt19937_64 random_;
  Faults faults_;
  std::vector<Held> held_;
  std::map<std::uint64_t, ShortMessage> messages_;
  std::uint64_t faults_done_ = 0;
};

}  // namespace replicad
