#pragma once
// libnbd for tests: a connection that is closed when it goes away, calls that throw with libnbd's
// text.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <libnbd.h>

#include "tests/e2e/process.h"

namespace replicad::e2e {

/// The server answered with an errno, or the connection broke.
class NbdError : public HarnessError {
 public:
  NbdError(const std::string& text, int number, bool lost)
      : HarnessError(text), sys_errno(number), connection_lost(lost) {}
  int sys_errno;
  bool connection_lost;
};

class NbdClient {
 public:
  /// `give_up`: asked at least every 100 ms of waiting; if it says so, the connection counts as lost.
  explicit NbdClient(const std::string& uri, std::function<bool()> give_up = nullptr);

  void write(std::uint64_t offset, std::span<const std::byte> data, std::uint32_t flags = 0);
  void read(std::uint64_t offset, std::span<std::byte> to);
  void zero(std::uint64_t offset, std::uint64_t length, std::uint32_t flags = 0);
  void trim(std::uint64_t offset, std::uint64_t length, std::uint32_t flags = 0);
  void flush();
  [[nodiscard]] std::uint64_t bytes();
  [[nodiscard]] nbd_handle* handle() { return handle_.get(); }

 private:
  void connect(const std::string& uri);
  /// Waits for the command.
  void finish(std::int64_t cookie, const char* what);
  [[noreturn]] void fail(const std::string& what, bool lost);

  std::unique_ptr<nbd_handle, decltype(&nbd_close)> handle_;
  std::function<bool()> give_up_;
};

}  // namespace replicad::e2e
