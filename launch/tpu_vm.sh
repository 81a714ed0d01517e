#!/usr/bin/env bash
# Trains on Cloud TPU VMs: a single host, a pod, or several slices joined over the data-centre network.
#
#   launch/tpu_vm.sh VERB [options] [-- arguments of maskdit train]
#
#   create    request the TPU and wait until it is ready
#   setup     install maskdit on every worker
#   check     on all workers together: devices, an all-reduce, the bucket, clocks, versions
#   run       check, then `maskdit train` on every worker, detached; nothing where it already runs
#   status    the state of the TPU and of the run on every worker
#   logs      the log of a worker, or of all
#   babysit   all of it until the run is finished: creates, sets up, runs; again after a preemption or a failure
#   stop      end the run on every worker (SIGTERM: it saves)
#   delete    delete the TPU and its queued resource
#
# Every verb is safe to repeat. Options, the environment variables that they stand for, [defaults]:
#
#   --name NAME           TPU_NAME      of the TPU and of its queued resource [maskdit]
#   --zone ZONE           ZONE          [that of gcloud]
#   --project PROJECT     PROJECT       [that of gcloud]
#   --type TYPE           ACCELERATOR   such as v5litepod-16, v6e-64, v5p-16 [v5litepod-8]
#   --runtime VERSION     RUNTIME       [the one for the type: v2-alpha-tpuv6e, v2-alpha-tpuv5, v2-alpha-tpuv5-lite,
#                                       tpu-ubuntu2204-base for v4 and older]
#   --slices N            SLICES        [1]
#   --spot                SPOT=1        cheaper, may be taken away at any time
#   --no-queue            NO_QUEUE=1    create the TPU at once or fail; by default the request waits in a queue
#   --valid-until TIME    VALID_UNTIL   give up waiting in the queue after a time such as 6h [wait on]
#   --no-wait             NO_WAIT=1     create: return while the request still waits
#   --create-flag FLAG    (repeat)      a further flag of gcloud's create, such as --reserved or --internal-ips
#   --iap                 IAP=1         reach the workers through Identity-Aware Proxy
#   --source SOURCE       SOURCE        a checkout, a wheel, or git+https://... [this checkout]
#   --commit COMMIT       COMMIT        of a checkout or a git address [HEAD]
#   --extras NAMES        EXTRAS        of the package [tpu,gcs]
#   --python VERSION      PYTHON_VERSION  on the workers [3.12]
#   --config CONFIG       CONFIG        as for maskdit train
#   --workdir DIR         WORKDIR       as for maskdit train: gs://BUCKET/... in the region of the TPU
#   --env NAME=VALUE      (repeat)      set for the run on every worker; it is shown
#   --no-check            NO_CHECK=1    run: without the check
#   --worker W            WORKER        logs: a number, or all [0]
#   --slice S             SLICE         logs: a number [0]
#   --lines N             LOG_LINES     logs: how many [50]
#   --follow              FOLLOW=1      logs: and go on
#   --poll SECONDS        POLL          between two looks at a state [30]
#   --max-failures N      MAX_FAILURES  babysit: give up after so many; preemptions do not count [5]
#   --grace SECONDS       GRACE         stop: for saving, before SIGKILL [300]
#   --dry-run             DRY_RUN=1     show the commands, run none

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

TPU_NAME=${TPU_NAME:-maskdit} ZONE=${ZONE:-} PROJECT=${PROJECT:-} ACCELERATOR=${ACCELERATOR:-v5litepod-8}
RUNTIME=${RUNTIME:-} SLICES=${SLICES:-1} SPOT=${SPOT:-} NO_QUEUE=${NO_QUEUE:-} VALID_UNTIL=${VALID_UNTIL:-}
NO_WAIT=${NO_WAIT:-} IAP=${IAP:-} SOURCE=${SOURCE:-${here%/launch}} COMMIT=${COMMIT:-} EXTRAS=${EXTRAS:-tpu,gcs}
PYTHON_VERSION=${PYTHON_VERSION:-3.12} CONFIG=${CONFIG:-} WORKDIR=${WORKDIR:-} NO_CHECK=${NO_CHECK:-}
WORKER=${WORKER:-0} SLICE=${SLICE:-0} LOG_LINES=${LOG_LINES:-50} FOLLOW=${FOLLOW:-} POLL=${POLL:-30}
MAX_FAILURES=${MAX_FAILURES:-5} GRACE=${GRACE:-300} create_flags=() environment=()

