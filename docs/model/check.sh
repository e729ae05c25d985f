#!/bin/bash
# check.sh [quick|all]: verifies the models of this folder, then that each rule which is taken away is missed.
# Needs spin and gcc. quick: a few minutes on one core, <= 1 GB; all: about half an hour, <= 6 GB.
# Prints one line for each run; ends with an error if any is not as expected.
set -u
set_=${1:-quick}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
runs=0

# run WHEN MODEL EXPECT DEFINES...: EXPECT is ok (holds in every state) or fail (a counterexample exists)
run() {
  local when=$1 model=$2 expect=$3 got=broken begin=$SECONDS states
  shift 3
  [[ $set_ == all || $when == quick ]] || return 0
  rm -rf "$work/run" && mkdir "$work/run" && cp "$here/$model.pml" "$work/run/m.pml" && cd "$work/run" || exit 1
  runs=$((runs + 1))
  if spin "$@" -a m.pml >spin.log 2>&1 &&
     gcc -w -O1 -DSAFETY -DNOREDUCE -DCOLLAPSE -DMEMLIM=6000 -o pan pan.c >>spin.log 2>&1; then
    ./pan -E -m1000000 -w22 >pan.log 2>&1
    if grep -q 'Search not completed\|search depth too small' pan.log && ! grep -q 'errors: [1-9]' pan.log; then
      got=incomplete
    elif grep -q 'assertion violated' pan.log; then
      got=fail
    elif grep -q 'errors: 0' pan.log; then
      got=ok
    fi
  else
    cat spin.log
  fi
  states=$(awk '/states, stored/ {print $1}' pan.log 2>/dev/null)
  printf '%-9s %-4s %-10s %9s states %4ss  %s\n' "$model" "$expect" "$got" "${states:--}" $((SECONDS - begin)) "$*"
  [[ $got == "$expect" ]] || { bad=$((bad + 1)); echo "NOT AS EXPECTED: $model $*"; }
}

echo "model     want got"
# --- the rules as they are
run quick vote ok -DNH=2 -DNB=5 -DCHANGE=0 -DTWO
run quick vote ok -DNH=3 -DNB=4
run quick vote ok -DNH=4 -DV0=15 -DNB=3
run quick restart ok -DNP=1 -DNK=1
run quick restart ok -DSEMI -DNP=1 -DNK=1
run quick fork ok
run quick resync ok -DNV=2 -DNC=1 -DNP=2
run quick failover ok -DNB=3 -DNW=1 -DNC=1 -DDM=3
run quick handover ok -DNW=2
run quick handover ok -DNID=2 -DNW=2 -DNK=0 -DNR=0
run all vote ok -DNH=2 -DNB=6 -DCHANGE=0 -DTWO
run all vote ok -DNH=3 -DV0=7 -DNB=4
run all vote ok -DNH=4 -DV0=15 -DNB=4 -DCHANGE=0
run all vote ok -DPRENEW -DNH=3 -DNB=4
run all restart ok
run all restart ok -DSEMI
run all restart ok -DSEMI -DM_SHORTVOLATILE
run all restart ok -DNM=3 -DNP=1 -DNK=0
run all restart ok -DSEMI -DNM=3 -DNW=1 -DNP=1 -DNK=1
run all failover ok -DNB=3 -DNW=2 -DNC=2 -DDM=3
run all failover ok -DNB=4 -DNW=1 -DNC=2 -DDM=3
run all failover ok -DNB=4 -DNW=1 -DNC=0 -DDM=7
run all failover ok -DNB=3 -DNW=1 -DNC=2 -DDM=7
run all resync ok -DNV=2 -DNC=2 -DNP=2
run all resync ok -DNV=2 -DNC=1 -DNP=3
run all handover ok -DKEEPONLEAVE -DNW=2 -DNK=0 -DNR=0 -DNE=3

# --- one rule less
for rule in NOTIE NEWONLY OLDONLY ACCOLD ACCNEW BUILDEARLY COMPLETENEW LOWBASE; do
  run quick vote fail -DM_$rule -DNH=2 -DNB=5 -DCHANGE=0
done
for rule in NEWONLY OLDONLY ACCOLD ACCNEW BUILDEARLY COMPLETENEW; do run all vote fail -DM_$rule -DNH=3 -DNB=4; done
for rule in NOSHORT SHORTVOLATILE SHORTLATE CONFIRMEARLY KEEPISR GROWHOT; do run quick restart fail -DM_$rule; done
for rule in NOSHORT SHORTLATE CONFIRMEARLY ANYSHORT NOPRIMARY UNSYNCED; do
  run quick restart fail -DSEMI -DM_$rule
done
for rule in NOTAG HIGHER LONGER; do run quick fork fail -DM_$rule; done
for rule in ACKEARLY PROMOTEANY CACHEACK SAMEEPOCH FORGET; do
  run quick failover fail -DWEAK -DM_$rule -DNB=3 -DNW=2 -DNC=1 -DDM=3
done
run quick failover fail -DM_OLDFRAMES -DNB=3 -DNW=2 -DNC=1 -DDM=3
run all failover fail -DWEAK -DM_GROWLATE -DNB=5 -DNW=2 -DNC=2 -DDM=7
run all failover fail -DWEAK -DM_GROWUNFLUSHED -DNB=4 -DNW=1 -DNC=1 -DDM=3
run all failover fail -DWEAK -DM_NOFENCE -DNB=4 -DNW=1 -DNC=0 -DDM=7
run all failover fail -DM_GROWACKED -DNB=4 -DNW=1 -DNC=0 -DDM=7
for rule in NOREPAL ALEARLY NOUNION ALISR ALOFFNOMASK NOTHIRD; do
  run quick resync fail -DM_$rule -DNV=2 -DNC=2 -DNP=2
done
for rule in NOASK OWNLOG CACHEASK NOID NOREFUSE ANSWEREDONLY KEEPHELD NOSYNC SYNCLATE RESUMEOLD UNAPPLIED \
            SOURCEREADS ASKENDED; do
  run quick handover fail -DM_$rule -DNW=2 -DNK=0 -DNR=0 -DNE=3
done
run quick handover fail -DM_CLAIMKEEPS -DNW=2 -DNK=0 -DNR=1 -DNE=4

# --- not vacuous: the state that the run is about is reached
run quick vote fail -DREACHTWO -DNH=2 -DNB=4 -DCHANGE=0
run quick vote fail -DREACHADD -DNH=3 -DNB=3
run quick vote fail -DREACHREM -DNH=3 -DV0=7 -DNB=3
run quick vote fail -DREACHFOUR -DNH=4 -DV0=15 -DNB=3 -DCHANGE=0
run quick restart fail -DREACH
run quick restart fail -DREACHSHORT
run quick restart fail -DSEMI -DREACHSHORT
run quick fork fail -DREACH
run quick resync fail -DREACH -DNV=2 -DNC=1 -DNP=2
run quick handover fail -DREACHEND -DNW=2 -DNK=0 -DNR=0 -DNE=3
run quick handover fail -DREACHBACK -DNW=2 -DNK=0 -DNR=0 -DNE=3
run quick handover fail -DREACHTWICE -DNID=2 -DNW=1 -DNK=0 -DNR=0 -DNE=4
run all failover fail -DREACH -DNB=5 -DNW=2 -DNC=2 -DDM=3

echo "$runs runs, $bad not as expected"
[[ $bad == 0 ]]
