#pragma once
// What replicad and the service manager (systemd) tell each other: that it is ready, and listening sockets that are
// to outlive it (sd_notify(3), sd_listen_fds(3)). Without a service manager everything here does nothing. Any thread,
// but for take_given_sockets().

#include <map>
#include <string>
#include <string_view>

#include "io/fd.h"

namespace replicad {

/// Listening sockets by their names (FileDescriptorName= of a socket unit, or the name they were stored under).
using GivenSockets = std::map<std::string, Fd>;

/// Sends `message`, such as "READY=1"; lost without a word if nobody listens.
void notify_service_manager(std::string_view message);

/// Takes the sockets that this process was started with, and removes what tells of them from the environment. To be
/// called once, before there are threads.
[[nodiscard]] GivenSockets take_given_sockets();

/// Gives the service manager a duplicate of a volume's NBD socket, to be handed to the next replicad. Overwrites none
/// that is there: forget first.
void store_endpoint(const std::string& volume, int fd);
void forget_endpoint(const std::string& volume);
/// Name under which store_endpoint() stores.
[[nodiscard]] std::string stored_endpoint_name(const std::string& volume);

}  // namespace replicad
