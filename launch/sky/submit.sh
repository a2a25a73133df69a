#!/usr/bin/env bash
# Starts a managed job of SkyPilot. sky shows machines and prices, and asks before it
# starts any.
#   launch/sky/submit.sh --gpus=A100:8 \
#     --config=configs/mae_vitb.py --workdir=/mnt/mixjax/runs/mae_vitb
#
# All flags go to mixjax.main, but these:
#   --gpus=KIND:N  in each machine (A100:8)
#   --nodes=N      machines (1)
#   --tpu=KIND     a TPU slice instead, such as tpu-v6e-8
#   --on_demand    no spot machines
#   --yes          does not ask
#   --dry_run      only shows the command
# NAME and STORE, the bucket at /mnt/mixjax: see launch/env.example. To stop:
# sky jobs cancel --name NAME

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

gpus=A100:8 nodes=1 tpu='' options=()
flags=()
for flag in "$@"; do
  case $flag in
    --gpus=*) gpus=${flag#*=} ;;
    --nodes=*) nodes=${flag#*=} ;;
    --tpu=*) tpu=${flag#*=} ;;
    --on_demand) options+=(--no-use-spot) ;;
    --yes) options+=(--yes) ;;
    --dry_run) dry_run=yes ;;
    *) flags+=("$flag") ;;
  esac
done
whole nodes "$nodes"
load_env
need NAME STORE
need_config "${flags[@]}"
[ -n "$(value_of workdir "${flags[@]}")" ] ||
  die "--workdir=DIR is missing; it must be a folder below /mnt/mixjax."

if [ -n "$tpu" ]; then
  [ "$nodes" -eq 1 ] || die "--nodes goes with --gpus; a TPU slice is one node."
  say "asks for one TPU slice $tpu until the run is complete; sky says what it costs"
  what=("--gpus=$tpu" launch/sky/tpu.yaml)
else
  say "asks for $nodes x $gpus until the run is complete; sky says what it costs"
  what=("--gpus=$gpus" "--num-nodes=$nodes" launch/sky/gpu.yaml)
fi
run sky jobs launch "--name=$NAME" "--env=STORE=$STORE" \
  "--env=FLAGS=$(show "${flags[@]}")" "${options[@]}" "${what[@]}"
