#!/bin/bash
# scaling.sh BUILD_DIR WHAT: what replication costs as one thing grows. WHAT: replicas (1 to 8), volumes (1 to 200),
# disk-size (1 GiB to 15 TiB, sparse), log-size (128 MiB to 4 GiB), resync (of scattered 4 KiB blocks). Prints a table,
# which also goes to BUILD_DIR/bench/WHAT.md.
# Environment, beside lib.sh's: BENCH_STEPS (the numbers or sizes to go through).
set -euo pipefail
export LC_ALL=C
build=$(cd "$1" && pwd)
what=${2-}
# shellcheck source=tests/bench/lib.sh
. "$(dirname "$0")/lib.sh"

now_ms() { date +%s%3N; }

rss_mib() { awk '/^VmRSS/ {printf "%.1f", $2 / 1024}' "/proc/$1/status"; }

row() { local IFS='|'; printf '| %s |\n' "$(printf '%s' "$*" | sed 's/|/ | /g')"; }

head_row() { row "$@"; printf '|%s\n' "$(printf -- '---|%.0s' "$@")"; }

randwrite=(--size="$bytes" --rw=randwrite --bs=4k --iodepth=32)

show_write_cost() {  # of measure's line
  jq -r 'def show: if . == null then "" else (. * 10 | round / 10) end;
    "\(.iops | round)|\(.p50_us | show) / \(.p99_us | show)|\(.cpu_us.server | show)|\(.cpu_us.peers | show)"'
}

cost_of_replicas() {
  local steps count mode
  read -ra steps <<< "${BENCH_STEPS:-1 2 3 4 5 6 7 8}"
  start_hosts $(seq -f 'h%g' 0 "${steps[-1]}")
  start_file file 16 "$bytes"
  run_fio file --size="$bytes" --rw=write --bs=128k --iodepth=4 > /dev/null
  head_row configuration IOPS 'p50 / p99 us' 'CPU us per write: nbdkit' 'all replicad together'
  row file "$(measure file "${randwrite[@]}" | show_write_cost)"
  for count in "${steps[@]}"; do
    for mode in async sync; do
      volume_replicas[$mode-$count]=$count
      start_volume "$mode-$count" "$mode" "$count" "$bytes"
      run_fio "$mode-$count" --size="$bytes" --rw=write --bs=128k --iodepth=4 > /dev/null
      row "$mode-$count" "$(measure "$mode-$count" "${randwrite[@]}" | show_write_cost)"
      end_volume "$mode-$count"
    done
  done
}

# All volumes but one are idle, and served.
cost_of_volumes() {
  local steps made=0 count began busy
  read -ra steps <<< "${BENCH_STEPS:-1 10 50 100 200}"
  start_hosts a b
  head_row volumes 'seconds to make and serve one' 'RSS MiB: replicad, primary' 'RSS MiB: replicad, replica' \
    'CPU % of one core, idle: both replicad' 'the same: all nbdkit' 'RSS MiB of an idle nbdkit' 'IOPS of one volume'
  for count in "${steps[@]}"; do
    began=$(now_ms)
    local before=$made
    for ((; made < count; ++made)); do
      volume_replicas[v$made]=1
      start_volume "v$made" sync 1 64M
    done
    began=$(($(now_ms) - began))
    local servers=("${server[@]}")
    busy=("$(cpu_ticks "${pid_of[a]}" "${pid_of[b]}")" "$(cpu_ticks "${servers[@]}")")
    sleep 5
    busy=("$(($(cpu_ticks "${pid_of[a]}" "${pid_of[b]}") - busy[0]))" "$(($(cpu_ticks "${servers[@]}") - busy[1]))")
    local iops
    iops=$(measure v0 --size=64M --rw=randwrite --bs=4k --iodepth=32 | jq '.iops | round')
    row "$count" "$(jq -n "$began / 10 / ($count - $before) | round / 100")" "$(rss_mib "${pid_of[a]}")" \
      "$(rss_mib "${pid_of[b]}")" "$(jq -n "${busy[0]} / 5")" "$(jq -n "${busy[1]} / 5")" \
      "$(rss_mib "${server[v$((count - 1))]}")" "$iops"
  done
}

