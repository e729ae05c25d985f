#include "ctl/nbd_kernel.h"

#include <charconv>
#include <filesystem>
#include <fstream>

#include <fcntl.h>
#include <libnbd.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>
#include <poll.h>

#include "core/control/text.h"

namespace replicad::ctl {

namespace {

constexpr std::uint64_t logical_block_bytes = 512;
/// Not in the header of kernels that do not know it, such as Debian 12's (NBD_FLAG_SEND_WRITE_ZEROES); they do not look
/// at it.
constexpr std::uint16_t flag_send_write_zeroes = 1U << 6U;

struct MessageDeleter {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
using Message = std::unique_ptr<nl_msg, MessageDeleter>;

Message make_message(int family, int command) {
  Message message(nlmsg_alloc());
  if (message)
    genlmsg_put(message.get(),
                NL_AUTO_PORT,
                NL_AUTO_SEQ,
                family,
                0,
                0,
                static_cast<std::uint8_t>(command),
                0);
  return message;
}

/// errno's of the nbd driver, with what they mean there.
tl::unexpected<Error> kernel_error(int nl_error, const std::string& what) {
  Errc code = Errc::io_error;
  if (nl_error == -NLE_BUSY) code = Errc::busy;
  if (nl_error == -NLE_INVAL || nl_error == -NLE_NODEV) code = Errc::refused;
  if (nl_error == -NLE_PERM) {
    return with_hint(fail(Errc::refused, "{}: {}", what, nl_geterror(nl_error)), "root is needed");
  }
  return fail(code, "{}: {}", what, nl_geterror(nl_error));
}

void put_socket(nl_msg* message, int fd) {
  nlattr* sockets = nla_nest_start(message, NBD_ATTR_SOCKETS);
  nlattr* item = nla_nest_start(message, NBD_SOCK_ITEM);
  nla_put_u32(message, NBD_SOCK_FD, static_cast<std::uint32_t>(fd));
  nla_nest_end(message, item);
  nla_nest_end(message, sockets);
}

/// The index in a message of the family, if it is one of `command`.
std::optional<std::uint32_t> index_in(nl_msg* message, int command) {
  nlmsghdr* header = nlmsg_hdr(message);
  if (!genlmsg_valid_hdr(header, 0)) return std::nullopt;
  genlmsghdr* generic = genlmsg_hdr(header);
  if (generic->cmd != command) return std::nullopt;
  const nlattr* found =
      nla_find(genlmsg_attrdata(generic, 0), genlmsg_attrlen(generic, 0), NBD_ATTR_INDEX);
  if (found == nullptr || nla_len(found) < static_cast<int>(sizeof(std::uint32_t)))
    return std::nullopt;
  return nla_get_u32(found);
}

int take_index(nl_msg* message, void* to) {
  if (const auto index = index_in(message, NBD_CMD_CONNECT))
    *static_cast<std::uint32_t*>(to) = *index;
  return NL_OK;
}

struct DeadWatch {
  std::uint32_t index = 0;
  bool dead = false;
};

int take_dead(nl_msg* message, void* to) {
  auto* watch = static_cast<DeadWatch*>(to);
  if (index_in(message, NBD_CMD_LINK_DEAD) == watch->index) watch->dead = true;
  return NL_OK;
}

tl::unexpected<Error> nbd_failure(const std::string& what) {
  const int number = nbd_get_errno();
  const char* text = nbd_get_error();
  return fail(number == ENOENT ? Errc::not_found : Errc::unreachable,
              "{}: {}",
              what,
              printable(text == nullptr ? "" : text));
}

std::uint16_t flags_of(nbd_handle* handle) {
  unsigned flags = NBD_FLAG_HAS_FLAGS;
  if (nbd_is_read_only(handle) == 1) flags |= NBD_FLAG_READ_ONLY;
  if (nbd_can_flush(handle) == 1) flags |= NBD_FLAG_SEND_FLUSH;
  if (nbd_can_fua(handle) == 1) flags |= NBD_FLAG_SEND_FUA;
  if (nbd_can_trim(handle) == 1) flags |= NBD_FLAG_SEND_TRIM;
  if (nbd_can_zero(handle) == 1) flags |= flag_send_write_zeroes;
  if (nbd_can_multi_conn(handle) == 1) flags |= NBD_FLAG_CAN_MULTI_CONN;
  return static_cast<std::uint16_t>(flags);
}

}  // namespace

Result<NbdConnection> nbd_handshake(const std::string& socket, const std::string& export_name) {
  const std::unique_ptr<nbd_handle, decltype(&nbd_close)> handle(nbd_create(), &nbd_close);
  const std::string what = "connect to export " + export_name + " at " + socket;
  if (!handle || nbd_set_export_name(handle.get(), export_name.c_str()) != 0)
    return nbd_failure(what);
  // The kernel takes simple replies only.
  if (nbd_set_request_structured_replies(handle.get(), false) != 0 ||
      nbd_connect_unix(handle.get(), socket.c_str()) != 0) {
    return nbd_failure(what);
  }
  NbdConnection connection;
  connection.bytes = static_cast<std::uint64_t>(nbd_get_size(handle.get()));
  connection.flags = flags_of(handle.get());
  // libnbd closes its descriptor without a word to the server.
  connection.socket = Fd(::fcntl(nbd_aio_get_fd(handle.get()), F_DUPFD_CLOEXEC, 0));
  if (!connection.socket.valid()) return fail_errno(errno, "{}", what);
  const int status = ::fcntl(connection.socket.get(), F_GETFL);
  if (status < 0 || ::fcntl(connection.socket.get(), F_SETFL, status & ~O_NONBLOCK) != 0)
    return fail_errno(errno, "{}", what);
  return connection;
}

void NbdKernel::SocketDeleter::operator()(nl_sock* socket) const {
  nl_socket_free(socket);
}

Result<NbdKernel> NbdKernel::open() {
  Socket commands(nl_socket_alloc());
  Socket events(nl_socket_alloc());
  if (!commands || !events) return fail(Errc::io_error, "netlink: out of memory");
  int error = genl_connect(commands.get());
  if (error == 0) error = genl_connect(events.get());
  if (error != 0) return kernel_error(error, "netlink");
  const int family = genl_ctrl_resolve(commands.get(), NBD_GENL_FAMILY_NAME);
  if (family < 0) {
    return with_hint(fail(Errc::not_supported, "the kernel has no network block devices here"),
                     "`modprobe nbd` loads them");
  }
  const int group =
      genl_ctrl_resolve_grp(commands.get(), NBD_GENL_FAMILY_NAME, NBD_GENL_MCAST_GROUP_NAME);
  error = group < 0 ? group : nl_socket_add_membership(events.get(), group);
  if (error < 0) return kernel_error(error, "events of the module nbd");
  nl_socket_disable_seq_check(events.get());
  nl_socket_set_nonblocking(events.get());
  return NbdKernel(std::move(commands), std::move(events), family);
}

Result<std::uint32_t> NbdKernel::connect(std::optional<std::uint32_t> index,
                                         const NbdConnection& connection,
                                         const std::string& identifier,
                                         std::uint64_t dead_seconds) {
  Message message = make_message(family_, NBD_CMD_CONNECT);
  if (!message) return fail(Errc::io_error, "netlink: out of memory");
  if (index) nla_put_u32(message.get(), NBD_ATTR_INDEX, *index);
  nla_put_u64(message.get(), NBD_ATTR_SIZE_BYTES, connection.bytes);
  nla_put_u64(message.get(), NBD_ATTR_BLOCK_SIZE_BYTES, logical_block_bytes);
  nla_put_u64(message.get(), NBD_ATTR_SERVER_FLAGS, connection.flags);
  nla_put_u64(message.get(), NBD_ATTR_DEAD_CONN_TIMEOUT, dead_seconds);
  nla_put_string(message.get(), NBD_ATTR_BACKEND_IDENTIFIER, identifier.c_str());
  put_socket(message.get(), connection.socket.get());
  std::uint32_t taken = index.value_or(0);
  nl_socket_modify_cb(commands_.get(), NL_CB_VALID, NL_CB_CUSTOM, &take_index, &taken);
  const int error = nl_send_sync(commands_.get(), message.release());
  if (error < 0) {
    return kernel_error(
        error, index ? fmt::format("connect /dev/nbd{}", *index) : "connect a free /dev/nbdN");
  }
  return taken;
}

Status NbdKernel::reconnect(std::uint32_t index,
                            const NbdConnection& connection,
                            const std::string& identifier) {
  Message message = make_message(family_, NBD_CMD_RECONFIGURE);
  if (!message) return fail(Errc::io_error, "netlink: out of memory");
  nla_put_u32(message.get(), NBD_ATTR_INDEX, index);
  nla_put_string(message.get(), NBD_ATTR_BACKEND_IDENTIFIER, identifier.c_str());
  put_socket(message.get(), connection.socket.get());
  const int error = nl_send_sync(commands_.get(), message.release());
  if (error < 0) return kernel_error(error, fmt::format("connect /dev/nbd{} again", index));
  return {};
}

Status NbdKernel::disconnect(std::uint32_t index) {
  Message message = make_message(family_, NBD_CMD_DISCONNECT);
  if (!message) return fail(Errc::io_error, "netlink: out of memory");
  nla_put_u32(message.get(), NBD_ATTR_INDEX, index);
  const int error = nl_send_sync(commands_.get(), message.release());
  if (error < 0) return kernel_error(error, fmt::format("disconnect /dev/nbd{}", index));
  return {};
}

bool NbdKernel::wait_dead(std::uint32_t index, std::chrono::milliseconds timeout) {
  pollfd waiting{nl_socket_get_fd(events_.get()), POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(timeout.count())) <= 0) return false;
  DeadWatch watch{index};
  nl_socket_modify_cb(events_.get(), NL_CB_VALID, NL_CB_CUSTOM, &take_dead, &watch);
  static_cast<void>(nl_recvmsgs_default(events_.get()));
  return watch.dead;
}

std::string nbd_backend(std::uint32_t index) {
  std::ifstream file(fmt::format("/sys/block/nbd{}/backend", index));
  std::string text;
  std::getline(file, text);
  return text;
}

std::vector<std::uint32_t> nbd_devices_of(const std::string& identifier) {
  std::vector<std::uint32_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", ignored)) {
    const auto index = nbd_index(entry.path().filename().string());
    if (index && nbd_backend(*index) == identifier) found.push_back(*index);
  }
  return found;
}

Result<std::uint32_t> nbd_index(const std::string& device) {
  std::string_view rest = device;
  if (rest.starts_with("/dev/")) rest.remove_prefix(5);
  std::uint32_t index = 0;
  if (rest.starts_with("nbd")) {
    rest.remove_prefix(3);
    const auto [after, error] = std::from_chars(rest.data(), rest.data() + rest.size(), index);
    if (!rest.empty() && error == std::errc{} && after == rest.data() + rest.size()) return index;
  }
  return fail(Errc::invalid_argument, "'{}' is no device of the form /dev/nbdN", printable(device));
}

}  // namespace replicad::ctl
