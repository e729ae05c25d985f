// A load generator for NBD servers that costs less than fio's client: asynchronous commands of libnbd, one thread for
// each connection. Options are named as fio's; prints one line of JSON. It compares nothing of what it reads.

// g++ 12 takes the any_cast inside Boost's typed_value::notify for one that may give null.
#pragma GCC diagnostic ignored "-Wnull-dereference"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <boost/program_options.hpp>
#include <fmt/format.h>
#include <libnbd.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/resource.h>

#include "ctl/units.h"

namespace replicad::bench {
namespace {

namespace po = boost::program_options;
using Clock = std::chrono::steady_clock;

/// The run cannot begin or go on.
class LoadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Settings {
  std::string uri;
  bool random = true;
  std::uint64_t read_percent = 0;
  std::uint64_t block = 4096;
  std::uint64_t size = 0;  ///< 0: all of the disk
  std::uint64_t depth = 1;
  std::uint64_t connections = 1;
  std::uint64_t fsync_every = 0;  ///< 0: never
  std::uint64_t seconds = 10;
  std::uint64_t seed = 1;
};

/// Latencies, in buckets that are at most 1/32 of their value wide.
class Histogram {
 public:
  void add(std::uint64_t nanoseconds) {
    const auto octave = static_cast<unsigned>(std::bit_width(nanoseconds | 63)) - 6;
    ++counts_[octave * 64 + (nanoseconds >> octave)];
    ++total_;
  }

  /// In microseconds; 0 if nothing was added.
  [[nodiscard]] double percentile(double percent) const {
    const auto rank = static_cast<std::uint64_t>(static_cast<double>(total_) * percent / 100);
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      const std::size_t octave = i / 64;
      if (seen > rank) return static_cast<double>((i - octave * 64) << octave) / 1000;
    }
    return 0;
  }

  void merge(const Histogram& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i)
      counts_[i] += other.counts_[i];
    total_ += other.total_;
  }

  [[nodiscard]] std::uint64_t total() const { return total_; }

 private:
  // A value of `octave` > 0 has 32 to 63 left of it after the shift.
  std::array<std::uint64_t, 64 * 60> counts_{};
  std::uint64_t total_ = 0;
};

/// splitmix64: good enough for offsets, and nearly free.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t below(std::uint64_t limit) {
    std::uint64_t mixed = state_ += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    return (mixed ^ (mixed >> 31)) % limit;
  }

 private:
  std::uint64_t state_;
};

struct Totals {
  Histogram reads;
  Histogram writes;
  std::uint64_t flushes = 0;
  std::uint64_t errors = 0;
  std::string first_error;

  void merge(const Totals& other) {
    reads.merge(other.reads);
    writes.merge(other.writes);
    flushes += other.flushes;
    errors += other.errors;
    if (first_error.empty()) first_error = other.first_error;
  }
};

enum class Kind { read, write, flush };

/// One command that is under way at most, again and again.
struct Slot {
  class Connection* connection = nullptr;
  Kind kind = Kind::read;
  Clock::time_point begin;
  std::vector<std::byte> data;
};

class Connection {
 public:
  Connection(const Settings& settings, std::uint64_t index)
      : settings_(settings),
        random_(settings.seed * 1'000'003 + index),
        nbd_(nbd_create(), &nbd_close) {
    if (!nbd_) throw LoadError(nbd_get_error());
    nbd_set_pread_initialize(nbd_.get(), false);
    if (nbd_connect_uri(nbd_.get(), settings.uri.c_str()) != 0) throw LoadError(nbd_get_error());
    const std::int64_t size = nbd_get_size(nbd_.get());
    if (size < 0) throw LoadError(nbd_get_error());
    blocks_ = static_cast<std::uint64_t>(size) / settings.block;
    if (settings.size > 0) blocks_ = std::min(blocks_, settings.size / settings.block);
    if (blocks_ == 0) throw LoadError("the disk has not one block of that size");
    next_block_ = blocks_ / settings.connections * index;
    slots_.resize(settings.depth);
    for (Slot& slot : slots_) {
      slot.connection = this;
      slot.data.resize(settings.block);
      for (std::byte& byte : slot.data)
        byte = static_cast<std::byte>(random_.below(256));
      idle_.push_back(&slot);
    }
  }

  /// Until `end` or until `stop`, which an error sets; then until everything is answered.
  void run(Clock::time_point end, std::atomic<bool>& stop) {
    try {
      while (Clock::now() < end && !stop) {
        issue_all();
        advance();
        if (totals_.errors > 0) stop = true;
      }
      while (busy())
        advance();
    } catch (const LoadError& error) {
      ++totals_.errors;
      totals_.first_error = error.what();
      stop = true;
    }
  }

  [[nodiscard]] const Totals& totals() const { return totals_; }

 private:
  void issue_all() {
    while (!idle_.empty()) {
      Slot& slot = *idle_.back();
      idle_.pop_back();
      issue(slot);
    }
  }

  [[nodiscard]] bool busy() const { return idle_.size() < slots_.size(); }

