#!/usr/bin/env bash
# Submits a run to a GKE cluster with JobSet and a TPU node pool. The same command once
# more changes nothing; a JobSet that has ended must be deleted first (see --replace).
#   launch/gke/submit.sh --build \
#     --config=configs/mae_vitb.py --workdir=/mnt/mixjax/runs/mae_vitb
#
# All flags go to mixjax.main, but these:
#   --build       makes and pushes the image of the commit first
#   --commit=REV  of the image (HEAD); uncommitted changes are not in it
#   --replace     deletes the JobSet of this name first; its pods save and end
#   --dry_run     only shows the commands and the filled in JobSet
# What and where: NAME IMAGE TPU TOPOLOGY HOSTS CHIPS CLAIM, see launch/env.example, and
# the current context of kubectl.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

build='' replace='' revision=HEAD
flags=()
for flag in "$@"; do
  case $flag in
    --build) build=yes ;;
    --commit=*) revision=${flag#*=} ;;
    --replace) replace=yes ;;
    --dry_run) dry_run=yes ;;
    *) flags+=("$flag") ;;
  esac
done
load_env
need NAME IMAGE TPU TOPOLOGY HOSTS CHIPS CLAIM
whole HOSTS "$HOSTS"
whole CHIPS "$CHIPS"
need_config "${flags[@]}"
[ -n "$(value_of workdir "${flags[@]}")" ] ||
  die "--workdir=DIR is missing; it must be a folder below /mnt/mixjax."
commit=$(git rev-parse --verify --quiet "$revision^{commit}") ||
  die "--commit=$revision is no commit of this repository."
image=$IMAGE:$commit

flags+=("--devices=$((HOSTS * CHIPS))")
args=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${flags[@]}")
jobset=$(
  export NAME TPU TOPOLOGY HOSTS CHIPS CLAIM IMAGE=$image ARGS=$args
  python3 -c 'import os, string, sys
print(string.Template(sys.stdin.read()).substitute(os.environ))' <launch/gke/jobset.yaml
)

say "asks for $HOSTS hosts of $CHIPS chips ($TPU $TOPOLOGY):"
say "$((HOSTS * CHIPS)) chip-hours an hour, until: kubectl delete jobset $NAME"
if [ -n "$build" ]; then
  [ -z "$(git status --porcelain --untracked-files=no)" ] ||
    say "note: uncommitted changes are not in the image"
  docker_build=(docker build "--tag=$image" --file=launch/gke/Dockerfile -)
  if [ -n "$dry_run" ]; then
    echo "git archive $commit | $(show "${docker_build[@]}")"
  else
    git archive "$commit" | "${docker_build[@]}"
  fi
  run docker push "$image"
fi
if [ -n "$replace" ]; then
  run kubectl delete jobset "$NAME" --ignore-not-found
fi
if [ -n "$dry_run" ]; then
  printf '%s\n' "kubectl apply --filename=- <<'END'" "$jobset" END
else
  kubectl apply --filename=- <<<"$jobset"
fi
