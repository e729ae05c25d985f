#!/bin/bash
# make_guest.sh DIR RECORDS PROGRAM..: Debian's kernel, an initramfs with what it takes to find a disk, a root file
# system image (raw, ext4) with busybox and the program RECORDS, and an image with PROGRAMs and their libraries, each at
# its own path: DIR/kernel, DIR/initramfs, DIR/root.raw, DIR/tools.raw. The kernel package is fetched once; KERNEL=FILE.deb
# takes another one.
set -euo pipefail
dir=$1 records=$(realpath "$2")
shift 2
programs=()
for program; do programs+=("$(realpath "$program")"); done
kernel=${KERNEL:+$(realpath "$KERNEL")}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir/packages"
cd "$dir"

if [[ ! -s kernel || $(cat kernel.from 2>/dev/null) != "$kernel" ]]; then
  package=$kernel
  if [[ -z $package ]]; then
    name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    [[ -n $name ]] || { echo "make_guest: no kernel package is known; apt-get update?" >&2; exit 1; }
    (cd packages && apt-get download "$name" 2>/dev/null)
    package=$(echo packages/"$name"_*.deb)
  fi
  rm -rf tree
  dpkg-deb -x "$package" tree
  find tree/lib/modules -name '*.ko.xz' -exec xz -d {} +
  cp tree/boot/vmlinuz-* kernel.new
  mv kernel.new kernel
  printf %s "$kernel" >kernel.from
fi

# In the order of what they need; those that the kernel has built in have no file.
modules=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk nbd button evdev)
rm -rf initramfs.dir root.dir
mkdir -p initramfs.dir/{bin,dev,proc,sys,root,modules} root.dir/{bin,sbin,dev,proc,sys,tmp,data,etc}
for module in "${modules[@]}"; do
  find tree/lib/modules -name "$module.ko" -exec cp {} initramfs.dir/modules/ \;
done
printf '%s\n' "${modules[@]}" >initramfs.dir/modules/order
cp /bin/busybox initramfs.dir/bin/busybox
install -m 755 "$here/guest_initramfs_init" initramfs.dir/init
(cd initramfs.dir && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >initramfs.new
mv initramfs.new initramfs

cp /bin/busybox root.dir/bin/busybox
for applet in $(busybox --list); do
  [[ $applet == busybox ]] || ln -s busybox "root.dir/bin/$applet"
done
cp "$records" root.dir/bin/records
install -m 755 "$here/guest_init" root.dir/sbin/init
install -m 755 "$here/guest_console" root.dir/sbin/guest_console
install -D -m 755 "$here/guest_power_button" root.dir/etc/acpi/PWRF/00000080
rm -f root.raw
truncate -s 192M root.raw
mke2fs -q -t ext4 -F -L guest -d root.dir root.raw

rm -rf tools.dir tools.raw
mkdir -p tools.dir/{dev,proc,sys,run,tmp,mnt,etc,bin}
for program in "${programs[@]}"; do
  for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
    [[ -e tools.dir$file ]] || install -D "$file" "tools.dir$file"
  done
done
cp /bin/busybox tools.dir/bin/sh
cp tools.dir/bin/sh tools.dir/bin/busybox
cp /etc/mke2fs.conf tools.dir/etc/
echo 'root:x:0:0::/:/bin/sh' >tools.dir/etc/passwd
truncate -s 384M tools.raw
mke2fs -q -t ext4 -F -L tools -d tools.dir tools.raw
