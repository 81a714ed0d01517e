#!/usr/bin/env bash
# Trains on TPU slices of Google Kubernetes Engine through XPK (pip install xpk; it needs gcloud, kubectl and docker).
#
#   launch/gke.sh VERB [options] [-- arguments of maskdit train]
#
#   create    a cluster with SLICES slices; an existing one is brought to that number
#   run       check, then `maskdit train` in every pod, from an image of this checkout; nothing where it already exists
#   list      the runs of the cluster
#   stop      end and remove the run (SIGTERM: it saves)
#   delete    delete the cluster
#
# Every verb is safe to repeat. Options, the environment variables that they stand for, [defaults]:
#
#   --name NAME           RUN_NAME      of the run [maskdit]
#   --cluster NAME        CLUSTER       [maskdit]
#   --zone ZONE           ZONE          [that of gcloud]
#   --project PROJECT     PROJECT       [that of gcloud]
#   --type TYPE           ACCELERATOR   such as v5litepod-16, v6e-64, tpu7x-64 [v5litepod-16]
#   --slices N            SLICES        [1]
#   --spot                SPOT=1        create: slices that are cheaper and may be taken away [on demand]
#   --image IMAGE         IMAGE         with Python 3.11 or newer; the checkout is added and installed [python:3.12]
#   --source DIR          SOURCE        the checkout [this one]
#   --config CONFIG       CONFIG        as for maskdit train
#   --workdir DIR         WORKDIR       as for maskdit train: gs://BUCKET/...
#   --env NAME=VALUE      (repeat)      set in every pod; it is shown
#   --no-check            NO_CHECK=1    run: without the check
#   --restarts N          RESTARTS      after preemptions and failures of a machine [100]
#   --dry-run             DRY_RUN=1     show the commands, run none

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

RUN_NAME=${RUN_NAME:-maskdit} CLUSTER=${CLUSTER:-maskdit} ZONE=${ZONE:-} PROJECT=${PROJECT:-} SLICES=${SLICES:-1}
ACCELERATOR=${ACCELERATOR:-v5litepod-16} SPOT=${SPOT:-} IMAGE=${IMAGE:-python:3.12} SOURCE=${SOURCE:-${here%/launch}}
CONFIG=${CONFIG:-} WORKDIR=${WORKDIR:-} NO_CHECK=${NO_CHECK:-} RESTARTS=${RESTARTS:-100}
environment=()
declare -A value_options=(
  [--name]=RUN_NAME [--cluster]=CLUSTER [--zone]=ZONE [--project]=PROJECT [--type]=ACCELERATOR [--slices]=SLICES
  [--image]=IMAGE [--source]=SOURCE [--config]=CONFIG [--workdir]=WORKDIR [--restarts]=RESTARTS
)
declare -A flag_options=([--spot]=SPOT [--no-check]=NO_CHECK [--dry-run]=DRY_RUN)
declare -A list_options=([--env]=environment)

create() {
  local capacity=--on-demand
  [[ -z $SPOT ]] || capacity=--spot
  run xpk cluster create "${where[@]}" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" "$capacity"
}

# Whether the cluster has the run; a finished one counts until it is removed. A dry run takes DRY-ANSWER, 0 for yes.
exists() { # DRY-ANSWER
  local listed
  listed=$(run xpk workload list "${where[@]}" --filter-by-job="^$RUN_NAME\$") || exit 1
  if [[ -n $DRY_RUN ]]; then return "$1"; fi
  grep -qE "^$RUN_NAME([[:space:]]|\$)" <<<"$listed"
}

# XPK starts the command in a subshell and sends SIGTERM to it: `exec` puts the supervisor in its place. Its exit code
# after a SIGTERM, 143, is one for which XPK's job set starts again; 1, an error of the program, is not.
workload() {
  local phases=check,train command pair flags=()
  if exists 1; then
    say "there is a run $RUN_NAME already; if it has ended, remove it with stop to start another"
    return
  fi
  [[ -z $NO_CHECK ]] || phases=train
  command="pip install --quiet -c constraints.txt '.[tpu,gcs]' && exec bash launch/tpu_worker.sh supervise "
  command+=$(quoted "$phases" "$WORKDIR" -- --config "$CONFIG" "${train_args[@]}")
  for pair in "${environment[@]}"; do flags+=(--env="$pair"); done
  run xpk workload create "${where[@]}" --workload="$RUN_NAME" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" \
    --base-docker-image="$IMAGE" --script-dir="$SOURCE" --max-restarts="$RESTARTS" \
    --termination-grace-period-seconds=120 "${flags[@]}" --command="$command"
}

stop() {
  if exists 0; then
    run xpk workload delete "${where[@]}" --workload="$RUN_NAME" --force
  else
    say "there is no run $RUN_NAME; nothing to stop"
  fi
}

read_verb "create run list stop delete" "${1:-}"
read_options "${@:2}"
needs_name --name "$RUN_NAME"
needs_name --cluster "$CLUSTER"
needs_number --slices "$SLICES" 1
needs_number --restarts "$RESTARTS" 0
[[ $ACCELERATOR =~ ^(v[0-9][a-z]*|tpu7x)-[0-9]+$ ]] ||
  fail "--type takes a type such as v5litepod-16 or v6e-64, got '$ACCELERATOR'"
needs_assignments "${environment[@]}"
if [[ $verb == run ]]; then
  needs_training "$WORKDIR" "$CONFIG"
  [[ -f $SOURCE/launch/tpu_worker.sh ]] || fail "--source takes a checkout of maskdit, got '$SOURCE'"
fi
place
where=(--cluster="$CLUSTER" "${where[@]}")

case $verb in
  create) create ;;
  run) workload ;;
  list) run xpk workload list "${where[@]}" ;;
  stop) stop ;;
  delete) run xpk cluster delete "${where[@]}" --force ;;
esac
