#!/usr/bin/env bash
# Runs the simulator with each condition of core/repl and core/vote switched off and on:
#   mutants.sh BUILD_DIR SEEDS JOBS
# A mutant is found when a seed breaks a promise, aborts or hangs. One that is not found must stand in mutants_left.txt,
# with the reason.
set -euo pipefail

build=$1/tests/sim seeds=$2 jobs=$3
here=$(dirname "$(readlink -f "$0")")
results=$build/mutated/results.txt
: >"$results"

run_one() {
  local number=$1 name=$2 text verdict
  text=$(RD_MUTANT=$number timeout 120 "$build/sim_mutants" --seeds "$seeds" --no-shrink 2>&1) && verdict=left || verdict=found
  printf '%s\t%s\t%s\n' "$verdict" "$name" "$(grep -m1 -oE '^(seed [0-9]+: [^:]*|P8[^:]*|level=error.*)' <<<"$text" | head -c 120)" >>"$results"
}
export -f run_one
export build seeds results

# With none switched the run must be clean.
RD_MUTANT=-1 "$build/sim_mutants" --seeds "$seeds" >/dev/null

tr '\t' '\n' <"$build/mutated/mutants.txt" | tr '\n' '\0' |
  xargs -0 -n 2 -P "$jobs" bash -c 'run_one "$1" "$2"' _

found=$(grep -c '^found' "$results" || true)
left=$(grep -c '^left' "$results" || true)
unexplained=0
while IFS=$'\t' read -r _ name _; do
  if ! grep -qF -- "$name"$'\t' "$here/mutants_left.txt"; then
    echo "not found, and no reason given: $name"
    unexplained=$((unexplained + 1))
  fi
done < <(grep '^left' "$results" | sort)
echo "mutants: $found found, $left left, $unexplained of them without a reason ($results)"
[[ $unexplained -eq 0 ]]
