#!/usr/bin/env bash
# One task of a Slurm job: runs a command and writes its exit code to FOLDER/TASK.
#   launch/slurm/task.sh FOLDER COMMAND...

set -euo pipefail
[ $# -ge 2 ] || { echo "error: task.sh FOLDER COMMAND..." >&2; exit 2; }
codes=$1
shift
# Slurm sends its signals to this script as well; it must stay while python saves.
trap : TERM INT USR1
code=0
"$@" || code=$?
echo "$code" >"$codes/$SLURM_PROCID"
exit "$code"
