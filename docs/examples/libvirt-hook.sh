#!/bin/sh
# /etc/libvirt/hooks/qemu: serves the volume of a guest's name while that guest runs here. libvirt calls it with
# GUEST OPERATION SUB-OPERATION .. and the guest's XML on standard input; an error in `prepare` keeps the guest from
# starting, with this script's messages in libvirt's log. Guests without a volume are left alone.
guest=$1 operation=$2

case $operation in prepare | release) ;; *) exit 0 ;; esac
here=$(replicactl hosts --hosts unix:/run/replica/control.sock -o json |
  jq -er '.hosts[] | select(.address | startswith("unix:")) | .host') || exit 0
status=$(replicactl status "$guest" -o json 2>/dev/null)
primary=$(printf %s "$status" | jq -r '.volumes[0].primary')
# The host that a live migration goes to (replicactl handover), if one is prepared.
target=$(printf %s "$status" | jq -r '.volumes[0].handover.to // empty')
[ -n "$primary" ] && [ "$primary" != null ] || exit 0

case $operation in
  prepare)
    [ "$target" != "$here" ] || exit 0
    if [ "$primary" != "$here" ]; then
      echo "$guest: its volume's primary is $primary, not $here: start it there, or move it (replicactl switchover)" >&2
      exit 1
    fi
    replicactl -q activate "$guest"
    ;;
  release)
    # Migrated, or moved away meanwhile: the other host serves it.
    [ -n "$target" ] || [ "$primary" != "$here" ] || replicactl -q deactivate "$guest"
    ;;
esac