  void advance() {
    const unsigned direction = nbd_aio_get_direction(nbd_.get());
    int events = 0;
    if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) events |= POLLIN;
    if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) events |= POLLOUT;
    pollfd polled{nbd_aio_get_fd(nbd_.get()), static_cast<short>(events), 0};
    const int ready = ::poll(&polled, 1, 60'000);
    if (ready < 0 && errno != EINTR) throw LoadError("poll fails");
    if (ready == 0) throw LoadError("no answer within 60 s");
    if ((polled.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      take_answers();
    } else if ((polled.revents & POLLOUT) != 0) {
      if (nbd_aio_notify_write(nbd_.get()) != 0) throw LoadError(nbd_get_error());
    }
    if (nbd_aio_is_dead(nbd_.get()) != 0 || nbd_aio_is_closed(nbd_.get()) != 0)
      throw LoadError("the server has ended the connection");
  }

  /// All that are there: looking once more is cheaper than poll(). While a request is half sent
  /// libnbd must not be told of an answer that is not there: it would forget the other half.
  void take_answers() {
    std::size_t before = 0;
    do {
      before = idle_.size();
      if (nbd_aio_notify_read(nbd_.get()) != 0) throw LoadError(nbd_get_error());
    } while (idle_.size() > before && busy() &&
             nbd_aio_get_direction(nbd_.get()) == LIBNBD_AIO_DIRECTION_READ);
  }

  Kind next_kind() {
    if (settings_.fsync_every > 0 && writes_since_flush_ == settings_.fsync_every) {
      writes_since_flush_ = 0;
      return Kind::flush;
    }
    if (settings_.read_percent > 0 && random_.below(100) < settings_.read_percent)
      return Kind::read;
    ++writes_since_flush_;
    return Kind::write;
  }

  std::uint64_t next_offset() {
    if (settings_.random) return random_.below(blocks_) * settings_.block;
    const std::uint64_t block = next_block_;
    next_block_ = (next_block_ + 1) % blocks_;
    return block * settings_.block;
  }

  void issue(Slot& slot) {
    slot.kind = next_kind();
    slot.begin = Clock::now();
    nbd_completion_callback done{&Connection::on_done, &slot, nullptr};
    std::int64_t cookie = -1;
    if (slot.kind == Kind::flush) {
      cookie = nbd_aio_flush(nbd_.get(), done, 0);
    } else if (slot.kind == Kind::read) {
      cookie =
          nbd_aio_pread(nbd_.get(), slot.data.data(), slot.data.size(), next_offset(), done, 0);
    } else {
      // No two blocks are the same: a server may look for that.
      ++written_;
      for (std::size_t at = 0; at + sizeof(written_) <= slot.data.size(); at += 4096)
        std::memcpy(&slot.data[at], &written_, sizeof(written_));
      cookie =
          nbd_aio_pwrite(nbd_.get(), slot.data.data(), slot.data.size(), next_offset(), done, 0);
    }
    if (cookie < 0) throw LoadError(nbd_get_error());
  }

  /// libnbd calls this with its lock held: the next command is issued outside.
  static int on_done(void* user_data, int* error) {
    auto& slot = *static_cast<Slot*>(user_data);
    slot.connection->finish(slot, *error);
    return 1;
  }

  void finish(Slot& slot, int error) {
    const auto took = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - slot.begin).count());
    idle_.push_back(&slot);
    if (error != 0) {
      static constexpr std::array<const char*, 3> names{"read", "write", "flush"};
      if (totals_.errors++ == 0) {
        totals_.first_error = fmt::format("a {} failed: {}",
                                          names.at(static_cast<std::size_t>(slot.kind)),
                                          strerrordesc_np(error));
      }
    } else if (slot.kind == Kind::flush) {
      ++totals_.flushes;
    } else {
      (slot.kind == Kind::read ? totals_.reads : totals_.writes).add(took);
    }
  }

  const Settings& settings_;
  Totals totals_;
  Random random_;
  std::uint64_t blocks_ = 0;
  std::uint64_t next_block_ = 0;
  std::uint64_t writes_since_flush_ = 0;
  std::uint64_t written_ = 0;
  std::vector<Slot> slots_;
  std::vector<Slot*> idle_;
  // Last, so that it ends first: libnbd calls back for what is under way.
  std::unique_ptr<nbd_handle, decltype(&nbd_close)> nbd_;
};

struct Usage {
  double cpu_us = 0;
  double switches = 0;

  static Usage now() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto microseconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec);
    };
    return {microseconds(usage.ru_utime) + microseconds(usage.ru_stime),
            static_cast<double>(usage.ru_nvcsw + usage.ru_nivcsw)};
  }

  Usage operator-(const Usage& other) const {
    return {cpu_us - other.cpu_us, switches - other.switches};
  }
};

