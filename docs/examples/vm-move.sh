#!/bin/sh
# vm-move.sh VOLUME HOST: moves a VM on purpose. Shuts the guest down, switches its volume to HOST (proved equal), and
# starts the guest there. If the switchover does not happen the guest starts where it was, and the exit code is
# replicactl's. Started again after a failure it goes on where it stopped.
# shellcheck source=docs/examples/vm-lib.sh
. "$(dirname "$0")/vm-lib.sh"
[ $# = 2 ] || die "usage: vm-move.sh VOLUME HOST"
volume=$1 to=$2

from=$(primary_of "$volume") || exit
if [ "$from" != "$to" ]; then
  replicactl -q wait "$volume" --for in-sync --timeout "$SYNC_TIMEOUT" || exit
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
