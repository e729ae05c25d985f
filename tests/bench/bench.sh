#!/bin/bash
# bench.sh BUILD_DIR: first figures of every mode with 1 and 2 replicas beside `nbdkit file` (no replication), all in
# one run: the configurations take turns in each round, so that a drift of the machine hits all alike. Prints the
# median and the spread over the rounds; the table and all single results go to BUILD_DIR/bench.
# Environment: BENCH_ROUNDS (5), BENCH_SECONDS per measurement (2), BENCH_BYTES per disk (256M), BENCH_DIR (scratch).
set -euo pipefail
export LC_ALL=C

build=$(cd "$1" && pwd)
rounds=${BENCH_ROUNDS:-5} seconds=${BENCH_SECONDS:-2} bytes=${BENCH_BYTES:-256M}
work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/replicad-bench.XXXXXX")
results=$build/bench
hosts=(a b c)
configs=(file async-1 async-2 semi-sync-1 semi-sync-2 sync-1 sync-2)
# name, fio options, unit of the table
workloads=(
  "randwrite-4k-qd1|--rw=randwrite --bs=4k --iodepth=1|iops"
  "randwrite-4k-qd32|--rw=randwrite --bs=4k --iodepth=32|iops"
  "seqwrite-128k-qd8|--rw=write --bs=128k --iodepth=8|MiB/s"
  "randread-4k-qd32|--rw=randread --bs=4k --iodepth=32|iops"
)
declare -A uri

die() { printf 'bench: %s\n' "$*" >&2; exit 1; }

our_processes() {
  grep -lsF "$work/" /proc/[0-9]*/cmdline | tr -dc '0-9\n' || true
}

