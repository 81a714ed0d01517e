#!/usr/bin/env bash
# Runs several processes of maskdit on this machine, as on several hosts: on CPU devices, or one GPU for each process.
#
#   launch/local.sh -n 2 -d 4 -- train --config maskdit_emoji:smoke --workdir runs/two
#
#   -n N               PROCESSES       processes [2]
#   -d N               DEVICES         CPU devices of each process [4]
#   --gpus             GPUS=1          one GPU for each process, in place of CPU devices
#   --program WORDS    PROGRAM         what is run with the arguments after -- [maskdit]
#   --port PORT        PORT            of the coordinator, which is process 0 [a free one]
#   --grace SECONDS    GRACE           between SIGTERM and SIGKILL [60]
#   --dry-run          DRY_RUN=1       show the commands, run none
#
# Lines of process 1 begin with [1]. Where a process fails, the others are ended and its exit code is returned. SIGTERM
# and Ctrl-C are passed on as SIGTERM, on which training saves; Ctrl-C again ends at once.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

PROCESSES=${PROCESSES:-2} DEVICES=${DEVICES:-4} GPUS=${GPUS:-} PROGRAM=${PROGRAM:-maskdit} PORT=${PORT:-}
GRACE=${GRACE:-60}
declare -A value_options=([-n]=PROCESSES [-d]=DEVICES [--program]=PROGRAM [--port]=PORT [--grace]=GRACE)
declare -A flag_options=([--gpus]=GPUS [--dry-run]=DRY_RUN)
declare -A list_options=()

read_options "$@"
needs_number -n "$PROCESSES" 1
needs_number -d "$DEVICES" 1
needs_number --grace "$GRACE" 0
[[ -z $PORT ]] || needs_number --port "$PORT" 1
((${#train_args[@]})) || fail "give what to run after --, such as -- train --config NAME --workdir DIR"
read -ra program <<<"$PROGRAM"
[[ -n $DRY_RUN ]] || type -P "${program[0]}" >/dev/null ||
  fail "there is no program '${program[0]}'; --program names another"

# A port that nothing answers on.
free_port() {
  local port
  while port=$((20000 + RANDOM)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# The variables of process i; maskdit.training.distributed reads the first three.
variables() {
  local i=$1 gpus
  echo "MASKDIT_COORDINATOR=127.0.0.1:$PORT"
  echo "MASKDIT_PROCESSES=$PROCESSES"
  echo "MASKDIT_PROCESS=$i"
  if [[ -n $GPUS ]]; then
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
    echo "CUDA_VISIBLE_DEVICES=${gpus[i]:-$i}"
  else
    echo "JAX_PLATFORMS=cpu"
    echo "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES"
  fi
}

pids=() printers=() code=0 ending='' killer=''

# Asks all to end, and after the grace, or at once where it was asked before, makes them.
end_all() {
  local pid
  for pid in "${pids[@]}"; do
    if [[ -n $ending ]]; then kill -KILL -- "-$pid" 2>/dev/null || true; else kill -TERM "$pid" 2>/dev/null || true; fi
  done
  if [[ -z $ending ]]; then
    ending=1
    (
      trap 'kill "${sleeper:-}"' TERM
      sleep "$GRACE" &
      sleeper=$!
      wait "$sleeper" || exit 0
      for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
    ) >/dev/null 2>&1 & # a sleep that outlives this script holds nobody's output open
    killer=$!
  fi
}

PORT=${PORT:-$(free_port)}
set -m # a process group for each, so that its data workers end with it
trap end_all TERM INT
for ((i = 0; i < PROCESSES; i++)); do
  mapfile -t settings < <(variables "$i")
  say "+ $(quoted "${settings[@]}" "${program[@]}" "${train_args[@]}")"
  [[ -z $DRY_RUN ]] || continue
  exec {out}> >(trap '' INT TERM HUP; exec sed -u "s/^/[$i] /")  # prints on while a signal to all ends the others
  printers+=($!)
  env "${settings[@]}" "${program[@]}" "${train_args[@]}" >&"$out" 2>&1 </dev/null {out}>&- &
  pids+=($!)
  exec {out}>&-
done

left=("${pids[@]}")
while ((${#left[@]})); do
  status=0
  wait -n -p ended "${left[@]}" 2>/dev/null || status=$? # bash itself would tell of signals there
  if [[ -z ${ended:-} ]]; then # a signal came, or `wait -n` passes over one that a signal ended
    for pid in "${left[@]}"; do
      if ! kill -0 "$pid" 2>/dev/null; then
        ended=$pid status=0
        wait "$pid" 2>/dev/null || status=$?
        break
      fi
    done
    [[ -n ${ended:-} ]] || continue
  fi
  for i in "${!pids[@]}"; do
    [[ ${pids[i]} == "$ended" ]] || continue
    say "[$i] ended with code $status"
    unset 'left[i]'
  done
  if ((status)); then
    ((code)) || code=$status
    [[ -n $ending ]] || end_all
  fi
done
[[ -z $killer ]] || kill "$killer" 2>/dev/null || true
for i in "${!pids[@]}"; do
  kill -KILL -- "-${pids[i]}" 2>/dev/null || true # data workers that outlived their process would hold its output open
  wait "${printers[i]}" || true
done
exit "$code"
