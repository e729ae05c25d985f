// The writers and the checker inside a guest. Records of 4 KiB, each with its number and a checksum over random bytes
// that follow from the number.
//
//   guest_records write FILE COUNT    appends until there are COUNT records (0: until SIGTERM). Says `acked N` when
//                                     record N is on stable storage (fdatasync has returned), and at the end
//                                     `pause MS`: the longest time that one of them took
//   guest_records verify FILE MIN     records 0..n-1 must be whole, n at least MIN. Says `verified N`
//   guest_records churn FILE COUNT    until SIGTERM overwrites COUNT records at random with ever higher numbers, past
//                                     the guest's cache, and reads each again, and another one; now and then waits
//                                     for stable storage. Says `acked N` of each round, on SIGUSR1 `pause MS`: the
//                                     longest time that one request took since the last time it said so, and at the
//                                     end reads all and says `verified COUNT`
//   guest_records last FILE COUNT     writes records 1..COUNT past the guest's cache, all at one place; says `written`.
//                                     On SIGUSR1 its first request is to read there, which must give the last one. Says
//                                     `read MS`
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
#include <utility>
#include <vector>

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

/// Reads and writes records past the guest's cache, and knows the longest time that this took.
class DirectFile {
 public:
  explicit DirectFile(const char* path) : fd_(open_file(path, O_RDWR | O_CREAT | O_DIRECT)) {}

  void write(std::uint64_t place, std::uint64_t number) {
    buffer_ = make_record(number);
    timed("write", [&] { return ::pwrite(fd_, buffer_.data(), record_bytes, at(place)); });
  }
  /// Ends the program unless the record is that one.
  void expect(std::uint64_t place, std::uint64_t number) {
    timed("read", [&] { return ::pread(fd_, buffer_.data(), record_bytes, at(place)); });
    if (buffer_ == make_record(number)) return;
    std::printf("records: place %llu has %llu, not %llu\n",
                static_cast<unsigned long long>(place),
                static_cast<unsigned long long>(buffer_[1]),
                static_cast<unsigned long long>(number));
    std::fflush(stdout);
    std::_Exit(EXIT_FAILURE);
  }
  void sync() {
    timed("fdatasync", [&] { return ::fdatasync(fd_) == 0 ? ssize_t{record_bytes} : -1; });
  }
  /// In milliseconds, since the last time that this was asked.
  long long take_longest() {
    const auto longest = std::exchange(longest_, Clock::duration{});
    return std::chrono::duration_cast<std::chrono::milliseconds>(longest).count();
  }

 private:
  static off_t at(std::uint64_t place) { return static_cast<off_t>(place * record_bytes); }
  template <typename Request>
  void timed(const char* what, Request request) {
    const auto began = Clock::now();
    if (request() != static_cast<ssize_t>(record_bytes)) die(what);
    longest_ = std::max(longest_, Clock::now() - began);
  }

  int fd_;
  alignas(record_bytes) Record buffer_{};
  Clock::duration longest_{};
};

volatile std::sig_atomic_t asked = 0;

void on_question(int /*signal*/) {
  asked = 1;
}

void say(const char* what, unsigned long long number) {
  std::printf("%s %llu\n", what, number);
  std::fflush(stdout);
}

int churn_records(const char* path, std::uint64_t count) {
  constexpr std::uint64_t rounds_between_syncs = 8;
  std::signal(SIGTERM, on_end);
  std::signal(SIGUSR1, on_question);
  DirectFile file(path);
  std::vector<std::uint64_t> numbers(count);
  for (std::uint64_t place = 0; place < count; ++place)
    file.write(place, numbers[place]);
  file.sync();
  for (std::uint64_t round = 0; ended == 0; ++round) {
    const std::uint64_t place = mix(round) % count;
    const std::uint64_t other = mix(~round) % count;
    numbers[place] = round + 1;
    file.write(place, numbers[place]);
    file.expect(place, numbers[place]);
    file.expect(other, numbers[other]);
    if (round % rounds_between_syncs == 0) file.sync();
    say("acked", round);
    if (std::exchange(asked, 0) != 0)
      say("pause", static_cast<unsigned long long>(file.take_longest()));
  }
  for (std::uint64_t place = 0; place < count; ++place)
    file.expect(place, numbers[place]);
  say("verified", count);
  return EXIT_SUCCESS;
}

int read_last_record(const char* path, std::uint64_t count) {
  sigset_t question;
  sigemptyset(&question);
  sigaddset(&question, SIGUSR1);
  sigprocmask(SIG_BLOCK, &question, nullptr);
  DirectFile file(path);
  for (std::uint64_t number = 1; number <= count; ++number)
    file.write(0, number);
  std::puts("written");
  std::fflush(stdout);
  int signal = 0;
  sigwait(&question, &signal);
  file.take_longest();
  file.expect(0, count);
  say("read", static_cast<unsigned long long>(file.take_longest()));
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 4 ? argv[1] : "";
  const std::uint64_t number = argc == 4 ? std::strtoull(argv[3], nullptr, 10) : 0;
  if (what == "write") return write_records(argv[2], number);
  if (what == "verify") return verify_records(argv[2], number);
  if (what == "churn" && number > 0) return churn_records(argv[2], number);
  if (what == "last" && number > 0) return read_last_record(argv[2], number);
  std::puts("usage: guest_records write|verify|churn|last FILE NUMBER");
  return 2;
}
