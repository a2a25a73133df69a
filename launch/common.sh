# shellcheck shell=bash
# What the scripts of this folder share; it is sourced, not run. Needs bash 4.4.

dry_run=${dry_run:-}

die() {  # a wrong or missing argument: one sentence and exit code 2
  echo "error: $1" >&2
  exit 2
}

fail() {  # anything else that went wrong
  echo "error: $1" >&2
  exit 1
}

say() {
  echo "$*" >&2
}

help() {  # the comment that the script $1 opens with
  sed -n '2,/^$/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$1"
  exit 0
}

show() {  # a command as it could be typed
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

run() {  # runs a command, or with --dry_run only shows it
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

only_dry_run() {  # of a script without other flags
  local flag
  for flag in "$@"; do
    case $flag in
      --dry_run) dry_run=yes ;;
      *) die "$flag is not a flag of $0; see --help." ;;
    esac
  done
}

whole() {  # whole NAME VALUE: VALUE must be a number from 1
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--$1=$2 is not a whole number from 1."
}

load_env() {  # names such as PROJECT and ZONE; what is exported already wins
  local file=${MIXJAX_ENV:-launch/env}
  if [ -f "$file" ]; then
    # shellcheck source=/dev/null
    . "$file"
  fi
}

need() {  # the variables named must have a value
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] ||
      die "$name is not set: copy launch/env.example to launch/env, or export $name."
  done
}

value_of() {  # value_of FLAG ARGUMENTS...: what --FLAG=... says, if it is there
  local flag=$1 argument value=
  shift
  for argument in "$@"; do
    case $argument in "--$flag="*) value=${argument#*=} ;; esac
  done
  echo "$value"
}

need_config() {  # the flags of a training command must name a recipe
  [ -n "$(value_of config "$@")" ] ||
    die "--config=FILE is missing, such as --config=configs/mae_vitb.py."
}

workdir_of() {  # the folder of the run that these flags mean, as mixjax.main has it
  local workdir recipe
  workdir=$(value_of workdir "$@")
  recipe=$(value_of config "$@")
  recipe=$(basename "${recipe%%:*}" .py)
  echo "${workdir:-runs/$recipe}"
}

rank() {  # how bad an exit code is: 0 done, 1 saved, 2 lost, 3 to be mended by a person
  if [ "$1" -eq 0 ]; then echo 0
  elif [ "$1" -eq 75 ]; then echo 1
  elif [ "$1" -eq 76 ] || [ "$1" -ge 128 ]; then echo 2  # 128 + N: killed by signal N
  else echo 3
  fi
}

newest_checkpoint() {  # the highest step saved in workdir $1; nothing if there is none
  local folder step newest=
  for folder in "$1"/checkpoints/*; do
    step=${folder##*/}
    if [[ $step =~ ^[0-9]+$ ]] && [ "$step" -gt "${newest:--1}" ]; then
      newest=$step
    fi
  done
  echo "$newest"
}

tpu() {  # gcloud compute tpus ..., in the project and zone
  run gcloud compute tpus "$@" "--zone=$ZONE" "--project=$PROJECT"
}

tpu_state() {  # the state of the request NAME, or MISSING
  local errors
  errors=$(mktemp)
  # shellcheck disable=SC2153  # NAME comes from launch/env
  if tpu queued-resources describe "$NAME" "--format=value(state.state)" 2>"$errors"
  then
    rm "$errors"
  elif grep -qi "not.found" "$errors"; then
    rm "$errors"
    echo MISSING
  else  # no network, no rights: not the same as "there is none"
    cat "$errors" >&2
    rm "$errors"
    return 1
  fi
}
