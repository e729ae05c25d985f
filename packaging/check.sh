#!/bin/bash
# check.sh BUILD: unpacks the packages that cpack left there and looks at what a user would get.
set -euo pipefail
build=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
complain() { echo "package: $*" >&2; exit 1; }

for package in nbdkit-plugin-replica replicad replicactl; do
  files=("$build/${package}"_*.deb)
  [[ ${#files[@]} == 1 && -f ${files[0]} ]] || complain "not one package $package in $build"
  dpkg-deb -x "${files[0]}" "$root"
  echo "== ${files[0]##*/}: $(dpkg-deb -f "${files[0]}" Depends)"
  [[ -s $root/usr/share/doc/$package/copyright ]] || complain "$package has no copyright file"
done

plugin_dir=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
nbdkit --dump-plugin "$root$plugin_dir/nbdkit-replica-plugin.so" | grep -q ^replica_version= \
  || complain "the plugin in $plugin_dir does not load"
"$root/usr/sbin/replicad" --version
"$root/usr/bin/replicactl" --version

unit=$root/usr/lib/systemd/system/replicad.service
program=$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$unit")
[[ -x $root$program ]] || complain "the unit starts $program, which is not in the package"
if command -v systemd-analyze >/dev/null; then
  # The program is not installed on this machine: let the unit name the unpacked one, and no page.
  sed -e "s|^ExecStart=|ExecStart=$root|" -e '/^Documentation=/d' "$unit" >"$root/replicad.service"
  sed '/^Documentation=/d' "${unit%/*}/replica-nbd@.socket" >"$root/replica-nbd@vm1.socket"
  systemd-analyze verify "$root/replicad.service" "$root/replica-nbd@vm1.socket" \
    || complain "systemd finds fault with the units"
fi

for page in "$root"/usr/share/man/man*/*; do
  command -v man >/dev/null || break
  warnings=$(man --warnings -l "$page" 2>&1 >/dev/null)
  [[ -z $warnings ]] || complain "${page##*/}: $warnings"
done

completed=$(PATH=$root/usr/bin:$PATH bash -c "
  source '$root/usr/share/bash-completion/completions/replicactl'
  COMP_WORDS=(replicactl switch) COMP_CWORD=1
  _replicactl replicactl switch replicactl
  echo \"\${COMPREPLY[*]}\"
  COMP_WORDS=(replicactl status --w) COMP_CWORD=2
  _replicactl replicactl --w status
  echo \"\${COMPREPLY[*]}\"")
[[ $completed == $'switchover\n--watch' ]] || complain "bash completion answers: $completed"
(cd "$root" && find . -type f -printf '%10s %P\n' | sort -k2)
