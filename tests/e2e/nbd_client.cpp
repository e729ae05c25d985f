#include "tests/e2e/nbd_client.h"

#include <cerrno>

#include <fmt/format.h>

namespace replicad::e2e {

namespace {

constexpr int poll_ms = 100;

}  // namespace

NbdClient::NbdClient(const std::string& uri, std::function<bool()> give_up)
    : handle_(nbd_create(), &nbd_close), give_up_(std::move(give_up)) {
  if (!handle_) throw HarnessError("nbd_create");
  connect(uri);
}

void NbdClient::connect(const std::string& uri) {
  const std::string what = "connect " + uri;
  if (nbd_aio_connect_uri(handle_.get(), uri.c_str()) != 0) fail(what, true);
  while (nbd_aio_is_ready(handle_.get()) != 1) {
    if (nbd_aio_is_dead(handle_.get()) == 1 || nbd_aio_is_closed(handle_.get()) == 1)
      fail(what, true);
    if (nbd_poll(handle_.get(), poll_ms) < 0) fail(what, true);
    if (give_up_ && give_up_()) throw NbdError(what + ": given up", 0, true);
  }
}

void NbdClient::fail(const std::string& what, bool lost) {
  const int number = nbd_get_errno();
  const char* text = nbd_get_error();
  throw NbdError(fmt::format("{}: {} (errno {})", what, text == nullptr ? "" : text, number),
                 number,
                 lost || nbd_aio_is_ready(handle_.get()) != 1);
}

void NbdClient::finish(std::int64_t cookie, const char* what) {
  if (cookie < 0) fail(what, false);
  while (true) {
    const int completed =
        nbd_aio_command_completed(handle_.get(), static_cast<std::uint64_t>(cookie));
    if (completed == 1) return;
    if (completed < 0) fail(what, false);
    if (give_up_ && give_up_()) throw NbdError(fmt::format("{}: given up", what), 0, true);
    if (nbd_poll(handle_.get(), poll_ms) < 0) fail(what, true);
  }
}

void NbdClient::write(std::uint64_t offset, std::span<const std::byte> data, std::uint32_t flags) {
  finish(nbd_aio_pwrite(
             handle_.get(), data.data(), data.size(), offset, nbd_completion_callback{}, flags),
         "write");
}

void NbdClient::read(std::uint64_t offset, std::span<std::byte> to) {
  finish(nbd_aio_pread(handle_.get(), to.data(), to.size(), offset, nbd_completion_callback{}, 0),
         "read");
}

void NbdClient::zero(std::uint64_t offset, std::uint64_t length, std::uint32_t flags) {
  finish(nbd_aio_zero(handle_.get(), length, offset, nbd_completion_callback{}, flags), "zero");
}

void NbdClient::trim(std::uint64_t offset, std::uint64_t length, std::uint32_t flags) {
  finish(nbd_aio_trim(handle_.get(), length, offset, nbd_completion_callback{}, flags), "trim");
}

void NbdClient::flush() {
  finish(nbd_aio_flush(handle_.get(), nbd_completion_callback{}, 0), "flush");
}

std::uint64_t NbdClient::bytes() {
  return static_cast<std::uint64_t>(nbd_get_size(handle_.get()));
}

}  // namespace replicad::e2e
