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

# What needs so many seconds of processor time with no condition switched may take three times as long with one.
clean() {
  local seconds
  seconds=$(TIMEFORMAT=%U && { time "$@" >/dev/null 2>&1; } 2>&1) || { echo "fails with no condition switched: $*" >&2 && exit 1; }
  echo $((3 * ${seconds%.*} + 3))
}
first_sim() { "$build/mutated_sim" --seeds "$first_seeds" --no-shrink; }
last_sim() { "$build/mutated_sim" --seed $((first_seeds + 1)) --seeds $((seeds - first_seeds)) --no-shrink; }
fast_unit() { "$build/mutated_unit_$1" --abort-after=1 --no-colors --test-case-exclude='*random*'; }
random_unit() { "$build/mutated_unit_$1" --abort-after=1 --no-colors --test-case='*random*'; }

# attempt WAY SECONDS FUNCTION [ARGUMENT]: true when the mutant is found; notes by what.
attempt() {
  local way=$1 text
  text=$(ulimit -v 4000000 -t "$2" && timeout -k 1 300 "$BASH" -c '"$@"' _ "${@:3}" 2>&1) && return 1
  by="$way"$'\t'$(grep -m1 -aoE '^(seed [0-9]+: [^:]*|P8[^:]*|TEST CASE: .*|level=error.*)|FATAL.*' <<<"$text" | head -c 120 || true)
}
run_one() {
  local number=$1 name=$2 differs=$3 by='left' layer=repl
  export RD_MUTANT=$number RD_SEEDS=400
  if [[ -f $sources/vote/${name%% *} ]]; then layer=vote RD_SEEDS=40; fi
  { ((differs)) && attempt 'first seeds' "$first_seconds" first_sim; } ||
    attempt 'unit tests' "$fast_seconds" fast_unit $layer ||
    attempt 'unit tests' "$random_seconds" random_unit $layer ||
    { ((differs)) && attempt 'other seeds' "$last_seconds" last_sim; } || true
  printf '%s\t%s\n' "$name" "$by" >>"$results"
}
export -f attempt run_one first_sim last_sim fast_unit random_unit
export build seeds results first_seeds sources="$here/../../core"

# With none switched all must be clean.
first_seconds=$(clean first_sim)
last_seconds=$(clean last_sim)
fast_seconds=$(RD_SEEDS=400 clean fast_unit repl)
random_seconds=$(RD_SEEDS=400 clean random_unit repl)
RD_SEEDS=40 clean fast_unit vote >/dev/null
RD_SEEDS=40 clean random_unit vote >/dev/null
export first_seconds last_seconds fast_seconds random_seconds
RD_CONDITIONS=$build/mutated/counts.txt "$build/mutated_sim" --seeds "$seeds" >/dev/null
# "times false, times true, condition" of those that were always the same.
join -t $'\t' <(sort "$build/mutated/counts.txt") <(sort "$build/mutated/mutants.txt") |
  awk -F '\t' -v OFS='\t' '$2 == 0 || $3 == 0 { sub(/ never/, "", $4); print $2, $3, $4 }' |
  sort -t $'\t' -k 3 >"$build/mutated/unreached.txt"

# "number, name, 1 or 0": 0 if the simulator cannot differ, since the condition never comes out so there, or is not looked at.
awk -F '\t' -v OFS='\t' '
  NR == FNR { falses[$1] = $2; trues[$1] = $3; next }
  $1 in falses { condition = $1 }
  { looked = falses[condition] + trues[condition]
    if ($2 ~ / never( #[0-9]+)?$/) looked = trues[condition]
    if ($2 ~ / always( #[0-9]+)?$/) looked = falses[condition]
    print $1, $2, (looked > 0) }' "$build/mutated/counts.txt" "$build/mutated/mutants.txt" >"$build/mutated/todo.txt"
pattern=$pattern awk -F '\t' '$2 ~ ENVIRON["pattern"]' "$build/mutated/todo.txt" | tr '\t' '\n' | tr '\n' '\0' |
  xargs -0 -n 3 -P "$jobs" bash -c 'run_one "$1" "$2" "$3"' _

# count WAY: mutants whose result begins so.
count() { cut -f 2 "$results" | grep -c "^$1" || true; }
# No pipes into `grep -q`: it ends before what writes does, which then fails.
cut -f 2 "$build/mutated/mutants.txt" >"$build/mutated/names.txt"
grep -P '\tleft$' "$results" | cut -f 1 | sort >"$build/mutated/left.txt" || true
grep -vP '\tleft$' "$results" | cut -f 1 | sort >"$build/mutated/found.txt" || true
bad=0
while read -r name; do
  grep -qxF -- "$name" "$here/mutants_left.txt" && continue
  echo "not found, and no reason given: $name"
  bad=$((bad + 1))
done <"$build/mutated/left.txt"
while read -r name; do
  [[ -n $name && $name != \#* ]] || continue
  if ! grep -qxF -- "$name" "$build/mutated/names.txt"; then
    echo "in mutants_left.txt, but there is no such mutant: $name"
    bad=$((bad + 1))
  elif grep -qxF -- "$name" "$build/mutated/found.txt"; then
    echo "in mutants_left.txt, but found: $name"  # no error: some are found by chance
  fi
done <"$here/mutants_left.txt"
echo "conditions that were always true, always false or never looked at in the simulator:" \
  "$(wc -l <"$build/mutated/unreached.txt") of $(wc -l <"$build/mutated/counts.txt") ($build/mutated/unreached.txt)"
echo "$(wc -l <"$results") mutants: found by the first $first_seeds seeds $(count first), by unit tests $(count unit)," \
  "by the other seeds $(count other); $(count left) left with a reason or in the list above ($results)"
[[ $bad -eq 0 ]]
