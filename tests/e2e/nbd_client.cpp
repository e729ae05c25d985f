#include "tests/e2e/nbd_client.h"

#include <cerrno>

#include <fmt/format.h>

namespace replicad::e2e {

NbdClient::NbdClient(const std::string& uri) : handle_(nbd_create(), &nbd_close) {
  if (!handle_) throw HarnessError("nbd_create");
  if (nbd_connect_uri(handle_.get(), uri.c_str()) != 0) {
    throw NbdError(fmt::format("connect {}: {}", uri, nbd_get_error()), nbd_get_errno(), true);
  }
}

void NbdClient::check(int result, const char* what) {
  if (result == 0) return;
  const int number = nbd_get_errno();
  const std::string text = nbd_get_error();
  const bool lost = nbd_aio_is_ready(handle_.get()) != 1;
  throw NbdError(fmt::format("{}: {} (errno {})", what, text, number), number, lost);
}

void NbdClient::write(std::uint64_t offset, std::span<const std::byte> data, std::uint32_t flags) {
  check(nbd_pwrite(handle_.get(), data.data(), data.size(), offset, flags), "write");
}

void NbdClient::read(std::uint64_t offset, std::span<std::byte> to) {
  check(nbd_pread(handle_.get(), to.data(), to.size(), offset, 0), "read");
}

void NbdClient::zero(std::uint64_t offset, std::uint64_t length, std::uint32_t flags) {
  check(nbd_zero(handle_.get(), length, offset, flags), "zero");
}

void NbdClient::trim(std::uint64_t offset, std::uint64_t length, std::uint32_t flags) {
  check(nbd_trim(handle_.get(), length, offset, flags), "trim");
}

void NbdClient::flush() {
  check(nbd_flush(handle_.get(), 0), "flush");
}

std::uint64_t NbdClient::bytes() {
  return static_cast<std::uint64_t>(nbd_get_size(handle_.get()));
}

}  // namespace replicad::e2e
