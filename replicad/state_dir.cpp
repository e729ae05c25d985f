#include "replicad/state_dir.h"

#include <cerrno>

#include <fcntl.h>

namespace replicad {

Result<Fd> lock_state_dir(const std::string& state_dir) {
  const std::string path = state_dir + "/lock";
  Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640));
  if (!file.valid()) return fail_errno(errno, "open {}", path);
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  if (::fcntl(file.get(), F_OFD_SETLK, &whole) != 0) {
    if (errno == EAGAIN || errno == EACCES) {
      return with_hint(fail(Errc::busy, "state-dir={} is in use by another replicad", state_dir),
                       "stop it first, or give this one a state directory of its own");
    }
    return fail_errno(errno, "lock {}", path);
  }
  return file;
}

}  // namespace replicad
