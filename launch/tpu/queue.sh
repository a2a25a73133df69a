#!/usr/bin/env bash
# Asks for a Cloud TPU as a queued resource and waits until it is there.
#   launch/tpu/queue.sh --spot
#
#   --spot      cheaper, and may be taken away at any time
#   --recreate  a request that is over (SUSPENDED: taken away; FAILED) is deleted and
#               made again; without this flag nothing is ever deleted
#   --no_wait   leaves once the request is made
#   --poll=S    seconds between two looks (60)
#   --dry_run   only shows the commands
# Where and what: PROJECT ZONE NAME ACCELERATOR RUNTIME, see launch/env.example.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=../common.sh
. "$here/../common.sh"
[ "${1:-}" != --help ] || help "$0"
cd "$here/../.."

spot=() recreate='' wait=yes poll=60
for flag in "$@"; do
  case $flag in
    --spot) spot=(--spot) ;;
    --recreate) recreate=yes ;;
    --no_wait) wait='' ;;
    --poll=*) poll=${flag#*=} ;;
    --dry_run) dry_run=yes ;;
    *) die "$flag is not a flag of $0; see --help." ;;
  esac
done
load_env
need PROJECT ZONE NAME ACCELERATOR RUNTIME

create() {
  say "asking for one ${spot:+spot }TPU $ACCELERATOR in $ZONE, named $NAME: paid by the"
  say "chip-hour from ACTIVE until launch/tpu/stop.sh --delete; prices are on"
  say "https://cloud.google.com/tpu/pricing"
  tpu queued-resources create "$NAME" "--node-id=$NAME" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" "${spot[@]}"
}

delete() {  # --force also deletes what is left of the TPU; a spot TPU cannot restart
  tpu queued-resources delete "$NAME" --force --quiet
}

if [ -n "$dry_run" ]; then
  tpu_state
  if [ -n "$recreate" ]; then delete; fi
  create
  exit 0
fi

failed=0
while true; do
  state=$(tpu_state)
  say "$(date '+%F %T') $NAME is $state"
  case $state in
    ACTIVE) exit 0 ;;
    MISSING)
      create
      if [ -z "$wait" ]; then exit 0; fi
      ;;
    SUSPENDED | FAILED)
      [ -n "$recreate" ] ||
        fail "the request is over; --recreate deletes it and asks again."
      if [ "$state" = FAILED ]; then failed=$((failed + 1)); fi
      [ "$failed" -lt 5 ] || fail "the request has FAILED five times; see: $(
        show gcloud compute tpus queued-resources describe "$NAME" \
          "--zone=$ZONE" "--project=$PROJECT"
      )"
      delete
      create
      ;;
    *)  # WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, ...
      if [ -z "$wait" ]; then exit 0; fi
      ;;
  esac
  sleep "$poll"
done
