# shellcheck shell=bash disable=SC2034  # what is set here is used by those who source it
# What the bench scripts share: hosts on loopback, volumes, servers to compare with, and what a load costs whom.
# Sourced; needs $build (absolute). Everything it starts ends with the script.
# Environment: BENCH_SECONDS per measurement (2), BENCH_BYTES per disk (256M), BENCH_DIR (scratch, on the disk that is
# to be measured; the default is $TMPDIR), BENCH_LOAD (what the load comes from: fio or nbd_load).

load=${BENCH_LOAD:-fio}
seconds=${BENCH_SECONDS:-2} bytes=${BENCH_BYTES:-256M}
work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/rd-bench.XXXXXX")
results=${build:?}/bench
hosts_option=
hosts=()
declare -A uri server peers pid_of  # by configuration; pid_of by host

die() { printf 'bench: %s\n' "$*" >&2; exit 1; }

our_processes() {
  grep -lsF "$work/" /proc/[0-9]*/cmdline | tr -dc '0-9\n' || true
}

finish() {
  local status=$? pid
  trap - EXIT
  [[ $status -eq 0 ]] || tail -n 20 "$work"/*/replicad.log "$work"/*/run/*.log "$work"/*.log 2>/dev/null || true
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
ctl() { "$build/ctl/replicactl" --hosts="$hosts_option" --quiet "$@"; }

# --- what is measured

launch_host() {  # launch_host NAME STREAM_ADDRESS CONTROL_ADDRESS
  mkdir -p "$work/$1"/{state,images,run}
  "$build/replicad/replicad" --host="$1" --listen="$2" --control="$3" --transport=plaintext \
    --state-dir="$work/$1/state" --image-dir="$work/$1/images" --run-dir="$work/$1/run" \
    --plugin="$build/nbd-plugin/nbdkit-replica-plugin.so" >> "$work/$1/replicad.log" 2>&1 < /dev/null &
  pid_of[$1]=$!
  wait_for 20 "replicad of $1 answers" api "$1" /v1/host > /dev/null
}

start_hosts() {  # start_hosts NAME...
  local host
  for host; do
    hosts+=("$host")
    launch_host "$host" 127.0.0.1:0 127.0.0.1:0
    hosts_option+=${hosts_option:+,}$host=$(api "$host" /v1/host | jq -r .control)
  done
}

start_volume() {  # start_volume NAME MODE REPLICAS SIZE: on the first hosts, primary the first one
  local name=$1 on host
  on=$(IFS=,; echo "${hosts[*]:0:$(($3 + 1))}")
  ctl create "$name" --size "$4" --on "$on" --primary "${hosts[0]}" --mode "$2" --overcommit
  ctl activate "$name"
  ctl wait "$name" --for in-sync --timeout 120s
  uri[$name]=$(ctl attach-info "$name" -o json | jq -r '.disks[0].uri')
  server[$name]=$(< "$work/${hosts[0]}/run/$name.pid")
  peers[$name]=
  for host in "${hosts[@]:1:$3}"; do peers[$name]+=" ${pid_of[$host]}"; done
}

# The file system may not have files as large as that.
fits() {
  truncate -s "$1" "$work/large" 2> /dev/null || return 1
  rm "$work/large"
}

end_volume() {
  ctl deactivate "$1" > /dev/null
  ctl delete "$1" --force > /dev/null
  unset "server[$1]" "peers[$1]" "volume_replicas[$1]"
}

start_file() {  # start_file NAME THREADS SIZE: `nbdkit file`
  truncate -s "$3" "$work/$1.raw"
  nbdkit -f -t "$2" -U "$work/$1.sock" file "$work/$1.raw" > "$work/$1.log" 2>&1 < /dev/null &
  server[$1]=$! peers[$1]=
  uri[$1]="nbd+unix:///?socket=$work/$1.sock"
  wait_for 10 "nbdkit file serves" test -S "$work/$1.sock"
}

# The peer of QEMU's block jobs: `nbdkit file` is the fastest of those that were tried, and it sets TCP_NODELAY;
# without that QEMU's client falls to 450 writes per second.
start_nbd_peer() {  # start_nbd_peer NAME SIZE: sets nbd_port
  local port
  truncate -s "$2" "$work/$1.raw"
  for ((port = 20000 + RANDOM % 20000; ; ++port)); do
    nbdkit -f -i 127.0.0.1 -p "$port" -P "$work/$1.pid" file "$work/$1.raw" > "$work/$1.log" 2>&1 < /dev/null &
    nbd_pid=$!
    until [[ -s $work/$1.pid ]]; do
      kill -0 "$nbd_pid" 2>/dev/null || continue 2
      sleep 0.02
    done
    nbd_port=$port
    return
  done
}

start_qemu() {  # start_qemu NAME QEMU_OPTIONS...: exports the node `disk`, QMP on $work/NAME.in and .out
  local name=$1
  shift
  mkfifo "$work/$name.in"
  exec {qmp_in}<> "$work/$name.in"
  qemu-storage-daemon --chardev stdio,id=qmp --monitor chardev=qmp "$@" \
    --nbd-server addr.type=unix,addr.path="$work/$name.sock" --export nbd,id=export,node-name=disk,writable=on \
    < "$work/$name.in" > "$work/$name.out" 2> "$work/$name.log" &
  server[$name]=$!
  uri[$name]="nbd+unix:///disk?socket=$work/$name.sock"
  wait_for 10 "qemu-storage-daemon serves $name" test -S "$work/$name.sock"
}

start_qemu_quorum() {  # start_qemu_quorum NAME CHILDREN SIZE: the local image and CHILDREN peers, all written to
  local name=$1 child options=() children='"local"'
  truncate -s "$3" "$work/$name.raw"
  peers[$name]=
  for ((child = 1; child <= $2; ++child)); do
    start_nbd_peer "$name-$child" "$3"
    peers[$name]+=" $nbd_pid"
    options+=(--blockdev "nbd,node-name=peer$child,server.type=inet,server.host=127.0.0.1,server.port=$nbd_port")
    children+=",\"peer$child\""
  done
  start_qemu "$name" --blockdev "file,node-name=local,filename=$work/$name.raw,aio=io_uring" "${options[@]}" --blockdev \
    "{\"driver\":\"quorum\",\"node-name\":\"disk\",\"children\":[$children],\"vote-threshold\":1,\"read-pattern\":\"fifo\"}"
}

start_qemu_mirror() {  # start_qemu_mirror NAME SIZE: write-blocking, behind the first copy
  local name=$1
  truncate -s "$2" "$work/$name.raw"
  start_nbd_peer "$name-1" "$2"
  peers[$name]=" $nbd_pid"
  start_qemu "$name" --blockdev "file,node-name=disk,filename=$work/$name.raw,aio=io_uring" \
    --blockdev "nbd,node-name=peer,server.type=inet,server.host=127.0.0.1,server.port=$nbd_port"
  printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"blockdev-mirror","arguments":{"job-id":"mirror",
    "device":"disk","target":"peer","sync":"full","copy-mode":"write-blocking"}}' > "$work/$name.in"
  wait_for 120 "the mirror has made its first copy" grep -q BLOCK_JOB_READY "$work/$name.out"
}

idle() {  # nothing of this configuration is on its way: replicas have applied everything
  local host
  [[ -v volume_replicas[$1] ]] || return 0
  [[ $(api "${hosts[0]}" "/v1/volumes/$1" | jq '[.replicas[].lag_bytes] | add') == 0 ]] || return 1
  for host in "${hosts[@]:1:${volume_replicas[$1]}}"; do
    [[ $(api "$host" "/v1/volumes/$1" | jq .replica.backlog_bytes) == 0 ]] || return 1
  done
}

# --- what it costs

# User and system time of all threads of processes, those of io_uring included.
process_ticks() {  # process_ticks PID...: one line for each, PID TICKS
  local pid line
  for pid; do
    { line=$(< "/proc/$pid/stat"); } 2>/dev/null || continue
    read -ra fields <<< "${line##*) }"
    echo "$pid $((fields[11] + fields[12]))"
  done
}

cpu_ticks() {  # cpu_ticks PID...: of all together
  process_ticks "$@" | awk '{sum += $2} END {print sum + 0}'
}

kernel_ticks() {  # as process_ticks, of the kernel's threads
  local dir line
  for dir in /proc/[0-9]*; do
    { line=$(< "$dir/stat"); } 2>/dev/null || continue
    read -ra fields <<< "${line##*) }"
    if [[ ${fields[1]} == 2 ]]; then echo "${dir#/proc/} $((fields[11] + fields[12]))"; fi
  done
}

ticks_between() {  # ticks_between BEFORE AFTER: the sum; what has ended meanwhile is left out
  awk 'NR == FNR {before[$1] = $2; next} {sum += $2 - before[$1]} END {print sum + 0}' <(echo "$1") <(echo "$2")
}

rss_kib() {  # rss_kib PID...: the largest of them
  local pid
  for pid; do awk '/^VmRSS/ {print $2}' "/proc/$pid/status" 2>/dev/null || true; done | sort -n | tail -n 1
}

# System calls and context switches, counted by the kernel where perf may do that. /proc loses what threads did that
# have ended, and nbdkit's end with their connection.
countable_events() {
  local event said
  # That is where perf finds raw_syscalls, and not every machine has it mounted.
  if [[ ! -e /sys/kernel/tracing/events ]]; then
    mount -t tracefs tracefs /sys/kernel/tracing 2> "$work/mount.log" || true
  fi
  for event in context-switches raw_syscalls:sys_enter; do
    said=$'\n'$(perf stat -x, -e "$event" true 2>&1 || true)
    if [[ $said =~ $'\n'[0-9]+,,$event, ]]; then
      echo "$event"
    else
      echo "bench: perf cannot count $event:$said" >&2
    fi
  done
}

start_counting() {  # start_counting PID...
  local pid control answer said
  counters=()
  [[ ${#count_events[@]} -gt 0 ]] || return 0
  for pid; do
    rm -f "$work/control" "$work/answer"
    mkfifo "$work/control" "$work/answer"
    exec {control}<> "$work/control" {answer}<> "$work/answer"
    perf stat -x, -e "$(IFS=,; echo "${count_events[*]}")" -p "$pid" -o "$work/count.$pid" \
      --delay=-1 --control="fifo:$work/control,$work/answer" > "$work/perf.log" 2>&1 &
    counters+=($!)
    echo enable >&"$control"
    read -r -t 10 -u "$answer" said || said=
    [[ $said == ack ]] || die "perf does not count: $(< "$work/perf.log")"
    exec {control}>&- {answer}>&-
  done
}

stop_counting() {
  local pid
  for pid in "${counters[@]}"; do kill -INT "$pid" 2>/dev/null || true; done
  for pid in "${counters[@]}"; do wait "$pid" 2>/dev/null || true; done
}

counted() {  # counted EVENT PID...: the sum over the processes, null if nothing was counted
  local event=$1
  shift
  [[ " ${count_events[*]} " == *" $event "* && $# -gt 0 ]] || { echo null; return; }
  awk -F, -v event="$event" '$3 == event {sum += $1} END {print sum + 0}' "${@/#/$work/count.}"
}

run_fio() {  # run_fio CONFIG FIO_OPTIONS...: fio's JSON
  local config=$1
  shift
  fio --name=bench --ioengine=nbd --uri="${uri[$config]}" --output-format=json \
    --randrepeat=0 --norandommap --group_reporting "$@" < /dev/null | sed -n '/^{/,$p'
}

# One line of JSON: what the load got (latencies: of its writes, if there are any) and what it paid per I/O itself.
# The options are those that nbd_load has in common with fio.
run_load() {  # run_load CONFIG OPTIONS...
  local config=$1 option spread=()
  shift
  if [[ $load == nbd_load ]]; then
    "$build/tests/bench/nbd_load" --uri="${uri[$config]}" --runtime="$seconds" "$@"
    return
  fi
  if [[ " $* " != *" --rw=rand"* ]]; then
    for option; do
      if [[ $option == --numjobs=* ]]; then spread=(--offset_increment=$((100 / ${option#*=}))%); fi
    done
  fi
  run_fio "$config" --time_based --runtime="$seconds" "${@/#--seed=/--randseed=}" "${spread[@]}" | jq -c '
    .jobs[0] | (.read.total_ios + .write.total_ios) as $ios | (if .write.total_ios > 0 then .write else .read end) as $side |
    def per_io: if $ios == 0 then null else . / $ios end;
    {ios: $ios, iops: (.read.iops + .write.iops), "MiB/s": ((.read.bw_bytes + .write.bw_bytes) / 1048576),
     p50_us: ($side.clat_ns.percentile["50.000000"] / 1000), p99_us: ($side.clat_ns.percentile["99.000000"] / 1000),
     p999_us: ($side.clat_ns.percentile["99.900000"] / 1000),
     cpu_us: ((.usr_cpu + .sys_cpu) / 100 * .job_runtime * 1000 | per_io), switches: (.ctx | per_io)}'
}

# One line of JSON: what the load says, and what its run cost, until the replicas have applied all of it. `server`: the
# process that the load talks to; `peers`: those behind it together (replicad; for QEMU the NBD servers).
measure() {  # measure CONFIG OPTIONS...
  local config=$1 pid before after before_kernel after_kernel peers_ticks=
  shift
  local -a behind
  read -ra behind <<< "${peers[$config]}"
  wait_for 120 "$config is idle" idle "$config"
  start_counting "${server[$config]}" "${behind[@]}"
  before=$(process_ticks "${server[$config]}" "${behind[@]}") before_kernel=$(kernel_ticks)
  run_load "$config" "$@" > "$work/load.json"
  wait_for 120 "$config is idle" idle "$config"
  after=$(process_ticks "${server[$config]}" "${behind[@]}") after_kernel=$(kernel_ticks)
  stop_counting
  for pid in "${behind[@]}"; do
    peers_ticks+=${peers_ticks:+,}$(ticks_between "$before" "$(grep "^$pid " <<< "$after")")
  done
  jq -c --argjson tick_us "$((1000000 / $(getconf CLK_TCK)))" \
    --argjson server_ticks "$(ticks_between "$before" "$(grep "^${server[$config]} " <<< "$after")")" \
    --argjson peers_ticks "[$peers_ticks]" \
    --argjson kernel_ticks "$(ticks_between "$before_kernel" "$after_kernel")" \
    --argjson switches "[$(counted context-switches "${server[$config]}"), $(counted context-switches "${behind[@]}")]" \
    --argjson calls "[$(counted raw_syscalls:sys_enter "${server[$config]}"), $(counted raw_syscalls:sys_enter "${behind[@]}")]" \
    --argjson rss "[$(rss_kib "${server[$config]}"), $(rss_kib "${behind[@]}" | grep . || echo null)]" '
    .ios as $ios | def per_io: if . == null or $ios == 0 then null else . / $ios end;
    def of_peers: if $peers_ticks == [] then null else . end;
    {iops, "MiB/s", p50_us, p99_us, p999_us,
     cpu_us: {client: .cpu_us, server: ($server_ticks * $tick_us | per_io),
       peers: ($peers_ticks | add // 0 | . * $tick_us | per_io | of_peers),
       each_peer: ($peers_ticks | map(. * $tick_us | per_io)), kernel: ($kernel_ticks * $tick_us | per_io)},
     switches: {client: .switches, server: ($switches[0] | per_io), peers: ($switches[1] | per_io | of_peers)},
     calls: {server: ($calls[0] | per_io), peers: ($calls[1] | per_io | of_peers)},
     rss_mib: {server: ($rss[0] / 1024), peers: (if $rss[1] then $rss[1] / 1024 else null end)}}' "$work/load.json"
}

# --- what it runs on

fdatasync_p50_us() {
  fio --name=sync --filename="$work/sync.raw" --size=64M --rw=randwrite --bs=4k --ioengine=psync --fdatasync=1 \
    --time_based --runtime=2 --output-format=json < /dev/null | sed -n '/^{/,$p' |
    jq '.jobs[0].sync.lat_ns.percentile["50.000000"] / 1000 | round'
  rm -f "$work/sync.raw"
}

describe_machine() {
  local type
  type=$(stat -f -c %T "$work")
  [[ $type != tmpfs ]] || die "$work is on tmpfs: set BENCH_DIR to a directory on a disk"
  printf '%s, %d CPUs, Linux %s, %s, fdatasync after one 4 KiB write p50 %s us, page cache in use on all sides, load by %s' \
    "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)" "$(nproc)" "$(uname -r)" \
    "$(findmnt -n -o FSTYPE -T "$work" || echo "$type")" "$(fdatasync_p50_us)" "$load"
}

[[ $load == nbd_load || $load == fio ]] || die "BENCH_LOAD is fio or nbd_load"
declare -A volume_replicas
readarray -t count_events < <(countable_events)
mkdir -p "$results"
