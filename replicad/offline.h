#pragma once
// The way out: what a host's part of a volume is worth when no daemon runs, and how to go on from
// it. Blocking; each takes the state directory's lock, and the images' where it needs them, so that
// neither a daemon nor an export is disturbed. Manual: replicad(8).

#include <string>

#include "core/base/result.h"
#include "replicad/options.h"

namespace replicad {

/// Brings what a replica's log holds into its images, by the daemon's own recovery; on the primary
/// there is nothing to bring. Afterwards the images are on stable storage and stand alone; a daemon
/// may also go on from there. Returns what is now known of them, as text for people.
/// `dry_run`: only looks.
/// Errors: Errc::busy (a daemon, an export or another program is at work), Errc::not_found,
/// Errc::corrupt, Errc::inconsistent (the images are no prefix of any history), errno's.
[[nodiscard]] Result<std::string> recover_volume(const Options& options,
                                                 const std::string& name,
                                                 bool dry_run);

/// The volume's state as JSON text. Errors: as recover_volume.
[[nodiscard]] Result<std::string> dump_volume_state(const Options& options,
                                                    const std::string& name);

/// Makes a volume of such a text and the images that it names, as they are: with a new uuid, this
/// host as its only member, and a history of its own, so that no other copy is ever taken for one
/// of it. Durable on return; returns what it made, as text. Errors: Errc::exists (the volume, or a
/// log that may hold what the images lack), Errc::corrupt (the text), Errc::inconsistent,
/// Errc::not_found and others (images).
[[nodiscard]] Result<std::string> restore_volume_state(const Options& options,
                                                       const std::string& name,
                                                       const std::string& text);

}  // namespace replicad
