#!/bin/sh
# vm-failover.sh HOST: HOST is dead. Fences it, and for each volume that it was the primary of lets another host take over
# and starts the guest there. Volumes that fail are named and the others done all the same; give the command again when
# the reason is gone. Exit status 1 if any failed; nothing is changed if HOST cannot be fenced.
# shellcheck source=docs/examples/vm-lib.sh
. "$(dirname "$0")/vm-lib.sh"
[ $# = 1 ] || die "usage: vm-failover.sh HOST"
dead=$1

volumes=$(replicactl list -o json | jq -er --arg dead "$dead" '.volumes[] | select(.primary == $dead) | .name')
[ -n "$volumes" ] || die "no volume has $dead as its primary"
# Without this the guest might run twice: a fenced epoch keeps the old one from writing, not from answering its users.
fence "$dead" || die "$dead is not fenced; nothing was changed (define fence() in $VM_CONF)"

# Refused (3) for some seconds: members that have just heard the primary do not vote for another.
fail_over() {
  replicactl failover "$1"
  code=$?
  [ $code != 3 ]
}

failed=""
for volume in $volumes; do
  code=0
  within "$FAILOVER_TIMEOUT" fail_over "$volume"
  if [ $code = 0 ] && replicactl -q wait "$volume" --for serving --timeout 60 &&
    to=$(primary_of "$volume") && [ "$to" != "$dead" ] && guest_start "$volume" "$to"; then
    say "$volume runs on $to"
  else
    failed="$failed $volume"
  fi
done
[ -z "$failed" ] || die "not done:$failed"
