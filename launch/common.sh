# shellcheck shell=bash
# Shared by the launch scripts, which source it: messages, the echo of commands, and the reading of options.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
  echo "${0##*/} needs bash 5.1 or newer, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

DRY_RUN=${DRY_RUN:-}
train_args=() # of maskdit train

say() { printf '%s\n' "$*" >&2; }

# Bad input: one sentence, exit code 2.
fail() {
  say "${0##*/}: $*"
  exit 2
}

# Words as they can be typed into a shell; quotes only where they are needed.
quoted() {
  local word text=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,~-]+$ ]]; then text+=("$word"); else text+=("${word@Q}"); fi
  done
  printf '%s' "${text[*]}"
}

# Shows a command, and runs it unless --dry-run was given.
run() {
  say "+ $(quoted "$@")"
  [[ -n $DRY_RUN ]] || "$@"
}

# The help of a script is the comment at its top.
show_help() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

# The first word after a script: read_verb "VERB VERB ..." GIVEN. Sets verb.
read_verb() {
  verb=$2
  if [[ $verb == -h || $verb == --help ]]; then
    show_help
    exit 0
  fi
  [[ -n $verb && " $1 " == *" $verb "* ]] || fail "takes one of ${1// /, }, got '$verb'; --help tells all"
}

# Reads the options of a script into its variables, by tables of the script from option to variable: value_options, such
# as --zone ZONE or --zone=ZONE; flag_options, set to 1; list_options, arrays. Overrides --config.PATH=VALUE and all
# that follows -- go to the array train_args.
read_options() {
  local option
  while (($#)); do
    option=$1
    case $option in
      -h | --help)
        show_help
        exit 0
        ;;
      --)
        train_args+=("${@:2}")
        return
        ;;
      --config.*=*)
        train_args+=("$option")
        shift
        continue
        ;;
      --*=*)
        set -- "${option%%=*}" "${option#*=}" "${@:2}"
        option=$1
        ;;
    esac
    if [[ -n ${flag_options[$option]:-} ]]; then
      printf -v "${flag_options[$option]}" 1
      shift
      continue
    fi
    [[ -n ${value_options[$option]:-}${list_options[$option]:-} ]] ||
      fail "there is no option '$option'; --help lists them"
    (($# >= 2)) || fail "$option takes a value; --help says which"
    if [[ -n ${value_options[$option]:-} ]]; then
      printf -v "${value_options[$option]}" '%s' "$2"
    else
      local -n list=${list_options[$option]}
      list+=("$2")
    fi
    shift 2
  done
}

# Whole numbers from FIRST on: needs_number OPTION VALUE FIRST
needs_number() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ && $2 -ge $3 ]] || fail "$1 takes a whole number from $3 on, got '$2'"
}

# Names that the cloud accepts: needs_name OPTION VALUE
needs_name() {
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "$1 takes up to 40 lower-case letters, digits and dashes, the first a letter and the last no dash, got '$2'"
}

# needs_assignments [NAME=VALUE ...]
needs_assignments() {
  local pair
  for pair in "$@"; do [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env takes NAME=VALUE, got '$pair'"; done
}

# Where gcloud and xpk look, as options; without them they take their own settings.
place() {
  where=()
  [[ -z $ZONE ]] || where+=(--zone="$ZONE")
  [[ -z $PROJECT ]] || where+=(--project="$PROJECT")
}

# needs_training WORKDIR CONFIG: what a run cannot do without.
needs_training() {
  [[ -n $1 ]] || fail "give a work directory: --workdir gs://BUCKET/PATH, the same on every worker"
  [[ -n $2 ]] || fail "give a config: --config NAME[:variant], as for maskdit train"
}
