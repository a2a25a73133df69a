#!/usr/bin/env bash
# One or several processes of a run on this machine, started again while that helps.
#   launch/local.sh --processes=2 --config=configs/quickstart.py --workdir=runs/two
#
# All flags go to mixjax.main, but these:
#   --processes=N  how many (1). With GPUs, process I uses GPU I; one process alone uses
#                  all of them, and is as fast.
#   --port=P       where the processes meet (8476); another for each run on the machine
#   --tries=N      starts in a row without a new checkpoint, after which 76, or a killed
#                  process, is final (5)
#   --grace=S      seconds between TERM and KILL for the others when one has failed (30)
#   --pause=S      seconds between two starts (1)
#   --dry_run      only shows the commands
#
# A signal (Ctrl-C, TERM, USR1) to this script goes to all processes; they save and this
# script ends with 75. A second one kills them. A signal to one process alone makes all
# of them save, and this script starts them again.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=common.sh
. "$here/common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/.."

processes=1 port=8476 tries=5 grace=30 pause=1
flags=()
for flag in "$@"; do
  case $flag in
    --processes=*) processes=${flag#*=} ;;
    --port=*) port=${flag#*=} ;;
    --tries=*) tries=${flag#*=} ;;
    --grace=*) grace=${flag#*=} ;;
    --pause=*) pause=${flag#*=} ;;
    --dry_run) dry_run=yes ;;
    --coordinator=* | --process=*) die "${flag%%=*} is set by this script." ;;
    *) flags+=("$flag") ;;
  esac
done
whole processes "$processes"
whole port "$port"
whole tries "$tries"
whole grace "$grace"
need_config "${flags[@]}"
workdir=$(workdir_of "${flags[@]}")

command_of() {  # sets command to what process $1 runs
  command=(python -m mixjax.main "${flags[@]}")
  if [ "$processes" -gt 1 ]; then
    command+=("--coordinator=127.0.0.1:$port" "--processes=$processes" "--process=$1")
    # JAX's own name for "of the GPUs that I see, use these"; CPUs take no notice.
    command=(env "JAX_LOCAL_DEVICE_IDS=$1" "${command[@]}")
  fi
}

declare -A running=()  # process number -> pid
signals=0

tell() {  # sends a signal to all that still run
  local pid
  for pid in "${running[@]}"; do
    # KILL also ends what they have started: each leads a process group of its own.
    if [ "$1" = KILL ]; then pid=-$pid; fi
    kill "-$1" -- "$pid" 2>/dev/null || true
  done
}

signalled() {
  signals=$((signals + 1))
  if [ "$signals" -eq 1 ]; then
    say "launch: asked to stop; the processes save"
    tell TERM
  else
    tell KILL
  fi
}
trap signalled INT TERM USR1

round() {  # starts all, waits for all; sets code to the worst of their exit codes
  local i left asked='' deadline=''
  code=0
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    set -m  # own process group: Ctrl-C comes to this script, which passes it on once
    "${command[@]}" </dev/null &
    set +m
    running[$i]=$!
  done
  if [ "$signals" -gt 0 ]; then tell TERM; fi  # it came between two starts
  while [ "${#running[@]}" -gt 0 ]; do
    for i in "${!running[@]}"; do
      if kill -0 "${running[$i]}" 2>/dev/null; then continue; fi
      left=0
      wait "${running[$i]}" || left=$?
      unset "running[$i]"
      if [ "$left" -ge 128 ] && [ -n "$asked" ]; then continue; fi  # our own KILL
      if [ "$(rank "$left")" -gt "$(rank "$code")" ]; then code=$left; fi
      if [ "$processes" -gt 1 ]; then say "launch: process $i ended with $left"; fi
    done
    if [ "$code" -ne 0 ] && [ -z "$asked" ]; then
      asked=yes
      if [ "$signals" -eq 0 ]; then tell TERM; fi  # once is enough
      # After 75 the others are saving the same step; after an error they cannot.
      if [ "$code" -eq 75 ]; then deadline=$((SECONDS + 10 * grace + 1))
      else deadline=$((SECONDS + grace + 1)); fi
    fi
    if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then tell KILL; fi
    sleep 0.1 || true  # Ctrl-C ends the sleep as well
  done
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    show "${command[@]}"
  done
  exit 0
fi

lost=0
before=$(newest_checkpoint "$workdir")
while true; do
  round
  if [ "$signals" -gt 0 ]; then exit "$code"; fi
  now=$(newest_checkpoint "$workdir")
  if [ "$now" != "$before" ]; then lost=0; fi
  before=$now
  case $(rank "$code") in
    0 | 3) exit "$code" ;;
    1) lost=0 ;;
    2) lost=$((lost + 1)) ;;
  esac
  if [ "$lost" -ge "$tries" ]; then
    say "launch: ended with $code $lost times without a new checkpoint; giving up"
    exit "$code"
  fi
  say "launch: ended with $code; starting again, newest checkpoint: ${now:-none}"
  sleep "$pause" || true
  if [ "$signals" -gt 0 ]; then exit "$code"; fi
done
