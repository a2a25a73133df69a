#!/usr/bin/env bash
# Ships one commit to every worker of the TPU and starts the run there, detached: it
# goes on without this terminal, and starts itself again after 75 and 76. Workers where
# a run is going on are left alone.
#   launch/tpu/run.sh --config=configs/mae_vitb.py --workdir=/mnt/mixjax/runs/mae_vitb
#
# All flags go to mixjax.main, but these:
#   --commit=REV  what to ship (HEAD); uncommitted changes stay here
#   --dry_run     only shows the commands
# Where: PROJECT ZONE NAME, see launch/env.example.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

revision=HEAD
flags=()
for flag in "$@"; do
  case $flag in
    --commit=*) revision=${flag#*=} ;;
    --dry_run) dry_run=yes ;;
    *) flags+=("$flag") ;;
  esac
done
load_env
need PROJECT ZONE NAME
need_config "${flags[@]}"
[ -n "$(value_of workdir "${flags[@]}")" ] ||
  die "--workdir=DIR is missing; it must be a folder that all workers see."
commit=$(git rev-parse --verify --quiet "$revision^{commit}") ||
  die "--commit=$revision is no commit of this repository."
[ -z "$(git status --porcelain --untracked-files=no)" ] ||
  say "note: uncommitted changes are not shipped"

say "shipping commit $commit"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
archive=$folder/$commit.tar.gz
run git archive --format=tar.gz "--output=$archive" "$commit"
tpu tpu-vm scp "$archive" "$NAME:mixjax/" --worker=all
tpu tpu-vm ssh "$NAME" --worker=all \
  "--command=$(show bash mixjax/worker.sh start "$commit" "${flags[@]}")"
