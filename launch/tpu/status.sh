#!/usr/bin/env bash
# What has become of the TPU and of the run on each of its workers.
#   launch/tpu/status.sh
#
#   --dry_run   only shows the commands
# Where: PROJECT ZONE NAME, see launch/env.example.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."
only_dry_run "$@"
load_env
need PROJECT ZONE NAME

state=$(tpu_state)
echo "$state"
if [ "$state" = ACTIVE ] || [ -n "$dry_run" ]; then
  tpu tpu-vm ssh "$NAME" --worker=all "--command=bash mixjax/worker.sh status"
fi
