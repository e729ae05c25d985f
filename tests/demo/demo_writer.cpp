// The client of the demonstration. Writes records to an NBD disk until SIGTERM; when its connection ends it asks for
// the URI again and sends the unanswered request once more, as a hypervisor's NBD driver does. At the end it reads
// the whole disk back, compares, and leaves what was answered in a file.
//
//   demo_writer DISK MIRROR_FILE PROGRESS_FILE ATTACH_INFO_COMMAND...
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <libnbd.h>
#include <nlohmann/json.hpp>

namespace {

using Clock = std::chrono::steady_clock;
using Handle = std::unique_ptr<nbd_handle, decltype(&nbd_close)>;

volatile std::sig_atomic_t stop_asked = 0;

void on_signal(int /*number*/) {
  stop_asked = 1;
}

std::int64_t milliseconds(Clock::duration time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
}

struct Counts {
  std::uint64_t writes = 0;
  std::uint64_t bytes = 0;
  std::uint64_t reconnects = 0;
  std::int64_t longest_ms = 0;
};

class Writer {
 public:
  Writer(std::string disk, std::string command)
      : disk_(std::move(disk)), command_(std::move(command)) {}

  void write(std::uint64_t offset, const std::vector<std::byte>& data) {
    const auto start = Clock::now();
    while (nbd_pwrite(handle(), data.data(), data.size(), offset, 0) != 0) {
      handle_.reset();
      ++counts_.reconnects;
      if (milliseconds(Clock::now() - start) > 60'000) give_up(nbd_get_error());
    }
    if (mirror_.size() < size()) mirror_.resize(size());
    std::copy(data.begin(), data.end(), mirror_.begin() + static_cast<std::ptrdiff_t>(offset));
    ++counts_.writes;
    counts_.bytes += data.size();
    counts_.longest_ms = std::max(counts_.longest_ms, milliseconds(Clock::now() - start));
  }

  std::uint64_t size() { return static_cast<std::uint64_t>(nbd_get_size(handle())); }

  bool read_back_is_equal() {
    mirror_.resize(size());
    std::vector<std::byte> got(1 << 20);
    for (std::size_t at = 0; at < mirror_.size(); at += got.size()) {
      const std::size_t part = std::min(got.size(), mirror_.size() - at);
      if (nbd_pread(handle(), got.data(), part, at, 0) != 0) give_up(nbd_get_error());
      if (std::memcmp(got.data(), mirror_.data() + at, part) != 0) return false;
    }
    return nbd_flush(handle(), 0) == 0;
  }

  void save_mirror(const std::string& path) const {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(mirror_.data()),
               static_cast<std::streamsize>(mirror_.size()));
  }

  [[nodiscard]] const Counts& counts() const { return counts_; }

 private:
  [[noreturn]] static void give_up(const char* why) {
    fmt::print(stderr, "demo_writer: {}\n", why);
    std::exit(1);
  }

  nbd_handle* handle() {
    const auto start = Clock::now();
    while (!handle_) {
      const std::string uri = ask_uri();
      Handle fresh(nbd_create(), &nbd_close);
      if (!uri.empty() && nbd_connect_uri(fresh.get(), uri.c_str()) == 0) {
        handle_ = std::move(fresh);
      } else if (milliseconds(Clock::now() - start) > 60'000) {
        give_up("no host serves the disk");
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
    return handle_.get();
  }

  /// The disk's URI at the host that serves it now; empty if there is none at the moment.
  [[nodiscard]] std::string ask_uri() const {
    std::string text;
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command_.c_str(), "r"), &::pclose);
    std::array<char, 4096> buffer{};
    while (pipe && std::fgets(buffer.data(), buffer.size(), pipe.get()) != nullptr) {
      text += buffer.data();
    }
    const auto answer = nlohmann::json::parse(text, nullptr, false);
    if (!answer.is_object()) return {};
    for (const auto& disk : answer.value("disks", nlohmann::json::array())) {
      if (disk.value("name", "") == disk_) return disk.value("uri", "");
    }
    return {};
  }

  std::string disk_;
  std::string command_;
  Handle handle_{nullptr, &nbd_close};
  std::vector<std::byte> mirror_;
  Counts counts_;
};

void write_until_stopped(Writer& writer, const std::string& progress_path) {
  std::mt19937_64 random(2026);
  std::vector<std::byte> data;
  const std::uint64_t blocks = writer.size() / 4096;
  while (stop_asked == 0) {
    const std::uint64_t first = random() % blocks;
    data.resize(4096 * (1 + random() % std::min<std::uint64_t>(8, blocks - first)));
    for (std::byte& byte : data)
      byte = static_cast<std::byte>(random());
    writer.write(first * 4096, data);
    if (writer.counts().writes % 20 == 0) {
      std::ofstream(progress_path) << writer.counts().writes << '\n';
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    fmt::print(stderr, "usage: demo_writer DISK MIRROR_FILE PROGRESS_FILE COMMAND...\n");
    return 2;
  }
  std::signal(SIGTERM, &on_signal);
  std::string command;
  for (int i = 4; i < argc; ++i)
    command += fmt::format("'{}' ", argv[i]);
  Writer writer(argv[1], command + "2>/dev/null");
  write_until_stopped(writer, argv[3]);
  const bool equal = writer.read_back_is_equal();
  writer.save_mirror(argv[2]);
  const Counts& counts = writer.counts();
  fmt::print("{} writes answered ({} MiB), {} reconnects, longest answer {} ms; read back: {}\n",
             counts.writes,
             counts.bytes >> 20,
             counts.reconnects,
             counts.longest_ms,
             equal ? "equal" : "DIFFERENT");
  return equal ? 0 : 1;
}
