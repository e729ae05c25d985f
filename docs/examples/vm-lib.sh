#!/bin/sh
# Shared by the scripts beside it, which source it. POSIX shell; needs replicactl, jq and ssh.
# What is yours to say goes into $VM_CONF (default /etc/replicad/vm.conf), a piece of shell:
#
#   DRIVER=virsh             # or qemu: see guest-qemu.sh. A guest is named like its volume
#   STOP_TIMEOUT=120         # seconds that a guest may take to shut down
#   PRESS_INTERVAL=20        # its power button is pressed again after so many: a guest that is booting misses it
#   SYNC_TIMEOUT=600         # seconds to wait until every replica is in sync
#   FAILOVER_TIMEOUT=60      # seconds to go on asking while a failover is refused
#   SSH=ssh                  # runs a command on a host: $SSH HOST COMMAND
#   MIGRATE_PORT=4444        # qemu: where a guest that is moved live is taken in; one at a time
#   VIRSH_MIGRATE="--live --persistent"
#   migrate_uri() { echo "qemu+ssh://$1/system"; }    # of the libvirt on host $1 (virsh), or its address (qemu)
#   fence() {                # must not succeed unless the host $1 is off, or will never write again
#     ipmitool -H "$1-ipmi" -U admin -f /etc/replicad/ipmi.secret chassis power off
#   }
: "${VM_CONF:=/etc/replicad/vm.conf}"
migrate_uri() {
  case $DRIVER in virsh) echo "qemu+ssh://$1/system" ;; *) echo "$1" ;; esac
}
# shellcheck disable=SC1090
[ ! -r "$VM_CONF" ] || . "$VM_CONF"
: "${DRIVER:=virsh}" "${STOP_TIMEOUT:=120}" "${PRESS_INTERVAL:=20}" "${SYNC_TIMEOUT:=600}" "${FAILOVER_TIMEOUT:=60}" "${SSH:=ssh}"
: "${MIGRATE_PORT:=4444}" "${VIRSH_MIGRATE:=--live --persistent}"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
on() { _host=$1; shift; "$SSH" "$_host" "$*"; }
primary_of() { replicactl status "$1" -o json | jq -er '.volumes[0].primary'; }

# Asks `$@` every second until it succeeds. Fails after $1 seconds.
within() {
  _end=$(($(date +%s) + $1)); shift
  until "$@"; do
    [ "$(date +%s)" -lt "$_end" ] || return 1
    sleep 1
  done
}

# guest_state GUEST HOST says running, off, or something else; guest_start and guest_press (the power button) do so.
# guest_migrate GUEST FROM TO moves a running one.
case $DRIVER in
  virsh)
    guest_state() { on "$2" virsh domstate "$1" | sed 's/^shut off$/off/;q'; }
    guest_start() { on "$2" virsh start "$1" >&2; }
    guest_press() { on "$2" virsh shutdown "$1" >&2; }
    guest_migrate() { on "$2" "virsh migrate $VIRSH_MIGRATE '$1' '$(migrate_uri "$3")'" >&2; }
    ;;
  qemu)
    guest_state() { on "$2" guest-qemu.sh state "$1"; }
    guest_start() { on "$2" guest-qemu.sh start "$1" >&2; }
    guest_press() { on "$2" guest-qemu.sh press "$1" >&2; }
    guest_migrate() {
      on "$3" guest-qemu.sh receive "$1" "tcp:0:$MIGRATE_PORT" >&2 &&
        on "$2" guest-qemu.sh migrate "$1" "tcp:$(migrate_uri "$3"):$MIGRATE_PORT" >&2 && return
      on "$3" guest-qemu.sh drop "$1" >&2
      return 1
    }
    ;;
  *) die "DRIVER=$DRIVER: use virsh or qemu" ;;
esac

guest_is_off() { [ "$(guest_state "$1" "$2")" = off ]; }
guest_stop() {
  _until=$(($(date +%s) + STOP_TIMEOUT))
  while guest_press "$1" "$2"; do
    within "$PRESS_INTERVAL" guest_is_off "$1" "$2" && return
    [ "$(date +%s)" -lt "$_until" ] || return
    say "$1 runs on; pressing its power button again"
  done
  guest_is_off "$1" "$2"
}