declare -A value_options=(
  [--name]=TPU_NAME [--zone]=ZONE [--project]=PROJECT [--type]=ACCELERATOR [--runtime]=RUNTIME [--slices]=SLICES
  [--valid-until]=VALID_UNTIL [--source]=SOURCE [--commit]=COMMIT [--extras]=EXTRAS [--python]=PYTHON_VERSION
  [--config]=CONFIG [--workdir]=WORKDIR [--worker]=WORKER [--slice]=SLICE [--lines]=LOG_LINES [--poll]=POLL
  [--max-failures]=MAX_FAILURES [--grace]=GRACE
)
declare -A flag_options=(
  [--spot]=SPOT [--no-queue]=NO_QUEUE [--no-wait]=NO_WAIT [--iap]=IAP [--no-check]=NO_CHECK [--follow]=FOLLOW
  [--dry-run]=DRY_RUN
)
declare -A list_options=([--create-flag]=create_flags [--env]=environment)

# ---- the TPU ----

# The software of the TPU VM for its type.
runtime() {
  case $ACCELERATOR in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# Looks at the queued resource and the nodes. Sets STATE (missing, waiting, ready, lost), VIA (queue, node), WORKERS and
# SEEN, what the cloud said. Lists rather than describes: a list without the TPU is an answer, an error is an error.
look() { # WHAT-A-DRY-RUN-ASSUMES
  local queued nodes queue
  queued=$(run gcloud compute tpus queued-resources list "${where[@]}" \
    "--format=value(name.basename(),state.state)") || return 1
  nodes=$(run gcloud compute tpus tpu-vm list "${where[@]}" \
    "--format=value(name.basename(),state,networkEndpoints.len(),queuedResource.basename())") || return 1
  if [[ -n $DRY_RUN ]]; then
    STATE=$1 WORKERS=1 SEEN="dry run" VIA=queue
    [[ -z $NO_QUEUE ]] || VIA=node
    return
  fi
  queue=$(awk -F '\t' -v name="$TPU_NAME" '$1 == name { print $2 }' <<<"$queued")
  nodes=$(awk -F '\t' -v name="$TPU_NAME" -v slices="$SLICES" '
    BEGIN { for (i = 0; i < slices && slices > 1; i++) ours[name "-" i] }
    $1 == name || $4 == name || ($1 in ours)' <<<"$nodes")
  WORKERS=$(awk -F '\t' '{ n += $3 } END { print n + 0 }' <<<"$nodes")
  SEEN="queued resource: ${queue:-none}; nodes:$(awk -F '\t' 'NF { printf " %s %s", $1, $2 }' <<<"$nodes")"
  VIA=node
  [[ -z $queue ]] || VIA=queue
  STATE=waiting
  case $queue in
    FAILED | SUSPENDING | SUSPENDED) STATE=lost ;;
    ACTIVE | '')
      if [[ -z $queue$nodes ]]; then
        STATE=missing
      elif grep -qE $'\t(PREEMPTED|TERMINATED|STOPPED|STOPPING|HIDING|HIDDEN|UNKNOWN)\t' <<<"$nodes"; then
        STATE=lost
      elif (($(grep -c $'\tREADY\t' <<<"$nodes") == SLICES)) && ! grep -qv $'\tREADY\t' <<<"$nodes"; then
        STATE=ready
      fi
      ;;
  esac
}

# Requests the TPU; only for a missing one.
request() {
  local way=queued-resources flags=(--runtime-version="$RUNTIME")
  if [[ -n $NO_QUEUE ]]; then
    way=tpu-vm flags=(--version="$RUNTIME")
  elif ((SLICES > 1)); then
    flags+=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
  else
    flags+=(--node-id="$TPU_NAME")
  fi
  [[ -z $VALID_UNTIL ]] || flags+=(--valid-until-duration="$VALID_UNTIL")
  [[ -z $SPOT ]] || flags+=(--spot)
  run gcloud compute tpus "$way" create "$TPU_NAME" "${where[@]}" --accelerator-type="$ACCELERATOR" "${flags[@]}" \
    "${create_flags[@]}" --quiet
}

create() {
  look missing || return 1
  if [[ $STATE == missing ]]; then
    request
    [[ -z $DRY_RUN && -z $NO_WAIT ]] || return 0
    look ready || return 1
  fi
  while [[ $STATE == waiting || $STATE == missing ]] && [[ -z $NO_WAIT ]]; do # a new one may take a while to be listed
    say "$TPU_NAME is not ready yet ($SEEN)"
    sleep "$POLL"
    look ready || return 1
  done
  case $STATE in
    ready) say "$TPU_NAME is ready: $WORKERS worker(s)" ;;
    waiting) say "$TPU_NAME waits ($SEEN); the same command without --no-wait waits with it" ;;
    *)
      say "$TPU_NAME was taken away or could not be made ($SEEN); delete it and create it again, or let babysit do so"
      return 1
      ;;
  esac
}

delete() {
  look ready || return 1
  if [[ $STATE == missing ]]; then
    say "there is no TPU $TPU_NAME; nothing to delete"
  elif [[ $VIA == queue ]]; then # --force deletes its nodes too
    run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${where[@]}" --quiet
  fi
}

