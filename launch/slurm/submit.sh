#!/usr/bin/env bash
# Submits launch/slurm/train.sbatch and says what it may use.
#   launch/slurm/submit.sh --nodes=2 --gpus=8 --time=24:00:00 \
#     --config=configs/mae_vitb.py --workdir=/shared/runs/mae_vitb
#
# All flags go to the job, but these:
#   --nodes=N        whole machines (1)
#   --gpus=N         GPUs in each (8)
#   --time=HH:MM:SS  after which the job saves and joins the queue again (24:00:00)
#   --dry_run        only shows the command
# Partition, account and so on: export SBATCH_PARTITION, SBATCH_ACCOUNT, ... A second
# job for the same workdir waits for the first one.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

nodes=1 gpus=8 time=24:00:00
flags=()
for flag in "$@"; do
  case $flag in
    --nodes=*) nodes=${flag#*=} ;;
    --gpus=*) gpus=${flag#*=} ;;
    --time=*) time=${flag#*=} ;;
    --dry_run) dry_run=yes ;;
    *) flags+=("$flag") ;;
  esac
done
whole nodes "$nodes"
whole gpus "$gpus"
[[ $time =~ ^([0-9]+):[0-5][0-9]:[0-5][0-9]$ ]] || die "--time=$time is not HH:MM:SS."
hours=$((10#${BASH_REMATCH[1]} + 1))
need_config "${flags[@]}"
workdir=$(workdir_of "${flags[@]}")

say "$nodes nodes of $gpus GPUs until the run is complete, $time at a time:"
say "less than $((nodes * gpus * hours)) GPU-hours each time"
run mkdir -p "$workdir/slurm"
run sbatch "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gres=gpu:$gpus" \
  "--time=$time" "--job-name=mixjax:$workdir" --dependency=singleton \
  "--output=$workdir/slurm/%j.log" launch/slurm/train.sbatch "${flags[@]}"
