#!/usr/bin/env bash
# Runs on each worker of a Cloud TPU, where launch/tpu_vm.sh copies it; in a container of GKE only `supervise` is used.
#
#   install KIND WHAT EXTRAS PYTHON KEY   a virtual environment with maskdit; nothing where KEY is installed already
#   start PHASES KEY WORKDIR [NAME=VALUE ...] -- ...   starts `maskdit train --workdir WORKDIR ...` detached, with that
#                                         environment besides; nothing where the run KEY already goes on
#   supervise PHASES WORKDIR -- ...       the detached part: check, train, exit code
#   status [KEY]                          one line: this host and none, checked, checking, training, finished, stopped,
#                                         failed or lost; of the run KEY, where one is given (else `busy` with another)
#   logs LINES [follow|failed]            the end of the log; `failed`: only where the last run failed
#   stop SECONDS                          SIGTERM, which saves and ends; SIGKILL after that many seconds
#
# PHASES is check, train or check,train. KIND is archive, wheel or git. Everything is kept in ~/maskdit-job: venv,
# source, log, pid, key, phase, and `exit`, the exit code with a word. A run that was asked to end by SIGTERM saves and
# ends with code 0 like one that is complete, so this script writes `stopped` for the one and `finished` for the other.

set -euo pipefail

job=${MASKDIT_JOB:-$HOME/maskdit-job}
venv=$job/venv

say() { printf '%s\n' "$(hostname): $*"; }

# The detached part runs: the process of the pid file is there, and is no other that got its number.
alive() {
  [[ -s $job/pid ]] && kill -0 "$(<"$job/pid")" 2>/dev/null &&
    [[ $(ps -o args= -p "$(<"$job/pid")") == *tpu_worker.sh* ]]
}

install() {
  local kind=$1 what=$2 extras=$3 python=$4 key=$5 pinned=()
  mkdir -p "$job"
  if [[ -f $job/installed && $(<"$job/installed") == "$key" ]]; then
    say "maskdit is installed already ($key)"
    return
  fi
  if alive; then
    say "a run is going on with what is installed; end it first: launch/tpu_vm.sh stop"
    return 1
  fi
  rm -f "$job/installed"
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | env INSTALLER_NO_MODIFY_PATH=1 sh
  [[ -x $venv/bin/python ]] || uv venv --python "$python" "$venv"
  case $kind in
    archive)
      rm -rf "$job/source"
      mkdir "$job/source"
      tar -xzf "$HOME/$what" -C "$job/source"
      if [[ -f $job/source/constraints.txt ]]; then pinned=(-c "$job/source/constraints.txt"); fi
      what=file://$job/source
      ;;
    wheel) what=file://$HOME/$what ;;
    git) ;;
  esac
  uv pip install --quiet --python "$venv/bin/python" "${pinned[@]}" --reinstall-package maskdit \
    "maskdit[$extras] @ $what"
  printf '%s\n' "$key" >"$job/installed"
  say "installed maskdit ($key)"
}

start() {
  local phases=$1 key=$2 workdir=$3 pid
  shift 3
  if [[ ! -x $venv/bin/maskdit ]]; then
    say "maskdit is not installed here; run launch/tpu_vm.sh setup first"
    return 1
  fi
  if alive; then
    if [[ $(<"$job/key") == "$key" ]]; then
      say "runs already (process $(<"$job/pid")); nothing to do"
      return
    fi
    say "another run goes on here (process $(<"$job/pid")); end it first: launch/tpu_vm.sh stop"
    return 1
  fi
  while [[ ${1:-} != -- ]]; do
    export "${1?start takes -- before the arguments of maskdit train}"
    shift
  done
  shift
  rm -f "$job/exit"
  printf '%s\n' "$key" >"$job/key"
  printf 'check\n' >"$job/phase"
  set -m # a process group of its own: the shell of ssh may end, and `stop` finds all of it
  nohup bash "$0" supervise "$phases" "$workdir" -- "$@" >>"$job/log" 2>&1 </dev/null &
  pid=$!
  printf '%s\n' "$pid" >"$job/pid"
  say "started (process $pid); log: $job/log"
}

