#!/usr/bin/env bash
# ImageNet-1K from the official archives, which image-net.org gives to those who have
# agreed to its terms: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, and for
# --as=folders ILSVRC2012_devkit_t12.tar.gz.
#   launch/data/prepare_imagenet.sh --as=folders --tars=/data/archives --to=/data/in1k
#
#   --tars=DIR   where the archives are
#   --to=DIR     where the pictures go; 150 GB
#   --as=WHAT    folders: DIR/train/CLASS and DIR/val/CLASS, for
#                  --config.data.source=folder:DIR
#                tfds: records, for --config.data.source=tfds:imagenet2012 and
#                  TFDS_DATA_DIR=DIR; needs pip install -r requirements-prepare.txt
#   --no_md5     does not check the archives, which takes minutes
#   --expect=CLASSES,TRAIN,VAL  how many there must be (1000,1281167,50000)
#   --dry_run    only shows the commands
# The same command again goes on where it stopped.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"

tars='' to='' as='' md5=yes expect=1000,1281167,50000
for flag in "$@"; do
  case $flag in
    --tars=*) tars=${flag#*=} ;;
    --to=*) to=${flag#*=} ;;
    --as=*) as=${flag#*=} ;;
    --no_md5) md5='' ;;
    --expect=*) expect=${flag#*=} ;;
    --dry_run) dry_run=yes ;;
    *) die "$flag is not a flag of $0; see --help." ;;
  esac
done
[ -n "$tars" ] || die "--tars=DIR is missing; it names the folder of the archives."
[ -n "$to" ] || die "--to=DIR is missing; it names the folder to be made."
[[ $expect =~ ^[0-9]+,[0-9]+,[0-9]+$ ]] || die "--expect=$expect is not three numbers."
IFS=, read -r classes train_pictures val_pictures <<<"$expect"
train=$tars/ILSVRC2012_img_train.tar
val=$tars/ILSVRC2012_img_val.tar
devkit=$tars/ILSVRC2012_devkit_t12.tar.gz
case $as in
  folders) archives=("$train" "$val" "$devkit") ;;
  tfds) archives=("$train" "$val") ;;
  *) die "--as=$as is neither folders nor tfds." ;;
esac
for archive in "${archives[@]}"; do
  [ -f "$archive" ] || die "$archive is missing; image-net.org has it."
done

if [ -n "$md5" ]; then
  sums=(
    "1d675b47d978889d74fa0da5fadfb00e  $train"
    "29b22e2961454d5413ddabcf34fc5622  $val"
  )
  if [ "$as" = folders ]; then
    sums+=("fa75699e90414af021442c21a62c3abf  $devkit")
  fi
  if [ -n "$dry_run" ]; then
    show md5sum "${archives[@]}"
  else
    printf '%s\n' "${sums[@]}" | md5sum --check ||
      fail "an archive is damaged or another one; download it again."
  fi
fi

if [ "$as" = tfds ]; then
  manual=$to/downloads/manual
  run mkdir -p "$manual"
  for archive in "${archives[@]}"; do
    run ln -sfn "$(realpath "$archive")" "$manual/"
  done
  to=$(realpath -m "$to")
  cd "$here/../.."
  run python -m mixjax.prepare imagenet2012 "--data_dir=$to"
  exit 0
fi

if [ -n "$dry_run" ]; then
  echo "# for every CLASS.tar in it:"
  echo "tar -xOf $(show "$train") CLASS.tar | tar -xf - -C $(show "$to")/train/CLASS"
  show tar -xf "$val" -C "$to/val"
  show python "$here/val_classes.py" "$devkit"
  echo "# every picture of val is moved to the folder of the class that this prints"
  exit 0
fi

# What is half done has a name of its own, so that nobody takes it for the whole.
mkdir -p "$to/train"
for archive in $(tar -tf "$train"); do
  class=${archive%.tar}
  if [ -d "$to/train/$class" ]; then continue; fi
  rm -rf "$to/unpacking"
  mkdir "$to/unpacking"
  tar -xOf "$train" --occurrence=1 "$archive" | tar -xf - -C "$to/unpacking"
  mv "$to/unpacking" "$to/train/$class"
done
if [ ! -d "$to/val" ]; then
  rm -rf "$to/unpacking"
  mkdir "$to/unpacking"
  tar -xf "$val" -C "$to/unpacking"
  python "$here/val_classes.py" "$devkit" >"$to/val_classes.txt"
  while read -r picture class; do
    mkdir -p "$to/unpacking/$class"
    mv "$to/unpacking/$picture" "$to/unpacking/$class/"
  done <"$to/val_classes.txt"
  mv "$to/unpacking" "$to/val"
fi

count() {  # count SPLIT PICTURES: as many classes and pictures as there must be?
  local folders pictures
  folders=$(find "$to/$1" -mindepth 1 -maxdepth 1 -type d | wc -l)
  pictures=$(find "$to/$1" -mindepth 2 -name '*.JPEG' | wc -l)
  say "$1: $((folders)) classes, $((pictures)) pictures"
  [ "$folders" -eq "$classes" ] || fail "$to/$1 should have $classes classes."
  [ "$pictures" -eq "$2" ] || fail "$to/$1 should have $2 pictures."
}
count train "$train_pictures"
count val "$val_pictures"
