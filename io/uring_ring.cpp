#include <algorithm>
#include <array>
#include <cerrno>
#include <string>

#include <liburing.h>

#include "core/base/check.h"
#include "io/cached_writes.h"
#include "io/clock.h"
#include "io/file.h"
#include "io/ring.h"

namespace replicad {

namespace {

// 5.11: waiting with a timeout that is no operation. 5.5: completions are never dropped.
constexpr unsigned features_needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;

struct NamedOpcode {
  int opcode;
  const char* name;
};

constexpr std::array<NamedOpcode, 10> opcodes_needed{{
    {IORING_OP_ACCEPT, "ACCEPT"},
    {IORING_OP_CONNECT, "CONNECT"},
    {IORING_OP_RECV, "RECV"},
    {IORING_OP_SENDMSG, "SENDMSG"},
    {IORING_OP_READ, "READ"},
    {IORING_OP_WRITE, "WRITE"},
    {IORING_OP_WRITEV, "WRITEV"},
    {IORING_OP_FSYNC, "FSYNC"},
    {IORING_OP_FALLOCATE, "FALLOCATE"},
    {IORING_OP_ASYNC_CANCEL, "ASYNC_CANCEL"},
}};

// Best first; a kernel that does not know a flag answers EINVAL.
constexpr std::array<unsigned, 4> setup_flags{
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER |
        IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
    IORING_SETUP_SUBMIT_ALL,
    0,
};

std::string disabled_sysctl() {
  const auto text = read_file("/proc/sys/kernel/io_uring_disabled", 16);
  if (!text) return {};
  return text->substr(0, text->find('\n'));
}

/// Returns 0 or -errno.
int set_up(unsigned entries, io_uring& ring, io_uring_params& params) {
  int result = -EINVAL;
  for (const unsigned flags : setup_flags) {
    params = {};
    params.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | flags;
    params.cq_entries = entries * 4;
    result = io_uring_queue_init_params(entries, &ring, &params);
    if (result != -EINVAL) break;
  }
  return result;
}

tl::unexpected<Error> forbidden(const char* call) {
  return with_hint(fail(Errc::not_supported, "io_uring is not available: {} fails", call),
                   "a seccomp filter or security module forbids it: allow io_uring_setup,"
                   " io_uring_enter and io_uring_register there");
}

Status check_features(const io_uring_params& params) {
  if ((params.features & features_needed) == features_needed) return {};
  return with_hint(fail(Errc::not_supported,
                        "io_uring of this kernel is too old: features {:#x}, needed {:#x}",
                        params.features,
                        features_needed),
                   "use Linux 5.11 or later");
}

void fill_socket_entry(io_uring_sqe* entry, const RingOperation& operation) {
  switch (operation.opcode) {
    case RingOpcode::accept:
      io_uring_prep_accept(entry, operation.fd, nullptr, nullptr, SOCK_CLOEXEC);
      return;
    case RingOpcode::connect:
      io_uring_prep_connect(
          entry, operation.fd, static_cast<const sockaddr*>(operation.address), operation.length);
      return;
    case RingOpcode::recv:
      io_uring_prep_recv(entry, operation.fd, operation.address, operation.length, 0);
      return;
    case RingOpcode::sendmsg:
      io_uring_prep_sendmsg(
          entry, operation.fd, static_cast<const msghdr*>(operation.address), MSG_NOSIGNAL);
      return;
    case RingOpcode::cancel:
      io_uring_prep_cancel64(entry, operation.cancel_user_data, 0);
      return;
    case RingOpcode::read:
    case RingOpcode::write:
    case RingOpcode::writev:
    case RingOpcode::fdatasync:
    case RingOpcode::fallocate:
      break;
  }
  RD_CHECK(false);
}

void fill_entry(io_uring_sqe* entry, const RingOperation& operation) {
  const int fd = operation.fd;
  switch (operation.opcode) {
    case RingOpcode::accept:
    case RingOpcode::connect:
    case RingOpcode::recv:
    case RingOpcode::sendmsg:
    case RingOpcode::cancel:
      fill_socket_entry(entry, operation);
      return;
    case RingOpcode::read:
      io_uring_prep_read(entry, fd, operation.address, operation.length, operation.offset_bytes);
      return;
    case RingOpcode::write:
      io_uring_prep_write(entry, fd, operation.address, operation.length, operation.offset_bytes);
      return;
    case RingOpcode::writev:
      io_uring_prep_writev(entry,
                           fd,
                           static_cast<const iovec*>(operation.address),
                           operation.length,
                           operation.offset_bytes);
      return;
    case RingOpcode::fdatasync:
      io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
      return;
    case RingOpcode::fallocate:
      // Not io_uring_prep_fallocate: version 2.3 takes the length as off_t, later ones as u64.
      io_uring_prep_rw(IORING_OP_FALLOCATE, entry, fd, nullptr, 0, operation.offset_bytes);
      entry->addr = operation.range_bytes;
      entry->len = static_cast<unsigned>(operation.mode);
      return;
  }
  RD_CHECK(false);
}

class UringRing final : public Ring {
 public:
  explicit UringRing(const io_uring& ring) : ring_(ring) {}
  ~UringRing() override { io_uring_queue_exit(&ring_); }

  UringRing(const UringRing&) = delete;
  UringRing& operator=(const UringRing&) = delete;
  UringRing(UringRing&&) = delete;
  UringRing& operator=(UringRing&&) = delete;

