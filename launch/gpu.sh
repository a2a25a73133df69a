#!/usr/bin/env bash
# One machine, one process, all of its GPUs (or its CPU): the run, started again while
# it ends as preempted (75) or hung (76).
#   launch/gpu.sh --config=configs/mae_vitb.py --workdir=/data/runs/mae_vitb
# Flags beside those of mixjax.main: see launch/local.sh --help.

set -euo pipefail
exec "$(dirname "$0")/local.sh" "$@"
