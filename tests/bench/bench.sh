#!/bin/bash
# bench.sh BUILD_DIR: every mode beside `nbdkit file` (no replication) and QEMU's own means, all in one run: the
# configurations take turns in each round, so that a drift of the machine hits all alike. Prints medians and spread;
# the table, the medians as JSON and every single result go to BUILD_DIR/bench.
# Environment, beside lib.sh's: BENCH_ROUNDS (5), BENCH_CONFIGS and BENCH_WORKLOADS (names or patterns, default all),
# BENCH_APPEND=1: with the rounds of earlier runs.
#   BENCH_ROUNDS=2 BENCH_CONFIGS='file sync-1' BENCH_WORKLOADS='randwrite-*' tests/bench/bench.sh build/release
set -euo pipefail
export LC_ALL=C
build=$(cd "$1" && pwd)
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"
rounds=${BENCH_ROUNDS:-5}
big_disk=${BENCH_BIG_DISK:-256G}  # of the configurations *-big: sparse, nothing in it, its activity map cold

# file-tN: with N threads. MODE-N: ours with N replicas. Ratios are to the best of those that begin with `file`.
all_configs=(file file-t1 file-t4 async-1 async-2 async-3 semi-sync-1 semi-sync-2 semi-sync-3 sync-1 sync-2 sync-3
  qemu-quorum-1 qemu-quorum-2 qemu-mirror file-big async-1-big sync-1-big)
# name with the depth of all connections together, options of the load (depth: of each), unit of the table
all_workloads=(
  "randwrite-4k-qd1|--rw=randwrite --bs=4k --iodepth=1|iops"
  "randwrite-4k-qd4-c4|--rw=randwrite --bs=4k --iodepth=1 --numjobs=4|iops"
  "randwrite-4k-qd16|--rw=randwrite --bs=4k --iodepth=16|iops"
  "randwrite-4k-qd16-c4|--rw=randwrite --bs=4k --iodepth=4 --numjobs=4|iops"
  "randwrite-4k-qd32|--rw=randwrite --bs=4k --iodepth=32|iops"
  "randwrite-4k-qd32-c4|--rw=randwrite --bs=4k --iodepth=8 --numjobs=4|iops"
  "randwrite-4k-qd32-fsync32|--rw=randwrite --bs=4k --iodepth=32 --fsync=32|iops"
  "randwrite-4k-qd32-fsync32-c4|--rw=randwrite --bs=4k --iodepth=8 --fsync=32 --numjobs=4|iops"
  "randread-4k-qd32|--rw=randread --bs=4k --iodepth=32|iops"
  "randread-4k-qd32-c4|--rw=randread --bs=4k --iodepth=8 --numjobs=4|iops"
  "randrw-4k-qd16|--rw=randrw --rwmixread=70 --bs=4k --iodepth=16|iops"
  "randrw-4k-qd16-c4|--rw=randrw --rwmixread=70 --bs=4k --iodepth=4 --numjobs=4|iops"
  "seqwrite-128k-qd8|--rw=write --bs=128k --iodepth=8|MiB/s"
  "seqwrite-128k-qd8-c4|--rw=write --bs=128k --iodepth=2 --numjobs=4|MiB/s"
  "seqwrite-1m-qd4|--rw=write --bs=1M --iodepth=4|MiB/s"
  "seqwrite-1m-qd4-c4|--rw=write --bs=1M --iodepth=1 --numjobs=4|MiB/s"
)

chosen() {  # chosen PATTERNS NAME
  local pattern
  set -f
  for pattern in $1; do
    # shellcheck disable=SC2053  # patterns are wanted
    if [[ $2 == $pattern ]]; then set +f; return 0; fi
  done
  set +f
  return 1
}

size_of() { [[ $1 == *-big ]] && echo "$big_disk" || echo "$bytes"; }

start_config() {
  local config=$1 plain=${1%-big}
  case $plain in
    file) start_file "$config" 16 "$(size_of "$config")" ;;
    file-t*) start_file "$config" "${plain#file-t}" "$(size_of "$config")" ;;
    qemu-quorum-*) start_qemu_quorum "$config" "${plain##*-}" "$(size_of "$config")" ;;
    qemu-mirror) start_qemu_mirror "$config" "$(size_of "$config")" ;;
    *)
      volume_replicas[$config]=${plain##*-}
      start_volume "$config" "${plain%-*}" "${plain##*-}" "$(size_of "$config")" ;;
  esac
}

summarise() {  # per workload and configuration: medians, and the spread of what the table shows
  jq -s '
    def median: map(select(. != null)) | sort | if length == 0 then null elif length % 2 == 1 then .[length / 2 | floor]
      else (.[length / 2] + .[length / 2 - 1]) / 2 end;
    def spread: {median: median, min: min, max: max};
    def medians(path): [.[] | path] | median;
    group_by([.workload, .config]) | map({workload: .[0].workload, config: .[0].config, rounds: length,
      iops: (map(.iops) | spread), "MiB/s": (map(."MiB/s") | spread), p50_us: medians(.p50_us), p99_us: medians(.p99_us),
      p999_us: medians(.p999_us),
      cpu_us: {client: medians(.cpu_us.client), server: medians(.cpu_us.server), peers: medians(.cpu_us.peers),
        each_peer: (map(.cpu_us.each_peer) | transpose | map(median)), kernel: medians(.cpu_us.kernel)},
      switches: {client: medians(.switches.client), server: medians(.switches.server), peers: medians(.switches.peers)},
      calls: {server: medians(.calls.server), peers: medians(.calls.peers)},
      rss_mib: {server: medians(.rss_mib.server), peers: medians(.rss_mib.peers)}})' "$results/results.jsonl"
}

