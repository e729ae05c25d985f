#!/bin/bash
# smoke.sh BINARY_DIR CORPUS_DIR SECONDS: every fuzz target for that long, starting from the corpus.
set -euo pipefail
binaries=$1 corpus=$2 seconds=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for target in "$binaries"/fuzz_*; do
  [[ -x $target && -f $target ]] || continue
  name=${target##*/fuzz_}
  mkdir "$scratch/$name"
  echo "== $name"
  # New inputs go to the scratch folder; a crash leaves its input there and fails the run.
  if ! "$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len=65536 -print_final_stats=1 \
      -artifact_prefix="$scratch/$name/crash-" "$scratch/$name" "$corpus/$name" 2> "$scratch/$name.log"; then
    tail -50 "$scratch/$name.log"
    for input in "$scratch/$name"/crash-*; do echo "input: $(base64 -w0 "$input")"; done
    exit 1
  fi
  grep -E 'number_of_executed_units|peak_rss_mb' "$scratch/$name.log"
  tail -1 "$scratch/$name.log"
done
