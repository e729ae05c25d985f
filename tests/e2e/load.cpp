#include "tests/e2e/load.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

namespace replicad::e2e {

namespace {

constexpr std::uint64_t sector_bytes = 512;

using Clock = std::chrono::steady_clock;

Millis since(Clock::time_point start) {
  return std::chrono::duration_cast<Millis>(Clock::now() - start);
}

}  // namespace

std::uint64_t test_seed() {
  const char* fixed = std::getenv("RD_SEED");
  return fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
}

void write_blocks(Cluster& cluster, unsigned char value) {
  NbdClient client(cluster.uri());
  const std::vector<std::byte> content(block_bytes, std::byte{value});
  for (std::uint64_t i = 0; i < 8; ++i)
    client.write((3 * i + 1) * block_bytes, content);
  client.flush();
}

void fail_over_and_readmit(Cluster& cluster, const std::string& former, unsigned char value) {
  const auto readmit = [&] { return cluster.ctl({"readmit", "vm1", "--host=" + former}); };
  if (const Finished refused = readmit(); refused.exit_code != 3)
    throw HarnessError("a primary was readmitted without --force: " + refused.text());
  cluster.ctl_ok({"failover", "vm1"});
  if (cluster.primary_host() == former) throw HarnessError(former + " is the primary still");
  {
    NbdClient client(cluster.uri());
    std::vector<std::byte> content(block_bytes);
    client.read(block_bytes, content);
    if (content != std::vector<std::byte>(block_bytes, std::byte{value}))
      throw HarnessError(fmt::format("a block does not hold {}", value));
  }
  // It is a replica now, and is compared like any other one.
  wait_until(
      former + " can be readmitted", Millis(60'000), [&] { return readmit().exit_code == 0; });
  cluster.ctl_ok({"wait", "vm1", "--for=in-sync", "--timeout=60"});
  cluster.stop_and_compare();
}

Load::Load(const Cluster& cluster, LoadOptions options)
    : cluster_(cluster), options_(std::move(options)), losses_(options_.lost_bytes_max) {
  if (options_.seed == 0) options_.seed = test_seed();
  for (const DiskSpec& disk : options_.disks) {
    mirrors_[disk.name].resize(disk.bytes);
    const std::uint64_t blocks = disk.bytes / sector_bytes / options_.writers_per_disk;
    for (unsigned i = 0; i < options_.writers_per_disk; ++i) {
      writers_.push_back(
          {.stripe = {disk.name, i * blocks * sector_bytes, (i + 1) * blocks * sector_bytes},
           // A term may lack what an earlier one lacked already of the one before it.
           .journal = LossJournal(2 * options_.lost_bytes_max)});
    }
  }
}

Load::~Load() {
  stopping_ = true;
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Load::start() {
  stopping_ = false;
  std::uint64_t seed = options_.seed;
  for (Writer& writer : writers_) {
    writer.seed = seed++;
    threads_.emplace_back([this, &writer] { run_writer(writer); });
  }
}

void Load::stop() {
  stopping_ = true;
  for (std::thread& thread : threads_)
    thread.join();
  threads_.clear();
  // The next start() goes on with other requests.
  options_.seed += 1000;
  throw_error();
  if (options_.lost_bytes_max == 0) return;
  for (Writer& writer : writers_)
    perform(writer, {.kind = Request::Kind::flush});
}

void Load::wait_answered(std::uint64_t count, Millis limit) {
  const std::uint64_t target = answered_ + count;
  wait_until(fmt::format("{} more requests are answered", count), limit, [&] {
    throw_error();
    return answered_ >= target;
  });
}

void Load::move_to(std::uint64_t epoch) {
  auto known = epoch_min_.load();
  while (known < epoch && !epoch_min_.compare_exchange_weak(known, epoch)) {
  }
}

void Load::report(const std::string& error) {
  const std::lock_guard lock(error_mutex_);
  if (error_.empty()) error_ = error;
}

void Load::throw_error() {
  const std::lock_guard lock(error_mutex_);
  if (!error_.empty()) throw HarnessError(fmt::format("load: {}", error_));
}

void Load::run_writer(Writer& writer) {
  const Stripe& stripe = writer.stripe;
  std::mt19937_64 random(writer.seed);
  try {
    while (!stopping_) {
      const Request request = draw(stripe, random);
      const auto start = Clock::now();
      perform(writer, request);
      const auto waited = since(start).count();
      for (auto longest = longest_wait_ms_.load(); waited > longest;) {
        if (longest_wait_ms_.compare_exchange_weak(longest, waited)) break;
      }
      ++answered_;
    }
  } catch (const std::exception& error) {
    report(fmt::format("writer {} [{}, {}) seed {}: {}",
                       stripe.disk,
                       stripe.begin,
                       stripe.end,
                       writer.seed,
                       error.what()));
  }
  // Where something may be lost, the connection says what term the mirror is of.
  if (options_.lost_bytes_max == 0) writer.client.reset();
}

Load::Request Load::draw(const Stripe& stripe, std::mt19937_64& random) const {
  Request request;
  const std::uint64_t blocks = (stripe.end - stripe.begin) / sector_bytes;
  const std::uint64_t first = random() % blocks;
  const std::uint64_t most = std::min(blocks - first, options_.write_bytes_max / sector_bytes);
  const std::uint64_t dice = options_.zeroes ? random() % 32 : 31;
  request.offset = stripe.begin + first * sector_bytes;
  request.length = (1 + random() % most) * sector_bytes;
  if (dice == 0) {
    request.kind = Request::Kind::trim;
  } else if (dice == 1) {
    request.kind = Request::Kind::zero;
    request.flags = random() % 2 == 0 ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
  } else if (dice == 2) {
    request.kind = Request::Kind::flush;
  } else if (dice < 7) {
    request.kind = Request::Kind::read;
  } else {
    request.flags = dice == 8 ? LIBNBD_CMD_FLAG_FUA : 0;
    request.data.resize(request.length);
    for (std::size_t i = 0; i < request.data.size(); i += sizeof(std::uint64_t)) {
      const std::uint64_t word = random();
      std::memcpy(request.data.data() + i, &word, sizeof word);
    }
  }
  return request;
}

void Load::connect_to(const std::string& uri, std::unique_ptr<NbdClient>& client) const {
  const auto start = Clock::now();
  const auto is_late = [this, start] { return since(start) >= options_.reconnect_limit; };
  while (!client) {
    try {
      client = std::make_unique<NbdClient>(uri, is_late);
    } catch (const NbdError& error) {
      // One that was taken by an export which has ended meanwhile: into the queue once more.
      if (error.sys_errno == ECONNREFUSED || error.sys_errno == ENOENT || is_late()) throw;
    }
  }
}

void Load::connect(Writer& writer, const Request& pending) {
  const Stripe& stripe = writer.stripe;
  if (const auto fixed = options_.uris.find(stripe.disk); fixed != options_.uris.end())
    return connect_to(fixed->second, writer.client);
  const auto start = Clock::now();
  while (since(start) < options_.reconnect_limit) {
    const auto found = cluster_.find_export(options_.volume, stripe.disk);
    try {
      if (found && found->epoch >= epoch_min_) {
        writer.client = std::make_unique<NbdClient>(
            found->uri, [this, epoch = found->epoch] { return epoch < epoch_min_; });
        if (options_.lost_bytes_max == 0) return;
        // The socket outlives the export: who took the connection must be who was found.
        if (cluster_.find_export(options_.volume, stripe.disk) == found) {
          take_losses(writer, found->epoch, pending);
          return;
        }
      }
    } catch (const NbdError&) {
      // It has just ended there; look again.
    }
    writer.client.reset();
    std::this_thread::sleep_for(Millis(10));
  }
  throw HarnessError(
      fmt::format("no host serves {} for {} ms", stripe.disk, options_.reconnect_limit.count()));
}

void Load::take_losses(Writer& writer, std::uint64_t epoch, const Request& pending) {
  if (epoch == writer.epoch) return;
  const Stripe& stripe = writer.stripe;
  std::vector<std::byte> found(stripe.end - stripe.begin);
  writer.client->read(stripe.begin, found);
  const bool is_change =
      pending.kind != Request::Kind::read && pending.kind != Request::Kind::flush;
  std::vector<std::byte> changed = pending.data;
  if (is_change) changed.resize(pending.length);
  const auto whole = std::span(mirrors_.at(stripe.disk));
  writer.journal.reconcile(epoch,
                           whole.subspan(stripe.begin, found.size()),
                           found,
                           is_change ? pending.offset - stripe.begin : 0,
                           changed,
                           losses_);
  writer.epoch = epoch;
}

void Load::perform(Writer& writer, const Request& request) {
  while (true) {
    if (!writer.client) connect(writer, request);
    try {
      send(writer, request);
      return;
    } catch (const NbdError& error) {
      // A server that shuts down says so, or just goes; everything else is what a guest would see
      // as an error.
      if (!error.connection_lost && error.sys_errno != ESHUTDOWN) throw;
      writer.client.reset();
      ++reconnects_;
    }
  }
}

void Load::send(Writer& writer, const Request& request) {
  NbdClient& client = *writer.client;
  const Stripe& stripe = writer.stripe;
  const std::int64_t sent = Clock::now().time_since_epoch().count();
  switch (request.kind) {
    case Request::Kind::write:
      client.write(request.offset, request.data, request.flags);
      break;
    case Request::Kind::zero:
      client.zero(request.offset, request.length, request.flags);
      break;
    case Request::Kind::trim:
      client.trim(request.offset, request.length);
      break;
    case Request::Kind::flush:
      client.flush();
      return;
    case Request::Kind::read: {
      std::vector<std::byte> got(request.length);
      client.read(request.offset, got);
      const std::byte* expected = mirrors_.at(stripe.disk).data() + request.offset;
      if (std::memcmp(got.data(), expected, got.size()) != 0) {
        throw HarnessError(fmt::format("read of {} bytes at {} differs from what was answered",
                                       request.length,
                                       request.offset));
      }
      return;
    }
  }
  remember(writer, request, sent);
}

void Load::remember(Writer& writer, const Request& request, std::int64_t sent) {
  std::byte* to = mirrors_.at(writer.stripe.disk).data() + request.offset;
  std::vector<std::byte> zeroes;
  if (request.kind != Request::Kind::write) zeroes.resize(request.length);
  const std::vector<std::byte>& after =
      request.kind == Request::Kind::write ? request.data : zeroes;
  if (options_.lost_bytes_max != 0) {
    writer.journal.add({.epoch = writer.epoch,
                        .offset = request.offset - writer.stripe.begin,
                        .before = {to, to + request.length},
                        .sent = sent,
                        .answered = Clock::now().time_since_epoch().count()},
                       after);
  }
  std::memcpy(to, after.data(), request.length);
}

void Load::check_through_nbd() const {
  for (const auto& [disk, mirror] : mirrors_) {
    const auto found = cluster_.find_export(options_.volume, disk);
    if (!found) throw HarnessError("no host serves " + disk);
    NbdClient client(found->uri);
    constexpr std::size_t step = 1 << 20;
    std::vector<std::byte> got(step);
    for (std::size_t at = 0; at < mirror.size(); at += step) {
      const auto part = std::span(got).first(std::min(step, mirror.size() - at));
      client.read(at, part);
      if (std::memcmp(part.data(), mirror.data() + at, part.size()) != 0) {
        throw HarnessError(
            fmt::format("{} read through NBD differs within the MiB at {}", disk, at));
      }
    }
  }
}

void Load::check_images(Cluster& cluster) const {
  std::string differences;
  for (const auto& [disk, mirror] : mirrors_) {
    const json primary = cluster.volume(cluster.primary_host(options_.volume), options_.volume);
    for (const json& member : primary.at("members")) {
      if (member.value("role", "") == "witness") continue;
      const auto host = member.at("host").get<std::string>();
      const std::string path = cluster.image_path(host, disk, options_.volume);
      const std::string found = file_difference(path, mirror);
      if (!found.empty()) differences += fmt::format("host {}: {}\n", host, found);
    }
  }
  if (!differences.empty())
    throw HarnessError("images differ from what was answered: " + differences);
}

}  // namespace replicad::e2e