print_table() {
  local workload name unit configs
  readarray -t configs < <(jq -r --argjson order "$(jq -nc '$ARGS.positional' --args "${all_configs[@]}")" '
    [.[].config] | unique | sort_by(. as $c | $order | index($c))[]' "$results/summary.json")
  for workload in "${all_workloads[@]}"; do
    name=${workload%%|*} unit=${workload##*|}
    jq -r --arg w "$name" --arg u "$unit" --argjson order "$(jq -nc '$ARGS.positional' --args "${configs[@]}")" '
      def show: if . == null then "" elif . >= 100 then round else (. * 10 | round / 10) end | tostring;
      def cells: map(show) | join(" / ");
      map(select(.workload == $w)) | select(length > 0) |
      (group_by(.config | endswith("-big")) | map({key: (.[0].config | endswith("-big") | tostring), value:
        ([.[] | select(.config | startswith("file")) | .[$u].median] | max)}) | from_entries) as $bases |
      "\n### \($w)\n\n| configuration | \($u) (least - most) | of file | p50 / p99 / p99.9 us | CPU us: client / server / peers / kernel | switches: client / server / peers | calls: server / peers | RSS MiB: server / peers |",
      "|---|---|---|---|---|---|---|---|",
      (sort_by(.config as $c | $order | index($c))[] |
        $bases[.config | endswith("-big") | tostring] as $base | "| \(.config) | \(.[$u].median | round) (\(.[$u].min | round) - \(.[$u].max | round)) | \(
          if $base then "\(.[$u].median / $base * 100 | round) %" else "" end) | \([.p50_us, .p99_us, .p999_us] | cells
        ) | \([.cpu_us.client, .cpu_us.server, .cpu_us.peers, .cpu_us.kernel] | cells) | \(
          [.switches.client, .switches.server, .switches.peers] | cells) | \([.calls.server, .calls.peers] | cells) | \(
          [.rss_mib.server, .rss_mib.peers] | cells) |")' "$results/summary.json"
  done
}

configs=() workloads=()
replicas=-1  # of ours: none chosen, no hosts
for config in "${all_configs[@]}"; do
  chosen "${BENCH_CONFIGS:-*}" "$config" || continue
  if [[ $config == *-big ]] && ! fits "$big_disk"; then
    echo "bench: without $config: no file of $big_disk can be made below $work (BENCH_DIR, BENCH_BIG_DISK)" >&2
    continue
  fi
  configs+=("$config")
  plain=${config%-big}
  if [[ $plain == *sync-* && ${plain##*-} -gt $replicas ]]; then replicas=${plain##*-}; fi
done
for workload in "${all_workloads[@]}"; do
  if chosen "${BENCH_WORKLOADS:-*}" "${workload%%|*}"; then workloads+=("$workload"); fi
done
[[ ${#configs[@]} -gt 0 && ${#workloads[@]} -gt 0 ]] ||
  die "BENCH_CONFIGS or BENCH_WORKLOADS chooses nothing of: ${all_configs[*]}; ${all_workloads[*]%%|*}"

machine=$(describe_machine)
names=(a b c d)
start_hosts "${names[@]:0:$((replicas + 1))}"
for config in "${configs[@]}"; do start_config "$config"; done
echo "filling the disks" >&2
# Not by larger writes: they give `nbdkit file` large folios, in which every small write is several times dearer.
for config in "${configs[@]}"; do
  [[ $config == *-big ]] || run_fio "$config" --size="$bytes" --rw=write --bs=128k --iodepth=4 > /dev/null
done
# On the big disks every round writes where nobody has written before; that is their one row.
is_measured() {  # is_measured CONFIG WORKLOAD
  [[ $1 != *-big || $2 == randwrite-4k-qd32 ]]
}

show_progress() {  # show_progress TEXT...: on one line of a terminal, else now and then
  local left=
  if [[ $done -gt 0 ]]; then left=", $(((SECONDS - began) * (total - done) / done / 60 + 1)) min left"; fi
  if [[ -t 2 ]]; then
    printf '\r\033[K%s' "$*$left" >&2
  elif [[ $((done % 20)) -eq 0 ]]; then
    printf '%s\n' "$*$left" >&2
  fi
}

total=0 done=0
for workload in "${workloads[@]}"; do
  for config in "${configs[@]}"; do
    if is_measured "$config" "${workload%%|*}"; then total=$((total + rounds)); fi
  done
done
began=$SECONDS earlier=0
if [[ ${BENCH_APPEND:-0} == 1 && -s $results/results.jsonl ]]; then
  earlier=$(jq -s 'map(.round) | max' "$results/results.jsonl")
else
  : > "$results/results.jsonl"
fi
for ((round = earlier + 1; round <= earlier + rounds; round++)); do
  for workload in "${workloads[@]}"; do
    IFS="|" read -r name options _ <<< "$workload"
    read -ra flags <<< "$options"
    for config in "${configs[@]}"; do
      is_measured "$config" "$name" || continue
      show_progress "round $((round - earlier)) of $rounds, $((done + 1)) of $total: $name $config"
      measure "$config" --size="$(size_of "$config")" --seed="$round" "${flags[@]}" |
        jq -c --arg config "$config" --arg workload "$name" --argjson round "$round" \
          '{round: $round, config: $config, workload: $workload} + .' >> "$results/results.jsonl"
      done=$((done + 1))
    done
  done
done
printf '\n' >&2
summarise > "$results/summary.json"
{
  printf '%s; %d rounds of %d s, disks of %s\n' "$machine" "$(jq 'map(.rounds) | max' "$results/summary.json")" "$seconds" "$bytes"
  print_table
} | tee "$results/table.md"
