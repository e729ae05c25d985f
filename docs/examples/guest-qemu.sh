#!/bin/sh
# guest-qemu.sh start|press|state GUEST: a guest under plain QEMU on this host, its disks those of the volume GUEST, which
# must be active here. To be in the PATH of every host. /etc/replicad/guests/GUEST.conf (shell) says what QEMU is given
# besides the disks:
#
#   QEMU_OPTIONS="-M q35,accel=kvm -cpu host -m 2G -smp 2 -display none -nic bridge,br=br0"
#
# `press` is the power button; `state` says running, paused, off ...
#
# guest-qemu.sh receive|migrate GUEST URI, drop GUEST: a live migration. `receive` starts a QEMU that waits at URI
# (tcp:0:PORT) for the guest, `migrate` sends it to URI (tcp:HOST:PORT), waits for the end, and ends the QEMU here;
# if it fails the guest goes on here. `drop` ends one that still waits.
: "${GUESTS:=/etc/replicad/guests}" "${RUN:=/run/replica}"
case $#:$1 in
  2:start | 2:press | 2:state | 2:drop | 3:receive | 3:migrate) ;;
  *) echo "usage: guest-qemu.sh start|press|state|drop GUEST, receive|migrate GUEST URI" >&2; exit 2 ;;
esac
guest=$2 uri=$3 pidfile=$RUN/$2.qemu.pid monitor=$RUN/$2.monitor

is_running() { [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; }
# The answer of QEMU's monitor to one command.
ask() { echo "$1" | nc -q 1 -U "$monitor" | tr -d '\r'; }
# QEMU with the options $@ besides the guest's.
launch() {
  is_running && { echo "$guest runs already" >&2; return 1; }
  # shellcheck disable=SC1090
  . "$GUESTS/$guest.conf" || return
  disks=$(replicactl attach-info "$guest" --format qemu) || return
  # All are words for the shell: attach-info quotes, QEMU_OPTIONS is what you wrote.
  eval "qemu-system-x86_64 -name $guest -daemonize -pidfile $pidfile" \
    "-monitor unix:$monitor,server=on,wait=off $* $QEMU_OPTIONS $disks"
}
migration() { ask "info migrate" | sed -n 's/^Migration status: \([a-z-]*\).*/\1/p'; }

case $1 in
  start) is_running && { echo "$guest runs already" >&2; exit 0; }; launch ;;
  press) is_running && ask system_powerdown >/dev/null ;;
  state)
    if is_running; then
      ask "info status" | sed -n 's/^VM status: \([a-z]*\).*/\1/p'
    else
      echo off
    fi
    ;;
  receive) launch -incoming "$uri" ;;
  migrate)
    is_running || { echo "$guest does not run here" >&2; exit 1; }
    ask "migrate -d $uri" >/dev/null
    while :; do
      case $(migration) in
        completed) ask quit >/dev/null; exit 0 ;;
        failed | cancelled | "") ask "info migrate" >&2; exit 1 ;;
      esac
    done
    ;;
  drop) ! is_running || ! ask "info status" | grep -q inmigrate || ask quit >/dev/null ;;
esac