# ext4 ends just below 16 TiB.
cost_of_disk_size() {
  local steps size began
  read -ra steps <<< "${BENCH_STEPS:-1G 64G 1T 15T}"
  start_hosts a b
  head_row disk 'seconds: create, activate, in sync' 'seconds: stop and activate again' 'RSS MiB: nbdkit' \
    'RSS MiB: replicad, replica' 'first 4k writes, IOPS' 'again, after an unclean end: seconds to serve'
  for size in "${steps[@]}"; do
    if ! fits "$size"; then
      row "$size" 'less than that is free' '' '' '' '' ''
      continue
    fi
    local name=d${size,,}
    volume_replicas[$name]=1
    began=$(now_ms)
    start_volume "$name" sync 1 "$size"
    local first=$(($(now_ms) - began))
    began=$(now_ms)
    ctl deactivate "$name" > /dev/null
    ctl activate "$name" > /dev/null
    local again=$(($(now_ms) - began))
    ctl wait "$name" --for in-sync --timeout 120s
    server[$name]=$(< "$work/a/run/$name.pid")
    local iops
    iops=$(measure "$name" --size="$size" --rw=randwrite --bs=4k --iodepth=32 | jq '.iops | round')
    local rss
    rss=$(rss_mib "${server[$name]}")
    kill -KILL "${server[$name]}"
    wait_for 10 "nbdkit ends" test ! -e "/proc/${server[$name]}"
    began=$(now_ms)
    until ctl activate "$name" > /dev/null 2>&1; do sleep 0.05; done
    row "$size" "$(jq -n "$first / 1000")" "$(jq -n "$again / 1000")" "$rss" "$(rss_mib "${pid_of[b]}")" "$iops" \
      "$(jq -n "($(now_ms) - $began) / 1000")"
    end_volume "$name"
  done
}

cost_of_log_size() {
  local steps size
  read -ra steps <<< "${BENCH_STEPS:-128M 512M 1G 4G}"
  start_hosts a b
  head_row log IOPS 'p50 / p99 us' 'CPU us per write: nbdkit' replicad '128k writes, MiB/s'
  for size in "${steps[@]}"; do
    local name=l${size,,}
    volume_replicas[$name]=1
    start_volume "$name" sync 1 "$bytes"
    ctl set "$name" "log=$size" > /dev/null
    run_fio "$name" --size="$bytes" --rw=write --bs=128k --iodepth=4 > /dev/null
    local cost
    cost=$(measure "$name" "${randwrite[@]}" | show_write_cost)
    row "$size" "$cost" "$(measure "$name" --size="$bytes" --rw=write --bs=128k --iodepth=8 | jq '."MiB/s" | round')"
    end_volume "$name"
  done
}

show_latency() {  # of fio's JSON
  jq -r '.jobs[0].write.clat_ns.percentile | "\(."50.000000" / 1000 | round) / \(."99.000000" / 1000 | round)"'
}

