// The writer and the checker inside a guest. A file of 4 KiB records, each with its number and a checksum over random
// bytes that follow from the number.
//
//   guest_records write FILE COUNT    appends until there are COUNT records (0: until SIGTERM). Says `acked N` when
//                                     record N is on stable storage (fdatasync has returned), and at the end
//                                     `pause MS`: the longest time that one of them took
//   guest_records verify FILE MIN     records 0..n-1 must be whole, n at least MIN. Says `verified N`
//
// Every error is said as `records: ...`, with exit status 1.

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <fcntl.h>
#include <unistd.h>

namespace {

constexpr std::size_t record_bytes = 4096;
constexpr std::uint64_t magic = 0x64726f6365522d21;
constexpr std::size_t words = record_bytes / sizeof(std::uint64_t);

using Record = std::array<std::uint64_t, words>;
using Clock = std::chrono::steady_clock;

std::uint64_t mix(std::uint64_t value) {
  value ^= value >> 30U;
  value *= 0xbf58476d1ce4e5b9U;
  value ^= value >> 27U;
  value *= 0x94d049bb133111ebU;
  return value ^ (value >> 31U);
}

Record make_record(std::uint64_t number) {
  Record record{};
  record[0] = magic;
  record[1] = number;
  for (std::size_t i = 2; i + 1 < words; ++i)
    record[i] = mix(number * words + i);
  for (std::size_t i = 0; i + 1 < words; ++i)
    record[words - 1] = mix(record[words - 1] ^ record[i]);
  return record;
}

[[noreturn]] void die(const std::string& what) {
  std::printf("records: %s: %s\n",
              what.c_str(),
              std::strerror(errno));  // NOLINT(concurrency-mt-unsafe): one thread
  std::fflush(stdout);
  std::_Exit(EXIT_FAILURE);
}

int open_file(const char* path, int flags) {
  const int fd = ::open(path, flags | O_CLOEXEC, 0600);
  if (fd < 0) die(path);
  return fd;
}

volatile std::sig_atomic_t ended = 0;

void on_end(int /*signal*/) {
  ended = 1;
}

/// Records at the start of the file that are whole.
std::uint64_t count_records(int fd) {
  Record found{};
  for (std::uint64_t number = 0;; ++number) {
    const ssize_t got =
        ::pread(fd, found.data(), record_bytes, static_cast<off_t>(number * record_bytes));
    if (got < 0) die("read");
    if (static_cast<std::size_t>(got) != record_bytes || found != make_record(number))
      return number;
  }
}

int write_records(const char* path, std::uint64_t count) {
  const int fd = open_file(path, O_RDWR | O_CREAT);
  std::signal(SIGTERM, on_end);
  Clock::duration longest{};
  for (std::uint64_t number = count_records(fd); ended == 0 && (count == 0 || number < count);
       ++number) {
    const Record record = make_record(number);
    const auto began = Clock::now();
    const ssize_t put =
        ::pwrite(fd, record.data(), record_bytes, static_cast<off_t>(number * record_bytes));
    if (put != static_cast<ssize_t>(record_bytes)) die("write");
    if (::fdatasync(fd) != 0) die("fdatasync");
    longest = std::max(longest, Clock::now() - began);
    std::printf("acked %llu\n", static_cast<unsigned long long>(number));
    std::fflush(stdout);
  }
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(longest);
  std::printf("pause %lld\n", static_cast<long long>(milliseconds.count()));
  return EXIT_SUCCESS;
}

int verify_records(const char* path, std::uint64_t least) {
  const int fd = open_file(path, O_RDONLY);
  const std::uint64_t found = count_records(fd);
  if (found < least) {
    std::printf("records: %llu of at least %llu are whole\n",
                static_cast<unsigned long long>(found),
                static_cast<unsigned long long>(least));
    return EXIT_FAILURE;
  }
  std::printf("verified %llu\n", static_cast<unsigned long long>(found));
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 4 ? argv[1] : "";
  const std::uint64_t number = argc == 4 ? std::strtoull(argv[3], nullptr, 10) : 0;
  if (what == "write") return write_records(argv[2], number);
  if (what == "verify") return verify_records(argv[2], number);
  std::puts("usage: guest_records write|verify FILE NUMBER");
  return 2;
}
