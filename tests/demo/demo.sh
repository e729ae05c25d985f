#!/bin/bash
# demo.sh BUILD_DIR: the main job on three hosts on loopback. Each "host" is a replicad process with its own folders,
# ports and name; they know each other by address alone. Everything it starts and makes goes away at the end.
set -euo pipefail
export LC_ALL=C

source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/replicad-demo.XXXXXX")
hosts=(alpha beta gamma)
started=$SECONDS
writer_pid=

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Every process of the demonstration has the folder's name on its command line.
our_processes() {
  grep -lsF "$work/" /proc/[0-9]*/cmdline | tr -dc '0-9\n' || true
}

finish() {
  local status=$? pid
  trap - EXIT
  if [[ $status -ne 0 ]]; then
    for host in "${hosts[@]}"; do
      echo "---- log of $host"; tail -n 40 "$work/$host/replicad.log" 2>/dev/null || true
      tail -n 20 "$work/$host"/run/*.log 2>/dev/null || true
    done
    cat "$work/writer.log" 2>/dev/null || true
  fi
  for pid in $(our_processes); do kill -KILL "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [[ $SECONDS -lt $end ]] || die "not within time: $what"
    sleep 0.05
  done
}

api() { curl -sf --max-time 5 --unix-socket "$work/$1/run/control.sock" "http://localhost$2"; }
ctl() { "$build/ctl/replicactl" --hosts="$hosts_option" "$@"; }
run() { printf '\033[2m$ replicactl %s\033[0m\n' "$*"; ctl "$@"; }
volume_field() { api "$1" /v1/volumes/vm1 | jq -r "$2"; }
primary() { ctl status vm1 -o json | jq -r '[.. | objects | .primary? // empty | strings][0]'; }
image() { volume_field "$1" ".disks[] | select(.name == \"$2\") | .path"; }

answered() { cat "$work/progress" 2>/dev/null || echo 0; }
more_answered() { [[ $(answered) -ge $1 ]]; }

start_hosts() {
  local host
  for host in "${hosts[@]}"; do
    mkdir -p "$work/$host"/{state,images,run}
    "$build/replicad/replicad" --host="$host" --listen=127.0.0.1:0 --control=127.0.0.1:0 --transport=plaintext \
      --state-dir="$work/$host/state" --image-dir="$work/$host/images" --run-dir="$work/$host/run" \
      --plugin="$build/nbd-plugin/nbdkit-replica-plugin.so" > "$work/$host/replicad.log" 2>&1 < /dev/null &
  done
  hosts_option=
  for host in "${hosts[@]}"; do
    wait_for 20 "replicad of $host answers" api "$host" /v1/host > /dev/null
    hosts_option+=${hosts_option:+,}$host=$(api "$host" /v1/host | jq -r .control)
  done
}

# A real file system with real files: this source tree and some of the system's own.
make_file_system() {
  mkdir "$work/files"
  cp -a "$source_dir"/{core,io,nbd-plugin,replicad,ctl,docs} "$work/files/"
  cp -aL /usr/share/common-licenses "$work/files/licenses"
  cp -a /usr/include/linux "$work/files/include-linux"
  cp "$build/ctl/replicactl" "$work/files/program"
  ln -s program "$work/files/a-symbolic-link"
  truncate -s 96M "$work/ext4.raw"
  mke2fs -q -t ext4 -L demo -d "$work/files" "$work/ext4.raw"
}

move_to() {  # move_to HOST: with the load going on before, during and after
  local before
  before=$(answered)
  wait_for 60 "200 writes before the move" more_answered $((before + 200))
  if [[ -n $1 ]]; then run switchover vm1 --to "$1"; else run switchover vm1; fi
  before=$(answered)
  wait_for 60 "200 writes after the move" more_answered $((before + 200))
  echo "the client has reconnected and goes on: $(answered) writes answered so far"
}

applied_everything() {  # applied_everything HOST SEQUENCE DIGEST
  [[ $(volume_field "$1" '"\(.replica.applied) \(.replica.applied_digest)"') == "$2 $3" ]]
}

check_files() {  # check_files HOST: the file system in its image of vda
  local out=$work/restored-$1 path
  path=$(image "$1" vda)
  e2fsck -fn "$path" > "$work/fsck-$1.log" 2>&1 || { cat "$work/fsck-$1.log"; die "e2fsck finds errors on $1"; }
  mkdir "$out"
  debugfs -R "rdump / $out" "$path" > /dev/null 2>&1
  rmdir "$out/lost+found"
  diff -r --no-dereference "$work/files" "$out" > /dev/null || die "files on $1 differ"
  printf '  %-6s e2fsck -fn: clean; %s files and links equal to the originals\n' "$1" "$(find "$out" ! -type d | wc -l)"
}

say "three hosts, each a replicad process of its own"
start_hosts
run hosts

say "where would a volume of two disks go, and why"
run place --size 96M,32M --copies 3 --explain

say "create it, and import a real ext4 file system"
make_file_system
run create vm1 --size 96M,32M --copies 3 --mode sync
first=$(primary)
run activate vm1
run import vm1 "$work/ext4.raw" --disk vda
run wait vm1 --for in-sync --timeout 60s
run attach-info vm1 --format uri

say "a client writes to the second disk over NBD, the volume moves in the middle"
"$build/tests/demo/demo_writer" vdb "$work/mirror.raw" "$work/progress" \
  "$build/ctl/replicactl" "--hosts=$hosts_option" attach-info vm1 -o json > "$work/writer.log" 2>&1 < /dev/null &
writer_pid=$!
move_to ""
second=$(primary)
[[ $second != "$first" ]] || die "the volume has not moved"
run wait vm1 --for in-sync --timeout 60s
run status vm1

say "and back to $first"
move_to "$first"
[[ $(primary) == "$first" ]] || die "the volume has not moved back"
kill -TERM "$writer_pid"
wait "$writer_pid" || die "the client has found a difference: $(cat "$work/writer.log")"
echo "client: $(cat "$work/writer.log")"

say "stop the export and compare the images of all three hosts"
run wait vm1 --for in-sync --timeout 60s
run deactivate vm1
sequence=$(volume_field "$first" .history.sequence)
digest=$(volume_field "$first" .history.digest)
for host in "${hosts[@]}"; do
  [[ $host == "$first" ]] || wait_for 60 "$host has applied everything" applied_everything "$host" "$sequence" "$digest"
done
for disk in vda vdb; do
  for host in "${hosts[@]}"; do
    cmp "$(image "$first" "$disk")" "$(image "$host" "$disk")" || die "$disk differs on $host"
  done
  echo "  $disk: identical on ${hosts[*]}, sha256 $(sha256sum < "$(image "$first" "$disk")" | cut -c1-16)…"
done
for host in "${hosts[@]}"; do cmp "$work/mirror.raw" "$(image "$host" vdb)" || die "vdb on $host lacks a write"; done
echo "  vdb: every answered write of the client is on ${hosts[*]}"
for host in "${hosts[@]}"; do check_files "$host"; done

say "summary"
cat <<TEXT
  volume vm1 with 2 disks on ${hosts[*]}; $first -> $second -> $first under load
  history: sequence $sequence, digest $digest, the same on all three hosts
  client:  $(cat "$work/writer.log")
  time:    $((SECONDS - started)) s
TEXT