  Status enable() override {
    // Not io_uring_enable_rings(): version 2.3 declares it without exporting it.
    const auto ring_fd = static_cast<unsigned>(ring_.ring_fd);
    const int result = io_uring_register(ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    if (result < 0) return tl::unexpected(io_uring_refused(-result, disabled_sysctl()));
    // Saves a file look-up per system call; kernels before 5.18 do without.
    (void)io_uring_register_ring_fd(&ring_);
    return {};
  }

  bool prepare(const RingOperation& operation) override {
    const bool is_write =
        operation.opcode == RingOpcode::write || operation.opcode == RingOpcode::writev;
    if (is_write && writes_.may_take(boot_time_now())) {
      writes_.add(operation);
      return true;
    }
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return false;
    fill_entry(entry, operation);
    io_uring_sqe_set_data64(entry, operation.user_data);
    hurries_ = hurries_ || operation.opcode != RingOpcode::recv;
    if (operation.opcode == RingOpcode::fdatasync) {
      writes_.sync_begins(operation.user_data, boot_time_now());
    }
    return true;
  }

  int submit() override {
    const int result = io_uring_submit(&ring_);
    hurries_ = false;
    writes_.run();
    return result;
  }

  int submit_and_wait(std::optional<Duration> timeout) override {
    if (!writes_.idle()) {
      // What others wait for leaves first; a receive alone can go with what comes of these writes.
      if (hurries_) return submit();
      hurries_ = true;
      writes_.run();
      return 0;
    }
    hurries_ = false;
    if (!timeout) return io_uring_submit_and_wait(&ring_, 1);
    if (*timeout <= Duration::zero()) return io_uring_submit_and_get_events(&ring_);
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(*timeout);
    __kernel_timespec time{};
    time.tv_sec = seconds.count();
    time.tv_nsec = (*timeout - seconds).count();
    io_uring_cqe* unused = nullptr;
    return io_uring_submit_and_wait_timeout(&ring_, &unused, 1, &time, nullptr);
  }

  bool ready() const override {
    // With task work deferred, the kernel sets a flag; what it stands for comes into the queue by reap().
    return !writes_.idle() || io_uring_cq_ready(&ring_) > 0 ||
           (IO_URING_READ_ONCE(*ring_.sq.kflags) & IORING_SQ_TASKRUN) != 0;
  }

  std::size_t reap(std::span<RingCompletion> completions) override {
    const std::size_t written = writes_.reap(completions);
    completions = completions.subspan(written);
    std::array<io_uring_cqe*, 64> entries{};
    const auto wanted = static_cast<unsigned>(std::min(completions.size(), entries.size()));
    // Also moves completions that did not fit into the queue back into it.
    const unsigned count = io_uring_peek_batch_cqe(&ring_, entries.data(), wanted);
    for (unsigned i = 0; i < count; ++i) {
      completions[i] = {entries[i]->user_data, entries[i]->res};
      writes_.sync_ends(entries[i]->user_data);
    }
    io_uring_cq_advance(&ring_, count);
    return written + count;
  }

 private:
  io_uring ring_;
  CachedWrites writes_;
  bool hurries_ = false;  ///< something is queued that others may wait for, or that has waited
};

}  // namespace

Error io_uring_refused(int sys_errno, const std::string& sysctl_value) {
  Error error = errno_to_error(sys_errno, "io_uring is not available: io_uring_setup");
  error.code = Errc::not_supported;
  const bool by_sysctl = sysctl_value == "1" || sysctl_value == "2";
  if (sys_errno == ENOMEM) {
    error.hint = "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)";
  } else if (by_sysctl) {
    error.hint = fmt::format(
        "sysctl kernel.io_uring_disabled is {}: set it to 0 (sysctl -w kernel.io_uring_disabled=0)"
        "{}",
        sysctl_value,
        sysctl_value == "1" ? ", or add the user to the group of kernel.io_uring_group" : "");
  } else if (sys_errno == ENOSYS) {
    error.hint =
        "the kernel is built without io_uring (CONFIG_IO_URING), or a seccomp filter of a container"
        " or service hides it";
  } else {
    error.hint = fmt::format(
        "sysctl kernel.io_uring_disabled is {}, so a seccomp filter or security module of a"
        " container or service forbids it: allow io_uring_setup, io_uring_enter and"
        " io_uring_register there",
        sysctl_value.empty() ? "not there" : sysctl_value);
  }
  return error;
}

Result<std::unique_ptr<Ring>> create_uring_ring(unsigned entries) {
  io_uring ring{};
  io_uring_params params{};
  const int result = set_up(entries, ring, params);
  if (result < 0) return tl::unexpected(io_uring_refused(-result, disabled_sysctl()));
  std::unique_ptr<Ring> owned = std::make_unique<UringRing>(ring);
  RD_TRY(check_features(params));
  return owned;
}

Status probe_io_uring() {
  auto ring = create_uring_ring(4);
  if (!ring) return tl::unexpected(std::move(ring).error());
  const std::unique_ptr<io_uring_probe, decltype(&io_uring_free_probe)> probe(io_uring_get_probe(),
                                                                              &io_uring_free_probe);
  if (!probe) return forbidden("io_uring_register");
  for (const NamedOpcode& needed : opcodes_needed) {
    if (io_uring_opcode_supported(probe.get(), needed.opcode) != 0) continue;
    return with_hint(
        fail(Errc::not_supported, "io_uring of this kernel lacks IORING_OP_{}", needed.name),
        "use Linux 5.11 or later");
  }
  RD_TRY((*ring)->enable());
  // A harmless operation, to see that io_uring_enter is allowed too.
  if (!(*ring)->prepare({.opcode = RingOpcode::fdatasync}) || (*ring)->submit() != 1) {
    return forbidden("io_uring_enter");
  }
  return {};
}

}  // namespace replicad
