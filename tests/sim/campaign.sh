#!/usr/bin/env bash
# Runs SEEDS seeds of the simulator from SEED on, in JOBS processes, and prints the sum of what they report:
#   campaign.sh BUILD_DIR SEEDS SEED JOBS
# A failing seed is printed and shrunk; its process ends there, the others go on. What a process that was killed had
# reported before counts: each writes its figures every thousand seeds.
set -uo pipefail

sim=$1/tests/sim/sim seeds=$2 seed=$3 jobs=$4
reports=$1/tests/sim/campaign
share=$(((seeds + jobs - 1) / jobs))
rm -rf "$reports" && mkdir -p "$reports"

pids=() status=0
for ((job = 0; job < jobs && job * share < seeds; ++job)); do
  count=$((seeds - job * share < share ? seeds - job * share : share))
  "$sim" --seed $((seed + job * share)) --seeds "$count" --report "$reports/$job" >"$reports/$job.out" 2>&1 &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM
for job in "${!pids[@]}"; do
  wait "${pids[$job]}" && continue
  status=1
  echo "process $job of $jobs:"
  cat "$reports/$job.out"
done
"$sim" --merge $(find "$reports" -name '[0-9]*' ! -name '*.*') || status=1
exit "$status"
