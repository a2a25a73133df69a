#!/usr/bin/env bash
# One machine, all of its GPUs: the run, again and again while it ends as preempted (75).
#   launch/gpu.sh --config=configs/mae_vitb.py --workdir=/data/runs/mae_vitb
set -u
cd "$(dirname "$0")/.." || exit 1
while true; do
  python -m mixjax.main "$@"
  code=$?
  [ "$code" -eq 75 ] || exit "$code"
  sleep 1  # a second signal, meant for this script, comes through
done
