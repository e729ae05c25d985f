#!/bin/sh
# guest-qemu.sh start|press|state GUEST: a guest under plain QEMU on this host, its disks those of the volume GUEST, which
# must be active here. To be in the PATH of every host. /etc/replicad/guests/GUEST.conf (shell) says what QEMU is given
# besides the disks:
#
#   QEMU_OPTIONS="-M q35,accel=kvm -cpu host -m 2G -smp 2 -display none -nic bridge,br=br0"
#
# `press` is the power button; `state` says running, paused, off ...
: "${GUESTS:=/etc/replicad/guests}" "${RUN:=/run/replica}"
[ $# = 2 ] || { echo "usage: guest-qemu.sh start|press|state GUEST" >&2; exit 2; }
guest=$2 pidfile=$RUN/$2.qemu.pid monitor=$RUN/$2.monitor

is_running() { [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; }
# The answer of QEMU's monitor to one command.
ask() { echo "$1" | nc -q 1 -U "$monitor" | tr -d '\r'; }

case $1 in
  start)
    is_running && { echo "$guest runs already" >&2; exit 0; }
    # shellcheck disable=SC1090
    . "$GUESTS/$guest.conf" || exit
    disks=$(replicactl attach-info "$guest" --format qemu) || exit
    # Both are words for the shell: attach-info quotes, QEMU_OPTIONS is what you wrote.
    eval "qemu-system-x86_64 -name $guest -daemonize -pidfile $pidfile" \
      "-monitor unix:$monitor,server=on,wait=off $QEMU_OPTIONS $disks"
    ;;
  press) is_running && ask system_powerdown >/dev/null ;;
  state)
    if is_running; then
      ask "info status" | sed -n 's/^VM status: \([a-z]*\).*/\1/p'
    else
      echo off
    fi
    ;;
  *) echo "guest-qemu.sh: $1: use start, press or state" >&2; exit 2 ;;
esac
