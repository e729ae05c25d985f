#pragma once
// Writers that behave like a guest with a patient driver: each has a connection of its own, writes
// in a stripe of its own, and when the connection breaks it looks for the host that serves now,
// connects there and sends the unanswered request again. A mirror in memory holds what was
// answered: the oracle for the images. In `async` each new term may lack the end of it (loss_book.h).

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/harness.h"
#include "tests/e2e/loss_book.h"
#include "tests/e2e/nbd_client.h"

namespace replicad::e2e {

/// Writes some blocks of vm1 full of `value`, and flushes.
void write_blocks(Cluster& cluster, unsigned char value);

/// `former`, the primary of vm1, does not take its own images any more, which hold what write_blocks() wrote last:
/// `value`. Fails over, reads that, readmits `former`, and ends with equal images. Throws where that goes wrong.
void fail_over_and_readmit(Cluster& cluster, const std::string& former, unsigned char value);

/// RD_SEED, or a random one. Printed by tests with INFO.
std::uint64_t test_seed();

struct LoadOptions {
  std::string volume = "vm1";
  std::vector<DiskSpec> disks = {{"vda", 32 << 20}};
  unsigned writers_per_disk = 4;
  std::uint64_t seed = 0;
  std::size_t write_bytes_max = 64 << 10;
  bool zeroes = true;  ///< also zero, trim and flush, and reads that are compared
  Millis reconnect_limit{30'000};
  /// Connect here and nowhere else, at once, by disk: an endpoint that refuses is an error.
  std::map<std::string, std::string> uris = {};
  /// What a new term may lack of what was answered in one before it; 0: nothing. Not with `uris`.
  std::uint64_t lost_bytes_max = 0;
};

class Load {
 public:
  Load(const Cluster& cluster, LoadOptions options);
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  ~Load();

  void start();
  /// Every writer finishes the request it is at. Throws what a writer ran into. Where something may be lost, the
  /// mirror is then what the latest term holds.
  void stop();
  /// Waits until `count` more requests were answered. Throws what a writer ran into.
  void wait_answered(std::uint64_t count, Millis limit = Millis(60'000));
  /// The guest was moved: whoever waits for an answer of a term below `epoch` connects anew, and nobody
  /// uses such an export any more. Any thread.
  void move_to(std::uint64_t epoch);
  [[nodiscard]] std::uint64_t answered() const { return answered_; }
  [[nodiscard]] std::uint64_t reconnects() const { return reconnects_; }
  [[nodiscard]] const LossBook& losses() const { return losses_; }
  /// Longest time between two answers to one writer.
  [[nodiscard]] Millis longest_wait() const { return Millis(longest_wait_ms_.load()); }

  /// What the disk must hold, after stop().
  [[nodiscard]] const std::vector<std::byte>& mirror(const std::string& disk) const {
    return mirrors_.at(disk);
  }
  /// Reads every disk through NBD and compares; throws on a difference. After stop().
  void check_through_nbd() const;
  /// Compares every image of every host with the mirror; throws on a difference. After stop().
  void check_images(Cluster& cluster) const;

 private:
  struct Stripe {
    std::string disk;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };
  /// One writer between two terms. Its own thread's; after stop() the caller's.
  struct Writer {
    Stripe stripe;
    std::uint64_t seed = 0;
    std::unique_ptr<NbdClient> client = nullptr;
    std::uint64_t epoch = 0;  ///< of the export that `client` is connected to
    LossJournal journal;
  };
  struct Request {
    enum class Kind { write, zero, trim, flush, read };
    Kind kind = Kind::write;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    std::uint32_t flags = 0;
    std::vector<std::byte> data = {};
  };

  void run_writer(Writer& writer);
  void perform(Writer& writer, const Request& request);
  void send(Writer& writer, const Request& request);
  void remember(Writer& writer, const Request& request, std::int64_t sent);
  Request draw(const Stripe& stripe, std::mt19937_64& random) const;
  void connect(Writer& writer, const Request& pending);
  /// The writer's part of the disk, in the term that it has just connected to. Throws NbdError.
  void take_losses(Writer& writer, std::uint64_t epoch, const Request& pending);
  void connect_to(const std::string& uri, std::unique_ptr<NbdClient>& client) const;
  void report(const std::string& error);
  void throw_error();

  const Cluster& cluster_;
  LoadOptions options_;
  std::map<std::string, std::vector<std::byte>> mirrors_;
  LossBook losses_;
  std::vector<Writer> writers_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> epoch_min_{0};
  std::atomic<std::uint64_t> answered_{0};
  std::atomic<std::uint64_t> reconnects_{0};
  std::atomic<std::int64_t> longest_wait_ms_{0};
  std::mutex error_mutex_;
  std::string error_;
};

}  // namespace replicad::e2e