# ---- the workers ----

needs_ready() {
  look ready || return 1
  case $STATE in
    ready) return ;;
    missing) say "there is no TPU $TPU_NAME; run create first" ;;
    *) say "$TPU_NAME is not ready ($SEEN)" ;;
  esac
  return 1
}

# gcloud's ssh or scp for the way in which the TPU was made: on_workers ssh|scp WORKER SLICE ARGUMENTS...
on_workers() {
  local verb=$1 worker=$2 slice=$3 command=(gcloud)
  if [[ $VIA == queue ]]; then
    command+=(compute tpus queued-resources "$verb" "${@:4}" "${where[@]}" --node="$slice" --worker="$worker")
  else
    [[ -z $IAP ]] || command+=(alpha)
    command+=(compute tpus tpu-vm "$verb" "${@:4}" "${where[@]}" --worker="$worker")
  fi
  [[ -z $IAP ]] || command+=(--tunnel-through-iap)
  run "${command[@]}" --quiet
}

# Runs the script that setup puts on every worker.
worker_script() {
  local missing="echo 'not set up; run setup first'; exit 1"
  [[ $1 != status ]] || missing="echo maskdit-worker new none; exit"
  on_workers ssh "${logs_of:-all}" "${logs_in:-all}" "$TPU_NAME" \
    --command="[ -f tpu_worker.sh ] || { $missing; }; bash tpu_worker.sh $(quoted "$@")"
}

setup() {
  local files=("$here/tpu_worker.sh") kind=git what=$SOURCE key=$SOURCE
  needs_ready || return 1
  case $SOURCE in
    git+*)
      [[ -z $COMMIT ]] || what+=@$COMMIT
      key=$what
      ;;
    *.whl)
      kind=wheel what=$(basename "$SOURCE") key=$(cksum <"$SOURCE")
      files+=("$SOURCE")
      ;;
    *)
      kind=archive what=maskdit-source.tar.gz key=$COMMIT
      files+=("$scratch/$what")
      run git -C "$SOURCE" archive --format=tar.gz --output="$scratch/$what" "$COMMIT" || return 1
      ;;
  esac
  on_workers scp all all "${files[@]}" "$TPU_NAME:" || return 1
  worker_script install "$kind" "$what" "$EXTRAS" "$PYTHON_VERSION" \
    "${key// /-},$EXTRAS,$PYTHON_VERSION"
}

# Starts phases on every worker and waits until the check is over there. It is a part of the detached job because all
# workers must be in it at once, and gcloud reaches only 64 at a time.
start() { # PHASES
  local arguments=("${train_args[@]}")
  [[ -z $CONFIG ]] || arguments=(--config "$CONFIG" "${arguments[@]}")
  needs_ready || return 1
  worker_script start "$1" "$run_key" "$WORKDIR" "${environment[@]}" -- "${arguments[@]}" || return 1
  [[ $1 == *check* && -z $DRY_RUN ]] || return 0
  while job && [[ $JOB == checking ]]; do sleep "$POLL"; done
  case $JOB in
    idle | training | finished) say "every worker passed the check" ;;
    *)
      say "the check did not pass ($WORDS); what the workers that failed say:"
      worker_script logs 20 failed
      return 1
      ;;
  esac
}

# Asks every worker for the run. Sets WORDS, how many say what, and JOB: idle, checking, training, finished, busy (with
# another run), broken (a worker failed or was stopped) or unreachable.
job() {
  local lines
  lines=$(worker_script status "$run_key" | sed -n 's/^maskdit-worker [^ ]* //p') || true
  WORDS=$(sort <<<"${lines:-no answer}" | uniq -c | awk '{ $1 = $1; printf "%s%s", (NR > 1 ? ", " : ""), $0 }')
  JOB=broken
  if (($(grep -c . <<<"$lines") < WORKERS)); then
    JOB=unreachable
  elif grep -q '^busy' <<<"$lines"; then
    JOB=busy
  elif ! grep -qv '^finished$' <<<"$lines"; then
    JOB=finished
  elif ! grep -qvE '^(none|checked)$' <<<"$lines"; then
    JOB=idle
  elif ! grep -qvE '^(checking|training|checked|finished)$' <<<"$lines"; then
    JOB=training
    if grep -q '^checking$' <<<"$lines"; then JOB=checking; fi
  fi
}

status() {
  look ready || return 1
  say "$TPU_NAME: $STATE ($SEEN)"
  [[ $STATE == ready ]] || return 0
  job
  [[ -n $DRY_RUN ]] || say "the run: $JOB ($WORDS)"
}

logs() {
  local logs_of=$WORKER logs_in=$SLICE mode=()
  needs_ready || return 1
  [[ $WORKER != all ]] || logs_in=all
  [[ -z $FOLLOW ]] || mode=(follow)
  worker_script logs "$LOG_LINES" "${mode[@]}"
}

