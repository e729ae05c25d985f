#!/bin/bash
# plots.sh BUILD_DIR OUTPUT_DIR: draws what bench.sh and scaling.sh have left in BUILD_DIR/bench, as SVG. What was not
# run is not drawn.
#   tests/bench/plots.sh build/release docs/plots
set -euo pipefail
export LC_ALL=C
results=$(cd "$1" && pwd)/bench
mkdir -p "$2"
output=$(cd "$2" && pwd)
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT

die() { printf 'plots: %s\n' "$*" >&2; exit 1; }

# Blues: async; greens: sync; the rest is not ours.
style='
  set terminal svg size 1000,430 dynamic enhanced font "sans,13" background "white"
  set border 3 lc rgb "#666666"
  set tics nomirror
  set grid y lc rgb "#dddddd" lw 1
  set key outside right center vertical Left reverse samplen 2
  set style fill solid 0.9 noborder
  colour(name) = name eq "async-1" ? 0x3b78c3 : name eq "async-2" ? 0x7fb0e6 : name eq "async-3" ? 0xb9d6f5 : \
    name eq "semi-sync-1" ? 0x7a5cb8 : name eq "sync-1" ? 0x2e8b57 : name eq "sync-2" ? 0x7cc79a : \
    name eq "sync-3" ? 0xbfe5cc : name eq "qemu-mirror" ? 0xe0a030 : name eq "qemu-quorum-1" ? 0xc0504d : \
    name eq "qemu-quorum-2" ? 0xe09a98 : 0x555555
'

draw() {  # draw NAME COMMANDS: gnuplot
  printf '%s\nset output "%s"\n%s\n' "$style" "$output/$1.svg" "$2" | gnuplot
  echo "$output/$1.svg"
}

shown_configs=(file async-1 async-2 semi-sync-1 sync-1 sync-2 qemu-mirror qemu-quorum-1 qemu-quorum-2)
shown_workloads=(randwrite-4k-qd1 randwrite-4k-qd16 randwrite-4k-qd32 randwrite-4k-qd32-c4 randwrite-4k-qd32-fsync32
  randread-4k-qd32 randrw-4k-qd16 seqwrite-128k-qd8 seqwrite-1m-qd4)

# present WHAT NAME...: those of the names that the run has.
present() {
  local what=$1 name
  shift
  for name; do
    if jq -e --arg name "$name" "any(.$what == \$name)" "$results/summary.json" > /dev/null; then echo "$name"; fi
  done
}

