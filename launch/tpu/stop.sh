#!/usr/bin/env bash
# Asks the run on the TPU to save and end, and waits for it. The second time, while it
# is still saving, it is killed.
#   launch/tpu/stop.sh --delete
#
#   --delete    then deletes the TPU, which ends the costs; also if no run is there
#   --dry_run   only shows the commands
# Where: PROJECT ZONE NAME, see launch/env.example.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

delete=
for flag in "$@"; do
  case $flag in
    --delete) delete=yes ;;
    --dry_run) dry_run=yes ;;
    *) die "$flag is not a flag of $0; see --help." ;;
  esac
done
load_env
need PROJECT ZONE NAME

state=$(tpu_state)
if [ -n "$dry_run" ]; then echo "$state"; else say "$NAME is $state"; fi
if [ "$state" = ACTIVE ] || [ -n "$dry_run" ]; then
  tpu tpu-vm ssh "$NAME" --worker=all "--command=bash mixjax/worker.sh stop"
fi
if [ -n "$delete" ] && [ "$state" != MISSING ]; then
  tpu queued-resources delete "$NAME" --force --quiet
fi
