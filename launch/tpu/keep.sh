#!/usr/bin/env bash
# Keeps a run going on a TPU that may be taken away, until the run is complete: asks for
# the TPU, sets it up, starts the run, looks after both, and begins again when the TPU
# is gone. Meant for a small machine that stays on; may be stopped and started any time.
#   launch/tpu/keep.sh --spot \
#     --config=configs/mae_vitb.py --workdir=/mnt/mixjax/runs/mae_vitb
#
# All flags go to launch/tpu/run.sh, but these:
#   --spot      as in launch/tpu/queue.sh
#   --poll=S    seconds between two looks (60)
#   --dry_run   only shows the commands
# A TPU that is taken away is deleted, as with --recreate. The TPU of a complete run is
# left for you: launch/tpu/stop.sh --delete ends its costs.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

queue=(--recreate) poll=60
flags=()
for flag in "$@"; do
  case $flag in
    --spot) queue+=(--spot) ;;
    --poll=*) poll=${flag#*=} ;;
    --dry_run) dry_run=yes ;;
    *) flags+=("$flag") ;;
  esac
done
load_env
need PROJECT ZONE NAME ACCELERATOR RUNTIME
need_config "${flags[@]}"
queue+=("--poll=$poll")

begin() {
  launch/tpu/queue.sh "${queue[@]}" ${dry_run:+--dry_run} &&
    launch/tpu/setup.sh ${dry_run:+--dry_run} &&
    launch/tpu/run.sh "${flags[@]}" ${dry_run:+--dry_run}
}

if [ -n "$dry_run" ]; then
  begin
  exit 0
fi
while true; do
  code=0
  begin || code=$?
  if [ "$code" -eq 2 ]; then exit 2; fi
  if [ "$code" -ne 0 ]; then
    sleep "$poll"
    continue
  fi
  blind=0
  while sleep "$poll"; do
    if ! status=$(launch/tpu/status.sh); then
      # The network, or a worker that is just going: look again before doing anything.
      blind=$((blind + 1))
      if [ "$blind" -ge 5 ]; then break; fi
      continue
    fi
    blind=0
    say "$status"
    case $status in
      *state=gone* | *state=none*) break ;;  # what still runs is left running
      *state=running*) ;;
      *state=ended*)
        # Of several codes the smallest says most: 1 to 3 are causes, 76 a consequence.
        code=$(grep -o 'code=[0-9]*' <<<"$status" | cut -d= -f2 | grep -vx 0 |
          sort -n | head -n 1) || code=0
        say "the run has ended with $code; launch/tpu/stop.sh --delete ends the costs"
        exit "$code"
        ;;
      *) break ;;  # no longer ACTIVE
    esac
  done
done
