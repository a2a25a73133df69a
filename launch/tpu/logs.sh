#!/usr/bin/env bash
# The end of what a run prints on a worker of the TPU.
#   launch/tpu/logs.sh --worker=0 --follow
#
#   --worker=N  which one (0), or all
#   --lines=N   how many lines (100)
#   --follow    goes on as it grows; Ctrl-C ends the looking, not the run
#   --dry_run   only shows the command
# Where: PROJECT ZONE NAME, see launch/env.example.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

worker=0 lines=100 follow=()
for flag in "$@"; do
  case $flag in
    --worker=*) worker=${flag#*=} ;;
    --lines=*) lines=${flag#*=} ;;
    --follow) follow=(--follow) ;;
    --dry_run) dry_run=yes ;;
    *) die "$flag is not a flag of $0; see --help." ;;
  esac
done
whole lines "$lines"
load_env
need PROJECT ZONE NAME

tpu tpu-vm ssh "$NAME" "--worker=$worker" \
  "--command=$(show tail "--lines=$lines" "${follow[@]}" mixjax/run.log)"