nlohmann::json report(const Settings& settings,
                      const Totals& totals,
                      double seconds,
                      const Usage& used) {
  // As in the tables: of the writes where there are any.
  const Histogram& latency = totals.writes.total() > 0 ? totals.writes : totals.reads;
  const auto ios = static_cast<double>(totals.reads.total() + totals.writes.total());
  return {{"ios", totals.reads.total() + totals.writes.total()},
          {"flushes", totals.flushes},
          {"errors", totals.errors},
          {"seconds", seconds},
          {"iops", ios / seconds},
          {"MiB/s", ios / seconds * static_cast<double>(settings.block) / (1 << 20)},
          {"p50_us", latency.percentile(50)},
          {"p99_us", latency.percentile(99)},
          {"p999_us", latency.percentile(99.9)},
          {"cpu_us", ios > 0 ? used.cpu_us / ios : 0},
          {"switches", ios > 0 ? used.switches / ios : 0}};
}

int load(const Settings& settings) {
  std::vector<std::unique_ptr<Connection>> connections;
  for (std::uint64_t i = 0; i < settings.connections; ++i)
    connections.push_back(std::make_unique<Connection>(settings, i));
  const Usage before = Usage::now();
  const auto begin = Clock::now();
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (const auto& connection : connections) {
    threads.emplace_back(
        [&] { connection->run(begin + std::chrono::seconds(settings.seconds), stop); });
  }
  for (std::thread& thread : threads)
    thread.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const Usage used = Usage::now() - before;
  auto totals = std::make_unique<Totals>();
  for (const auto& connection : connections)
    totals->merge(connection->totals());
  std::cout << report(settings, *totals, seconds, used).dump() << '\n';
  if (totals->errors == 0) return 0;
  std::cerr << "nbd_load: " << totals->first_error << '\n';
  return 1;
}

std::uint64_t size_of(const po::variables_map& given, const char* name) {
  const auto size = ctl::parse_size(given[name].as<std::string>());
  if (!size) throw LoadError(size.error().message);
  return *size;
}

Settings settings_from(const po::variables_map& given) {
  Settings settings;
  settings.uri = given["uri"].as<std::string>();
  std::string pattern = given["rw"].as<std::string>();
  settings.random = pattern.starts_with("rand");
  if (settings.random) pattern.erase(0, 4);
  if (pattern == "read") {
    settings.read_percent = 100;
  } else if (pattern == "rw") {
    settings.read_percent = given["rwmixread"].as<std::uint64_t>();
  } else if (pattern != "write") {
    throw LoadError("--rw is one of read, write, rw, randread, randwrite, randrw");
  }
  settings.block = size_of(given, "bs");
  settings.size = size_of(given, "size");
  settings.depth = given["iodepth"].as<std::uint64_t>();
  settings.connections = given["numjobs"].as<std::uint64_t>();
  settings.fsync_every = given["fsync"].as<std::uint64_t>();
  settings.seconds = given["runtime"].as<std::uint64_t>();
  settings.seed = given["seed"].as<std::uint64_t>();
  if (settings.block == 0 || settings.depth == 0 || settings.connections == 0)
    throw LoadError("--bs, --iodepth and --numjobs are at least 1");
  if (settings.connections > 64 || settings.depth > 1024 || settings.block > (32U << 20))
    throw LoadError("at most 64 connections, depth 1024, blocks of 32M");
  return settings;
}

po::options_description all_options() {
  po::options_description options(
      "nbd_load --uri=URI [OPTIONS]: a load on an NBD server, with options named as fio's.\n"
      "Prints one line of JSON: iops, MiB/s, p50_us, p99_us, p999_us (of the writes, if there are\n"
      "any), cpu_us and switches per I/O of nbd_load itself. It does not look at what it reads.\n"
      "Exit status 1 after an I/O error or a lost connection.\n\nOptions");
  const auto text = [](const char* value) {
    return po::value<std::string>()->default_value(value);
  };
  const auto number = [](std::uint64_t value) {
    return po::value<std::uint64_t>()->default_value(value);
  };
  options.add_options()("help", "show this")(
      "uri", po::value<std::string>(), "e.g. nbd+unix:///?socket=/run/disk.sock")(
      "rw", text("randwrite"), "read, write, rw (all sequential), randread, randwrite, randrw")(
      "rwmixread", number(50), "percentage of reads in rw and randrw")(
      "bs", text("4k"), "bytes per I/O")(
      "size", text("0"), "from the beginning of the disk; 0: all of it")(
      "iodepth", number(1), "I/Os under way on each connection")(
      "numjobs", number(1), "connections; sequential I/O begins at equal distances")(
      "fsync", number(0), "a flush after that many writes of a connection; 0: none")(
      "runtime", number(10), "seconds")("seed", number(1), "of offsets and data");
  return options;
}

int run_main(int argc, char** argv) {
  const po::options_description options = all_options();
  po::variables_map given;
  try {
    po::store(po::parse_command_line(argc, argv, options), given);
    po::notify(given);
    if (given.contains("help")) {
      std::cout << options;
      return 0;
    }
    if (!given.contains("uri")) throw LoadError("--uri is missing; --help shows all options");
    return load(settings_from(given));
  } catch (const po::error& error) {
    std::cerr << "nbd_load: " << error.what() << '\n';
    return 2;
  } catch (const LoadError& error) {
    std::cerr << "nbd_load: " << error.what() << '\n';
    return 1;
  }
}

}  // namespace
}  // namespace replicad::bench

int main(int argc, char** argv) {
  return replicad::bench::run_main(argc, argv);
}
