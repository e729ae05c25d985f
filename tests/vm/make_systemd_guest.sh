#!/bin/bash
# make_systemd_guest.sh DIR RECORDS REPLICAD REPLICACTL PLUGIN: DIR/systemd.raw, the root file system (raw, ext4) of a guest
# that Debian's systemd boots, this machine's: with nbdkit, the programs named, and the units that a package has.
set -euo pipefail
dir=$1 records=$(realpath "$2") replicad=$3 replicactl=$4 plugin=$5
here=$(cd "$(dirname "$0")" && pwd)
root=$dir/systemd.dir
units=$root/usr/lib/systemd/system

# A program or a library, as FILE of the guest, with the libraries that it needs.
add() {
  install -D -m "$(stat -c %a "$1")" "$1" "$root$2"
  for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
    [[ -e $root$library ]] || install -D "$library" "$root$library"
  done
}

rm -rf "$root" "$dir/systemd.raw"
mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,var,root} "$root"/etc/{systemd/system,replicad} "$root"/usr/{bin,sbin,lib,lib64}
for name in bin sbin lib lib64; do ln -s usr/$name "$root/$name"; done
dpkg -L systemd libsystemd-shared | grep -v ^/usr/share | while read -r file; do
  if [[ -L $file ]]; then
    mkdir -p "$root${file%/*}" && cp -a "$file" "$root$file"
  elif [[ -f $file ]]; then
    add "$file" "$file"
  fi
done
for program in nbdkit mke2fs mount umount; do
  file=$(realpath "$(command -v $program)")
  add "$file" "$file"
done
add "$replicad" /usr/sbin/replicad
add "$replicactl" /usr/bin/replicactl
add "$plugin" "$(nbdkit --dump-config | sed -n 's/^plugindir=//p')/nbdkit-replica-plugin.so"
add "$records" /usr/bin/records
cp /bin/busybox "$root/bin/busybox"
for applet in $(busybox --list); do
  [[ -e $root/bin/$applet || -e $root/sbin/$applet ]] || ln -s busybox "$root/bin/$applet"
done
ln -sf ../lib/systemd/systemd "$root/sbin/init"

cp /etc/mke2fs.conf "$root/etc/"
echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo a >"$root/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
cat >"$root/etc/replicad/replicad.conf" <<END
host = a
listen = 127.0.0.1:7400
control = 127.0.0.1:7401
transport = plaintext
END
sed 's|@REPLICAD_PROGRAM@|/usr/sbin/replicad|' "$here/../../packaging/replicad.service.in" >"$units/replicad.service"
cp "$here/../../packaging/replica-nbd@.socket" "$units/"
install "$here/guest_console" "$root/sbin/guest_console"
cp "$here/guest_console.service" "$units/"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s /usr/lib/systemd/system/guest_console.service "$root/etc/systemd/system/multi-user.target.wants/"
ln -sf multi-user.target "$units/default.target"
# The console is the test's.
for unit in serial-getty@.service getty.target systemd-networkd.service systemd-logind.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
truncate -s 384M "$dir/systemd.raw"
mke2fs -q -t ext4 -F -L systemd -d "$root" "$dir/systemd.raw"
