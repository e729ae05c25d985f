#!/bin/sh
# vm-return.sh HOST VOLUME..: HOST is repaired and its replicad runs again. Waits until its copies are whole (it catches
# up, or rewinds, by itself), says what a failover left behind there, and moves the VMs back, one after the other.
# shellcheck source=docs/examples/vm-lib.sh
. "$(dirname "$0")/vm-lib.sh"
[ $# -ge 2 ] || die "usage: vm-return.sh HOST VOLUME.."
home=$1
shift

for volume; do
  replicactl -q wait "$volume" --for in-sync --timeout "$SYNC_TIMEOUT" || exit
  kept=$(replicactl lost-writes "$volume" -o json | jq -r --arg host "$home" '[.files[] | select(.host == $host)] | length') || exit
  [ "$kept" = 0 ] || say "$home keeps $kept file(s) of writes that $volume went on without: replicactl lost-writes $volume"
  "$(dirname "$0")/vm-move.sh" "$volume" "$home" || exit
done
