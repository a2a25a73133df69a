#!/usr/bin/env bash
# Installs on every worker of the TPU what a run needs, and mounts SHARE at /mnt/mixjax.
# May be repeated; prints the versions, which must be the same on all workers.
#   launch/tpu/setup.sh
#
#   --dry_run   only shows the commands
# Where: PROJECT ZONE NAME SHARE, see launch/env.example.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."
only_dry_run "$@"
load_env
need PROJECT ZONE NAME

tpu tpu-vm ssh "$NAME" --worker=all "--command=mkdir -p mixjax"
tpu tpu-vm scp requirements.txt launch/tpu/worker.sh "$NAME:mixjax/" --worker=all
tpu tpu-vm ssh "$NAME" --worker=all \
  "--command=$(show bash mixjax/worker.sh setup ${SHARE:+"$SHARE"})"