# The replica's host is away while scattered blocks are written, more of them than the ring holds.
time_of_resync() {
  local steps amount round began
  read -ra steps <<< "${BENCH_STEPS:-64M 256M}"
  start_hosts a b
  volume_replicas[resync]=1
  start_volume resync sync 1 4G
  head_row 'scattered 4 KiB blocks written meanwhile' round 'seconds from the start of replicad to in-sync' 'MiB/s' \
    '4k writes at depth 1 before: p50 / p99 us' 'meanwhile'
  for amount in "${steps[@]}"; do
    for ((round = 1; round <= ${BENCH_ROUNDS:-3}; ++round)); do
      local quiet stream control load took
      quiet=$(run_fio resync --size=4G --time_based --runtime=2 --rw=randwrite --bs=4k --iodepth=1 | show_latency)
      read -r stream control < <(api b /v1/host | jq -r '"\(.stream) \(.control)"')
      kill -KILL "${pid_of[b]}"
      wait "${pid_of[b]}" 2>/dev/null || true
      run_fio resync --size=4G --io_size="$amount" --rw=randwrite --bs=4k --iodepth=32 > /dev/null
      run_fio resync --size=4G --time_based --runtime=600 --rw=randwrite --bs=4k --iodepth=1 > "$work/meanwhile.json" &
      load=$!
      began=$(now_ms)
      launch_host b "$stream" "$control"
      ctl wait resync --for in-sync --timeout 300s
      took=$(($(now_ms) - began))
      kill -INT "$(pgrep -P "$load" -x fio)" 2>/dev/null || true
      wait "$load" || true
      row "$amount" "$round" "$(jq -n "$took / 1000")" \
        "$(jq -n "$(numfmt --from=iec "$amount") / 1048.576 / $took | round")" "$quiet" \
        "$(show_latency < "$work/meanwhile.json")"
    done
  done
}

drop_cache() {  # drop_cache FILE...: of what is on its disk already
  local file
  sync -d "$@"
  for file; do dd if="$file" iflag=nocache count=0 status=none; done
}

# Both images lie on one disk, so it is what reading both at once allows, by the faster of two ways.
read_both_ms() {  # read_both_ms FLAG FILE...
  local flag=$1 file began readers=()
  shift
  drop_cache "$@"
  began=$(now_ms)
  for file; do
    dd if="$file" of=/dev/null bs=1M iflag="$flag" status=none &
    readers+=($!)
  done
  wait "${readers[@]}"
  echo $(($(now_ms) - began))
}

time_of_verify() {
  local steps size round name=verify
  read -ra steps <<< "${BENCH_STEPS:-4G}"
  start_hosts a b
  head_row 'disk, all of it data' round 'both images read at once: MiB/s, through the cache / past it' 'verify: MiB/s' \
    'part of the better' 'CPU us per MiB of disk: nbdkit / replicad'
  for size in "${steps[@]}"; do
    local mib=$(($(numfmt --from=iec "$size") / 1048576))
    volume_replicas[$name]=1
    start_volume "$name" sync 1 "$size"
    run_fio "$name" --size="$size" --rw=write --bs=1M --iodepth=4 --refill_buffers > /dev/null
    wait_for 120 "$name is idle" idle "$name"
    local images=("$work"/{a,b}/images/"$name"/*)
    for ((round = 1; round <= ${BENCH_ROUNDS:-5}; ++round)); do
      local cached direct took cpu
      cached=$(read_both_ms nocache "${images[@]}")
      direct=$(read_both_ms direct "${images[@]}")
      drop_cache "${images[@]}"
      cpu=("$(cpu_ticks "${server[$name]}")" "$(cpu_ticks "${pid_of[b]}")")
      ctl verify "$name" > /dev/null
      took=$(api a "/v1/volumes/$name" | jq '.verify.seconds * 1000 | round')
      cpu=($(($(cpu_ticks "${server[$name]}") - cpu[0])) $(($(cpu_ticks "${pid_of[b]}") - cpu[1])))
      row "$size" "$round" "$((mib * 1000 / cached)) / $((mib * 1000 / direct))" "$((mib * 1000 / took))" \
        "$(jq -n "[$cached, $direct] | min / $took * 100 | round / 100")" \
        "$((cpu[0] * 10000 / mib)) / $((cpu[1] * 10000 / mib))"
    done
    end_volume "$name"
  done
}

case $what in
  replicas) run=cost_of_replicas ;;
  volumes) run=cost_of_volumes ;;
  disk-size) run=cost_of_disk_size ;;
  log-size) run=cost_of_log_size ;;
  resync) run=time_of_resync ;;
  verify) run=time_of_verify ;;
  *) die "what is to grow? replicas, volumes, disk-size, log-size, resync, verify" ;;
esac
machine=$(describe_machine)
{
  printf '%s\n\n' "$machine"
  "$run"
} | tee "$results/$what.md"
