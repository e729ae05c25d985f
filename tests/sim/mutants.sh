#!/usr/bin/env bash
# Runs the simulator and the unit tests with each condition of core/repl and core/vote switched off and on, and each part
# of one left out:
#   mutants.sh BUILD_DIR SEEDS JOBS [PATTERN]
# A mutant is found when a seed breaks a promise, a test fails, or something aborts or hangs: first few seeds are tried,
# then the unit tests of its layer, then all SEEDS seeds. One that is not found must stand in mutants_left.txt, under its
# reason. PATTERN (a regular expression): only mutants with such names.
set -euo pipefail

build=$1/tests/sim seeds=$2 jobs=$3 pattern=${4:-.}
here=$(dirname "$(readlink -f "$0")")
results=$build/mutated/results.txt
first_seeds=40
: >"$results"

# attempt WAY COMMAND...: true when the mutant is found; notes by what.
attempt() {
  local way=$1 text
  shift
  text=$(ulimit -v 4000000 -t 20 && timeout -k 1 300 "$@" 2>&1) && return 1
  by="$way"$'\t'$(grep -m1 -aoE '^(seed [0-9]+: [^:]*|P8[^:]*|TEST CASE: .*|level=error.*)|FATAL.*' <<<"$text" | head -c 120 || true)
}
run_one() {
  local number=$1 name=$2 by='left' unit=mutated_unit_repl
  export RD_MUTANT=$number RD_SEEDS=400
  if [[ -f $sources/vote/${name%% *} ]]; then unit=mutated_unit_vote RD_SEEDS=40; fi
  attempt simulator "$build/mutated_sim" --seeds "$first_seeds" --no-shrink ||
    attempt 'unit tests' "$build/$unit" --abort-after=1 --no-colors --test-case-exclude='*random*' ||
    attempt 'unit tests' "$build/$unit" --abort-after=1 --no-colors --test-case='*random*' ||
    attempt simulator "$build/mutated_sim" --seed $((first_seeds + 1)) --seeds $((seeds - first_seeds)) --no-shrink || true
  printf '%s\t%s\n' "$name" "$by" >>"$results"
}
export -f attempt run_one
export build seeds results first_seeds sources="$here/../../core"

# With none switched all must be clean.
RD_CONDITIONS=$build/mutated/counts.txt "$build/mutated_sim" --seeds "$seeds" >/dev/null
# "times false, times true, condition" of those that were always the same.
join -t $'\t' <(sort "$build/mutated/counts.txt") <(sort "$build/mutated/mutants.txt") |
  awk -F '\t' -v OFS='\t' '$2 == 0 || $3 == 0 { sub(/ never/, "", $4); print $2, $3, $4 }' |
  sort -t $'\t' -k 3 >"$build/mutated/unreached.txt"
RD_SEEDS=400 "$build/mutated_unit_repl" >/dev/null
RD_SEEDS=40 "$build/mutated_unit_vote" >/dev/null

grep -E -- "$pattern" "$build/mutated/mutants.txt" | tr '\t' '\n' | tr '\n' '\0' |
  xargs -0 -n 2 -P "$jobs" bash -c 'run_one "$1" "$2"' _

# count COLUMN: mutants whose result begins so.
count() { cut -f 2 "$results" | grep -c "^$1" || true; }
bad=0
while IFS=$'\t' read -r name _; do
  if ! grep -qxF -- "$name" "$here/mutants_left.txt"; then
    echo "not found, and no reason given: $name"
    bad=$((bad + 1))
  fi
done < <(grep -P '\tleft$' "$results" | sort)
while read -r name; do
  [[ -n $name && $name != \#* ]] || continue
  if ! cut -f 2 "$build/mutated/mutants.txt" | grep -qxF -- "$name"; then
    echo "in mutants_left.txt, but there is no such mutant: $name"
    bad=$((bad + 1))
  elif grep -F -- "$name"$'\t' "$results" | grep -qvP '\tleft$'; then
    echo "in mutants_left.txt, but found: $name"
  fi
done <"$here/mutants_left.txt"
echo "conditions that were always true, always false or never looked at in the simulator:" \
  "$(wc -l <"$build/mutated/unreached.txt") of $(wc -l <"$build/mutated/counts.txt") ($build/mutated/unreached.txt)"
echo "$(wc -l <"$results") mutants: $(count simulator) found by the simulator, $(count unit) by unit tests," \
  "$(count left) left with a reason or in the list above ($results)"
[[ $bad -eq 0 ]]
