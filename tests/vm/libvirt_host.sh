#!/bin/sh
# libvirt_host.sh DIR RUN: libvirtd of a host of its own, to be started in a mount namespace of its own (unshare -m): all its
# files are in DIR, and what it finds at /run/replica is RUN. It becomes libvirtd.
set -e
dir=$1 run=$2
mkdir -p "$dir/run" "$dir/lib" "$dir/cache" "$dir/log" "$dir/etc"
mount -t tmpfs none /run
mkdir /run/replica /run/libvirt
mount --bind "$run" /run/replica
mount --bind "$dir/run" /run/libvirt
mount --bind "$dir/lib" /var/lib/libvirt
mount --bind "$dir/cache" /var/cache/libvirt
mount --bind "$dir/log" /var/log/libvirt
mount --bind "$dir/etc" /etc/libvirt
# It does not start without that user, whom libvirt-daemon-system adds; guests run as root here.
for file in passwd group; do
  { grep -v ^libvirt-qemu: "/etc/$file"; echo "libvirt-qemu:x:64055:"; } >"$dir/$file"
done
sed -i 's|^libvirt-qemu:.*|libvirt-qemu:x:64055:64055::/:/bin/false|' "$dir/passwd"
mount --bind "$dir/passwd" /etc/passwd
mount --bind "$dir/group" /etc/group
cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
END
cat >/etc/libvirt/libvirtd.conf <<END
auth_unix_rw = "none"
auth_unix_ro = "none"
END
exec libvirtd --config /etc/libvirt/libvirtd.conf
