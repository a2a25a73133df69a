#!/usr/bin/env bash
# Data sets that TFDS downloads by itself, one after the other.
#   launch/data/prepare_sets.sh --to=/data/tfds small
#
#   --to=DIR    where they go; training reads them with TFDS_DATA_DIR=DIR
#   --dry_run   only shows the commands
# Then names of TFDS sets, or: small (CIFAR and STL-10), transfer (those of
# configs/transfer.py, but aircraft, which it says how to unpack). Sets that are there
# are left as they are. Needs pip install -r requirements-prepare.txt.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"

to='' sets=()
for word in "$@"; do
  case $word in
    --to=*) to=$(realpath -m "${word#*=}") ;;
    --dry_run) dry_run=yes ;;
    -*) die "$word is not a flag of $0; see --help." ;;
    small) sets+=(cifar10 cifar100 stl10) ;;
    transfer)
      sets+=(
        caltech101 cars196 cifar10 cifar100 dtd oxford_flowers102 food101
        oxford_iiit_pet sun397/standard-part1-120k voc/2007
      )
      ;;
    *) sets+=("$word") ;;
  esac
done
[ -n "$to" ] || die "--to=DIR is missing; it names the folder of the sets."
[ "${#sets[@]}" -gt 0 ] || die "name one set at least, such as cifar10, or small."

cd "$here/../.."
bad=()
for name in "${sets[@]}"; do
  run python -m mixjax.prepare "$name" "--data_dir=$to" || bad+=("$name")
done
[ "${#bad[@]}" -eq 0 ] || fail "not prepared: ${bad[*]}"