stop() { needs_ready && worker_script stop "$GRACE"; }

# ---- the babysitter ----

# One look and what follows from it; 0 when the run is finished. What fails is tried again at the next look.
tend() {
  look ready || return 1
  say "$TPU_NAME: $STATE ($SEEN)"
  case $STATE in
    lost) # the next look finds it missing
      [[ $SEEN != *FAILED* ]] || failures=$((failures + 1))
      delete
      return 1
      ;;
    missing) request || failures=$((failures + 1)) ;;
  esac
  [[ $STATE == ready ]] || return 1
  job
  say "the run: $JOB ($WORDS)"
  case $JOB in
    finished) return 0 ;;
    checking | training | unreachable) return 1 ;;
    busy)
      say "another run goes on there: end it with stop, or babysit it with its own config, workdir and arguments"
      exit 1
      ;;
    broken)
      [[ $WORDS != *failed* && $WORDS != *lost* ]] || failures=$((failures + 1))
      if ((failures > MAX_FAILURES)) || ! stop; then return 1; fi
      ;;
  esac
  if setup; then start "$phases" || true; fi
  return 1
}

babysit() {
  failures=0
  if [[ -n $DRY_RUN ]]; then # one round
    look missing
    request
    setup
    start "$phases"
    job
    delete
    return
  fi
  until tend; do
    if ((failures > MAX_FAILURES)); then
      say "gave up after $failures failures, see logs; the TPU is still there and costs money until it is deleted"
      return 1
    fi
    sleep "$POLL"
  done
  say "the run is finished; the TPU is still there and costs money until it is deleted"
}

check_options() {
  needs_name --name "$TPU_NAME"
  needs_number --slices "$SLICES" 1
  needs_number --lines "$LOG_LINES" 1
  needs_number --poll "$POLL" 0
  needs_number --max-failures "$MAX_FAILURES" 0
  needs_number --grace "$GRACE" 1
  needs_number --slice "$SLICE" 0
  [[ $WORKER == all ]] || needs_number --worker "$WORKER" 0
  [[ $ACCELERATOR != tpu7x* ]] || fail "TPU7x is offered on GKE only: launch/gke.sh"
  [[ $ACCELERATOR =~ ^v[0-9][a-z]*-[0-9]+$ ]] ||
    fail "--type takes a type such as v5litepod-16, v6e-64 or v5p-16, got '$ACCELERATOR'"
  RUNTIME=${RUNTIME:-$(runtime)}
  if [[ -n $NO_QUEUE ]]; then
    ((SLICES == 1)) || fail "several slices are made through the queue; leave --no-queue out"
    [[ -z $VALID_UNTIL ]] || fail "--valid-until is for the queue; leave it or --no-queue out"
  fi
  needs_assignments "${environment[@]}"
  case $verb in
    run | babysit) needs_training "$WORKDIR" "$CONFIG" ;;
    check) [[ -n $WORKDIR ]] || fail "give the bucket to check: --workdir gs://BUCKET/PATH" ;;
  esac
  if [[ $verb == setup || $verb == babysit ]]; then check_source; fi
}

# Pins the commit here, so that the babysitter installs the same one again.
check_source() {
  case $SOURCE in
    git+*) ;;
    *.whl) [[ -f $SOURCE ]] || fail "there is no wheel '$SOURCE'" ;;
    *)
      git -C "$SOURCE" rev-parse --git-dir >/dev/null 2>&1 ||
        fail "--source takes a git checkout, a wheel or git+https://..., got '$SOURCE'"
      COMMIT=${COMMIT:-HEAD}
      git -C "$SOURCE" rev-parse --verify --quiet "$COMMIT^{commit}" >/dev/null ||
        fail "there is no commit '$COMMIT' in $SOURCE"
      COMMIT=$(git -C "$SOURCE" rev-parse "$COMMIT^{commit}")
      [[ -z $(git -C "$SOURCE" status --porcelain --untracked-files=no) ]] ||
        say "note: changes in $SOURCE that are not committed stay here"
      ;;
  esac
}

read_verb "create setup check run status logs babysit stop delete" "${1:-}"
read_options "${@:2}"
check_options

place
phases=check,train
[[ -z $NO_CHECK ]] || phases=train
run_key='' # tells this run from others on the same TPU
[[ -z $CONFIG ]] || run_key=$(printf '%s\n' "$WORKDIR" "$CONFIG" "${train_args[@]}" | cksum | cut -d ' ' -f 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[[ $verb != run && $verb != babysit || $WORKDIR == gs://* ]] ||
  say "note: $WORKDIR is a folder of each worker, of use on a single host only, and gone with the TPU"

case $verb in
  run) start "$phases" ;;
  check) start check ;;
  *) "$verb" ;;
esac
