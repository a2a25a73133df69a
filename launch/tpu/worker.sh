#!/usr/bin/env bash
# The part that runs on a worker of the TPU; the other scripts copy it to mixjax/ there
# and call it through ssh. All it makes lies in that folder.
#   worker.sh setup [SHARE]        installs; mounts gs://BUCKET or ADDRESS:/PATH
#   worker.sh start COMMIT FLAGS   starts mixjax.main with FLAGS, detached
#   worker.sh status | stop

set -euo pipefail
cd "$(dirname "$0")"

alive() {  # is the recorded process there, and still ours? a number may be used again
  [ -s run.pid ] && grep -qsa local.sh "/proc/$(cat run.pid)/cmdline"
}

setup() {
  if [ ! -x venv/bin/python ]; then
    # The images have an older Python than mixjax needs; uv brings one along.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --python 3.12 venv
  fi
  python3 -m uv pip install --quiet --python venv/bin/python \
    --requirement requirements.txt "jax[tpu]"
  if [ -n "${1:-}" ] && ! mountpoint -q /mnt/mixjax; then
    sudo mkdir -p /mnt/mixjax
    sudo chown "$(id -u):$(id -g)" /mnt/mixjax
    case $1 in
      gs://*)
        # A checkpoint appears by renaming its folder, which gcsfuse must be told to do
        # in a bucket without hierarchical namespace.
        gcsfuse --implicit-dirs --rename-dir-limit=100000 "${1#gs://}" /mnt/mixjax
        ;;
      *)
        sudo apt-get install --yes --quiet nfs-common
        sudo mount -t nfs "$1" /mnt/mixjax
        ;;
    esac
  fi
  venv/bin/python -c 'import sys, importlib.metadata as m; print(
    "python", sys.version.split()[0], *(p + " " + m.version(p) for p in (
    "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint")))'
}

start() {
  local commit=$1
  if alive; then
    echo "$HOSTNAME: already running commit $(cat run.commit); nothing to do"
    return
  fi
  if [ ! -d "code/$commit" ]; then
    mkdir -p code/new
    tar -xzf "$commit.tar.gz" -C code/new
    mv code/new "code/$commit"
  fi
  rm -f run.code run.pid
  echo "$commit" >run.commit
  setsid nohup bash worker.sh watch "$@" >>run.log 2>&1 </dev/null &
  for ((i = 0; i < 50; i++)); do
    if [ -s run.pid ]; then break; fi
    sleep 0.1
  done
  echo "$HOSTNAME: started commit $commit"
}

watch() {  # outlives the run, to write down its exit code
  local commit=$1 code=0
  shift
  export PATH=$PWD/venv/bin:$PATH
  "code/$commit/launch/local.sh" "$@" &
  echo $! >run.pid
  wait $! || code=$?
  echo "$code" >run.code
}

status() {
  if alive; then
    echo "$HOSTNAME: state=running commit=$(cat run.commit)"
    tail -n 1 run.log
  elif [ -s run.code ]; then
    echo "$HOSTNAME: state=ended code=$(cat run.code)"
  elif [ -s run.pid ]; then  # killed from outside, or the machine was started anew
    echo "$HOSTNAME: state=gone"
  else
    echo "$HOSTNAME: state=none"
  fi
}

stop() {
  if ! alive; then
    status
    return
  fi
  kill "$(cat run.pid)"
  for ((i = 0; i < 300; i++)); do
    sleep 1
    if ! alive; then
      sleep 0.2  # its exit code is being written down
      status
      return
    fi
  done
  echo "$HOSTNAME: still saving after 300 s; the same command again kills it"
  return 1
}

case ${1:-} in
  setup | start | watch | status | stop) "$@" ;;
  *)
    echo "error: worker.sh setup, start, status or stop." >&2
    exit 2
    ;;
esac