# A table: one line for each workload, one column for each configuration; `-` where there is nothing.
table() {  # table JQ_EXPRESSION: of one result $r, with the best `nbdkit file` of its workload as $base
  local filter
  # shellcheck disable=SC2016  # variables of jq
  filter='. as $all | $workloads[] as $w | [$all[] | select(.workload == $w)] as $of |
    ([$of[] | select(.config | test("^file(-t[0-9]+)?$")) | ."MiB/s".median] | max) as $base |
    [$w, ($configs[] as $c | [$of[] | select(.config == $c)][0] as $r |
      if $r == null then "-" else ('"$1"' // "-") end)] | map(tostring) | join(" ")'
  jq -r --argjson configs "$(names "${configs[@]}")" --argjson workloads "$(names "${workloads[@]}")" \
    "$filter" "$results/summary.json"
}

names() { jq -nc '$ARGS.positional' --args "$@"; }

bars() {  # bars FILE: one group for each line of a table
  local column plots=()
  for ((column = 0; column < ${#configs[@]}; ++column)); do
    plots+=("\"$1\" using $((column + 2)):xtic(1) title \"${configs[column]}\" lc rgb colour(\"${configs[column]}\")")
  done
  local IFS=,
  printf 'set style data histogram\nset style histogram clustered gap 1.5\nset xtics rotate by 20 right\nplot %s\n' \
    "${plots[*]}"
}

draw_throughput() {
  # shellcheck disable=SC2016  # variables of jq
  table '$r."MiB/s".median / $base' > "$data/throughput"
  draw throughput "set ylabel 'part of nbdkit file'
    set yrange [0:*]
    set arrow from graph 0, first 1 to graph 1, first 1 nohead lc rgb '#555555' dt 2
    $(bars "$data/throughput")"
}

draw_latency() {
  local percentile
  for percentile in p50 p99; do
    table "\$r.${percentile}_us" > "$data/$percentile"
    draw "latency-$percentile" "set ylabel '$percentile, microseconds'
      set logscale y
      $(bars "$data/$percentile")"
  done
}

# Of one workload, stacked: who pays.
draw_cpu() {
  local workload
  for workload in $(present workload randwrite-4k-qd1 randwrite-4k-qd32 seqwrite-128k-qd8); do
    jq -r --arg w "$workload" --argjson configs "$(names "${configs[@]}")" '. as $all | $configs[] as $c |
      [$all[] | select(.workload == $w and .config == $c)][0] | select(. != null) | .cpu_us |
      [$c, .client, .server, (.each_peer[0] // 0), (.each_peer[1] // 0), (.each_peer[2] // 0), .kernel] |
      map(tostring) | join(" ")' "$results/summary.json" > "$data/cpu-$workload"
    draw "cpu-$workload" "set ylabel 'processor time per I/O, microseconds'
      set title '$workload'
      set style data histogram
      set style histogram rowstacked
      set boxwidth 0.7
      set xtics rotate by 20 right
      set yrange [0:*]
      plot '$data/cpu-$workload' using 2:xtic(1) title 'load' lc rgb 0xaaaaaa, \
        '' using 3 title 'nbdkit or qemu-storage-daemon' lc rgb 0x3b78c3, \
        '' using 4 title 'first peer' lc rgb 0x2e8b57, '' using 5 title 'second' lc rgb 0x7cc79a, \
        '' using 6 title 'third' lc rgb 0xbfe5cc, '' using 7 title 'kernel threads' lc rgb 0xe0a030"
  done
}

# The rows of a table of scaling.sh, `|` and `/` gone.
rows() {
  grep '^| ' "$results/$1.md" | tail -n +2 | tr -d '|/%'
}

draw_replicas() {
  rows replicas > "$data/replicas"
  local mode
  for mode in async sync; do
    { sed -n 's/^ file / 0 /p' "$data/replicas"; sed -n "s/^ $mode-/ /p" "$data/replicas"; } > "$data/replicas-$mode"
  done
  draw replicas "set xlabel 'replicas, all on the same two cores'
    set ylabel 'processor time per write, microseconds'
    set y2label 'writes per second'
    set y2tics
    set yrange [0:*]
    set y2range [0:*]
    set xtics 1
    plot '$data/replicas-async' using 1:(\$5+\$6) with linespoints lw 2 pt 7 lc rgb 0x3b78c3 title 'async: nbdkit and all replicad', \
      '$data/replicas-sync' using 1:(\$5+\$6) with linespoints lw 2 pt 7 lc rgb 0x2e8b57 title 'sync', \
      '$data/replicas-async' using 1:2 axes x1y2 with linespoints dt 2 pt 6 lc rgb 0x3b78c3 title 'async: writes per second', \
      '$data/replicas-sync' using 1:2 axes x1y2 with linespoints dt 2 pt 6 lc rgb 0x2e8b57 title 'sync'"
}

draw_volumes() {
  rows volumes > "$data/volumes"
  draw volumes "set xlabel 'volumes, all but one idle'
    set ylabel 'resident memory, MiB'
    set y2label 'seconds to make and serve one'
    set y2tics
    set yrange [0:*]
    set y2range [0:*]
    plot '$data/volumes' using 1:3 with linespoints lw 2 pt 7 lc rgb 0x3b78c3 title 'replicad of the primary', \
      '' using 1:4 with linespoints lw 2 pt 7 lc rgb 0x2e8b57 title 'replicad of the replica', \
      '' using 1:(\$0 > 0 ? \$7 : 1/0) with linespoints lw 2 pt 7 lc rgb 0xe0a030 title 'an idle nbdkit', \
      '' using 1:2 axes x1y2 with linespoints dt 2 pt 6 lc rgb 0x555555 title 'seconds'"
}

draw_disk_size() {
  rows disk-size | awk 'NF >= 7 && $2 ~ /^[0-9.]+$/' > "$data/disk-size"
  draw disk-size "set xlabel 'disk, sparse'
    set ylabel 'seconds'
    set y2label 'resident memory, MiB'
    set y2tics
    set yrange [0:*]
    set y2range [0:*]
    plot '$data/disk-size' using 0:2:xtic(1) with linespoints lw 2 pt 7 lc rgb 0x3b78c3 title 'create, activate, in sync', \
      '' using 0:3 with linespoints lw 2 pt 7 lc rgb 0x2e8b57 title 'stop and activate', \
      '' using 0:7 with linespoints lw 2 pt 7 lc rgb 0xc0504d title 'serve after an unclean end', \
      '' using 0:4 axes x1y2 with linespoints dt 2 pt 6 lc rgb 0x3b78c3 title 'memory of nbdkit', \
      '' using 0:5 axes x1y2 with linespoints dt 2 pt 6 lc rgb 0x2e8b57 title 'of the replica'"
}

command -v gnuplot > /dev/null || die 'gnuplot is missing (make -f Makefile.ci bench-plots installs it)'
drawn=0
if [[ -s $results/summary.json ]]; then
  readarray -t configs < <(present config "${shown_configs[@]}")
  readarray -t workloads < <(present workload "${shown_workloads[@]}")
  draw_throughput
  draw_latency
  draw_cpu
  drawn=1
fi
for what in replicas volumes disk-size; do
  [[ -s $results/$what.md ]] || continue
  "draw_${what//-/_}"
  drawn=1
done
[[ $drawn -eq 1 ]] || die "nothing in $results: run bench.sh or scaling.sh first"