finish() {
  local status=$? pid
  trap - EXIT
  [[ $status -eq 0 ]] || tail -n 20 "$work"/*/replicad.log "$work"/*/run/*.log 2>/dev/null || true
  for pid in $(our_processes); do kill -KILL "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [[ $SECONDS -lt $end ]] || die "not within time: $what"
    sleep 0.05
  done
}

api() { curl -sf --max-time 5 --unix-socket "$work/$1/run/control.sock" "http://localhost$2"; }
ctl() { "$build/ctl/replicactl" --hosts="$hosts_option" --quiet "$@"; }

start_hosts() {
  local host
  hosts_option=
  for host in "${hosts[@]}"; do
    mkdir -p "$work/$host"/{state,images,run}
    "$build/replicad/replicad" --host="$host" --listen=127.0.0.1:0 --control=127.0.0.1:0 --transport=plaintext \
      --state-dir="$work/$host/state" --image-dir="$work/$host/images" --run-dir="$work/$host/run" \
      --plugin="$build/nbd-plugin/nbdkit-replica-plugin.so" > "$work/$host/replicad.log" 2>&1 < /dev/null &
    wait_for 20 "replicad of $host answers" api "$host" /v1/host > /dev/null
    hosts_option+=${hosts_option:+,}$host=$(api "$host" /v1/host | jq -r .control)
  done
}

start_file() {
  truncate -s "$bytes" "$work/file.raw"
  nbdkit -f -U "$work/file.sock" file "$work/file.raw" > "$work/file.log" 2>&1 < /dev/null &
  uri[file]="nbd+unix:///?socket=$work/file.sock"
  wait_for 10 "nbdkit file serves" test -S "$work/file.sock"
}

start_volume() {  # start_volume MODE-REPLICAS
  local mode=${1%-*} replicas=${1##*-} on
  on=$(IFS=,; echo "${hosts[*]:0:$((replicas + 1))}")
  ctl create "$1" --size "$bytes" --on "$on" --primary a --mode "$mode"
  ctl activate "$1"
  ctl wait "$1" --for in-sync --timeout 60s
  uri[$1]=$(ctl attach-info "$1" -o json | jq -r '.disks[0].uri')
}

drained() {  # nothing of this volume is on its way
  [[ $1 == file ]] && return 0
  [[ $(api a "/v1/volumes/$1" | jq '[.replicas[].lag_bytes] | add') == 0 ]]
}

run_fio() {  # run_fio CONFIG FIO_OPTIONS...: fio's JSON
  local config=$1
  shift
  fio --name=bench --ioengine=nbd --uri="${uri[$config]}" --size="$bytes" --output-format=json \
    --randrepeat=0 --norandommap --group_reporting "$@" < /dev/null
}

measure() {  # measure ROUND CONFIG NAME OPTIONS: one line of JSON
  local options
  read -ra options <<< "$4"
  wait_for 60 "$2 is idle" drained "$2"
  run_fio "$2" --time_based --runtime="$seconds" "${options[@]}" | sed -n '/^{/,$p' |
    jq -c --arg config "$2" --arg workload "$3" --argjson round "$1" '
      .jobs[0] | (if .read.total_ios > 0 then .read else .write end) as $side |
      {round: $round, config: $config, workload: $workload, iops: $side.iops,
       "MiB/s": ($side.bw_bytes / 1048576), p50_us: ($side.clat_ns.percentile["50.000000"] / 1000),
       p99_us: ($side.clat_ns.percentile["99.000000"] / 1000)}' >> "$work/results.jsonl"
}

summarise() {  # per workload and configuration: median, least, greatest, and the latencies' medians
  jq -s '
    def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2] + .[length / 2 - 1]) / 2 end;
    group_by([.workload, .config]) | map({workload: .[0].workload, config: .[0].config, rounds: length,
      iops: {median: (map(.iops) | median), min: (map(.iops) | min), max: (map(.iops) | max)},
      "MiB/s": {median: (map(."MiB/s") | median), min: (map(."MiB/s") | min), max: (map(."MiB/s") | max)},
      p50_us: (map(.p50_us) | median), p99_us: (map(.p99_us) | median)})' "$work/results.jsonl"
}

print_table() {
  local workload name unit
  for workload in "${workloads[@]}"; do
    name=${workload%%|*} unit=${workload##*|}
    printf '\n%s\n\n| configuration | %s: median | least | most | of file | p50 us | p99 us |\n' "$name" "$unit"
    printf '|---|---|---|---|---|---|---|\n'
    for config in "${configs[@]}"; do
      jq -r --arg w "$name" --arg c "$config" --arg u "$unit" '
        (.[] | select(.workload == $w and .config == "file") | .[$u].median) as $base |
        .[] | select(.workload == $w and .config == $c) |
        "| \($c) | \(.[$u].median | round) | \(.[$u].min | round) | \(.[$u].max | round) | \(
          .[$u].median / $base * 100 | round) % | \(.p50_us | round) | \(.p99_us | round) |"' "$results/summary.json"
    done
  done
}

mkdir -p "$results"
start_hosts
start_file
for config in "${configs[@]:1}"; do start_volume "$config"; done
echo "filling the disks" >&2
# Not by larger writes: they give `nbdkit file` large folios, in which every small write is several times dearer.
for config in "${configs[@]}"; do run_fio "$config" --rw=write --bs=128k --iodepth=4 > /dev/null; done
for ((round = 1; round <= rounds; round++)); do
  for workload in "${workloads[@]}"; do
    IFS='|' read -r name options _ <<< "$workload"
    for config in "${configs[@]}"; do
      printf '\rround %d of %d: %-20s %-14s' "$round" "$rounds" "$name" "$config" >&2
      measure "$round" "$config" "$name" "$options"
    done
  done
done
printf '\n' >&2
cp "$work/results.jsonl" "$results/results.jsonl"
summarise > "$results/summary.json"
{
  printf '%s, %d CPUs, kernel %s, %d rounds of %d s, disks of %s\n' "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 |
    xargs)" "$(nproc)" "$(uname -r)" "$rounds" "$seconds" "$bytes"
  print_table
} | tee "$results/table.md"