# Runs the phases and writes down how they ended. A run that saved because it was asked to end gives the exit code 143,
# for which Kubernetes starts it again.
supervise() {
  local phases=$1 workdir=$2 phase command code=0 stopped='' child='' word=finished
  shift 3
  mkdir -p "$job"
  if [[ -d $venv/bin ]]; then export PATH=$venv/bin:$PATH; fi
  # SIGTERM comes from `stop`, or from a machine that is taken away.
  trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  for phase in ${phases//,/ }; do
    printf '%s\n' "$phase" >"$job/phase"
    case $phase in
      check) # waits for workers that come minutes later, so that training starts together
        command=(env MASKDIT_PATIENCE="${MASKDIT_PATIENCE:-300}"
          python -m maskdit.training.distributed --check --bucket "$workdir")
        ;;
      train) command=(maskdit train --workdir "$workdir" "$@") ;;
    esac
    printf '%s + %s\n' "$(date -u +%FT%TZ)" "${command[*]}"
    "${command[@]}" &
    child=$!
    # A signal ends `wait` early; the program may take minutes to save.
    while wait "$child" && code=0 || code=$?; kill -0 "$child" 2>/dev/null; do :; done
    [[ $code == 0 && -z $stopped ]] || break
  done
  if [[ -n $stopped ]]; then
    word=stopped code=143
  elif ((code)); then
    word=failed
  elif [[ $phases != *train* ]]; then
    word=checked
  fi
  printf '%s %s\n' "$code" "$word" >"$job/exit.new"
  mv "$job/exit.new" "$job/exit"
  printf '%s %s: %s, exit code %s\n' "$(date -u +%FT%TZ)" "$phase" "$word" "$code"
  return "$code"
}

status() {
  local key=${1:-} code word
  if [[ -n $key && -s $job/pid && $(<"$job/key") != "$key" ]]; then
    if alive; then word='busy'; else word=none; fi
  elif alive; then
    case $(<"$job/phase") in check) word=checking ;; *) word=training ;; esac
  elif [[ -s $job/exit ]]; then
    read -r code word <"$job/exit"
    if [[ $word == failed ]]; then word="failed ($(<"$job/phase"), exit code $code)"; fi
  elif [[ -s $job/pid ]]; then
    word=lost # no process and no exit code: killed, or the machine was started again
  else
    word=none
  fi
  printf 'maskdit-worker %s %s\n' "$(hostname)" "$word"
}

logs() {
  local lines=$1 mode=${2:-}
  if [[ $mode == failed && $(cat "$job/exit" 2>/dev/null) != *failed ]]; then return; fi
  if [[ ! -f $job/log ]]; then
    say "no log yet"
  elif [[ $mode == follow ]]; then
    tail -n "$lines" -F "$job/log" | sed -u "s/^/[$(hostname)] /"
  else
    tail -n "$lines" "$job/log" | sed "s/^/[$(hostname)] /"
  fi
}

stop() {
  local pid tenths=$(($1 * 10))
  if ! alive; then
    say "nothing runs here"
    return
  fi
  pid=$(<"$job/pid")
  kill -TERM "$pid"
  while alive && ((tenths-- > 0)); do sleep 0.1; done
  if alive; then printf '143 stopped\n' >"$job/exit"; fi
  kill -KILL -- "-$pid" 2>/dev/null || true # what is left of the group, data workers included, would hold the TPU
  say "stopped process $pid"
}

case ${1:-} in
  install | start | supervise | status | logs | stop) "$@" ;;
  *)
    say "tpu_worker.sh takes install, start, supervise, status, logs or stop, got '${1:-}'"
    exit 2
    ;;
esac
