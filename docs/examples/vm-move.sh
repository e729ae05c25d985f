#!/bin/sh
# vm-move.sh [--live] VOLUME HOST: moves a VM on purpose. Shuts the guest down, switches its volume to HOST (proved equal),
# and starts the guest there. If the switchover does not happen the guest starts where it was, and the exit code is
# replicactl's. Started again after a failure it goes on where it stopped.
# With --live the guest is migrated while it runs; if that fails it goes on where it is.
# shellcheck source=docs/examples/vm-lib.sh
. "$(dirname "$0")/vm-lib.sh"
live=
[ "$1" != --live ] || { live=1; shift; }
[ $# = 2 ] || die "usage: vm-move.sh [--live] VOLUME HOST"
volume=$1 to=$2

# The first write of the guest on $to moves the volume.
move_live() {
  [ "$(guest_state "$volume" "$from")" = running ] || die "$volume does not run on $from"
  replicactl handover "$volume" --to "$to" >&2 || exit
  if guest_migrate "$volume" "$from" "$to"; then
    replicactl handover "$volume" --finish >&2 || exit
    say "$volume runs on $to"
    exit
  fi
  [ "$(guest_state "$volume" "$from")" = running ] ||
    die "the migration has failed, and $volume does not run on $from: look where it runs. If on $to" \
      "\`replicactl handover $volume --finish\`, else \`--end\`"
  replicactl handover "$volume" --end >&2
  die "the migration has failed; $volume runs on $from as before"
}

from=$(primary_of "$volume") || exit
if [ "$from" != "$to" ]; then
  replicactl -q wait "$volume" --for in-sync --timeout "$SYNC_TIMEOUT" || exit
  [ -z "$live" ] || move_live
  if ! guest_is_off "$volume" "$from"; then
    say "shutting $volume down on $from"
    guest_stop "$volume" "$from" || die "$volume did not shut down on $from in $STOP_TIMEOUT s; it was left alone"
  fi
  replicactl switchover "$volume" --to "$to" || {
    code=$?
    say "$volume stays on $from"
    guest_start "$volume" "$from"
    exit $code
  }
fi
replicactl -q activate "$volume" && replicactl -q wait "$volume" --for "primary=$to" --timeout 60 || exit
if guest_is_off "$volume" "$to"; then
  guest_start "$volume" "$to" || exit
fi
say "$volume runs on $to"
