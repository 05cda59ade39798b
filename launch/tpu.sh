#!/usr/bin/env bash
# One slice of Cloud TPU VMs and the run on it, from this machine: launch/tpu.sh VERB NAME [CONFIG] [OPTION ...]
#
#   create NAME --zone=Z --type=v6e-8 [--spot]  request the slice (a queued resource of the same name) and wait for it
#   setup NAME                                  the code to every worker, and the package installed there
#   run NAME CONFIG [--config.key=value ...]    setup, then start training on every worker; it outlives this command
#   watch NAME CONFIG [--config.key=value ...]  create, run, look after it; after a pre-emption or a crash do that again
#   status NAME | logs NAME [--worker=N] | tensorboard NAME | fetch NAME
#   stop NAME [--keep]                          SIGTERM, wait for the checkpoint, delete the slice (--keep: leave it)
#
# Options are kept in runs/slices/NAME/settings and need not be given again:
#   --project=P --zone=Z --type=T --runtime=V   where and what; runtime: by default the image for the type
#   --spot | --reserved | --on-demand           (default on-demand)
#   --valid-until=6h                            give up the request when it has not been met by then
#   --service-account=EMAIL                     whose rights the workers have (default: the project's Compute Engine account)
#   --bucket=gs://B/DIR                         keeps the run: DIR/RUN. Needed by watch, and by slices of several workers
#   --run=RUN                                   the run's name (default NAME)
#   --files=gs://B/DIR                          models/..., data/... that are laid beside the code on every worker
#   --send=DIRECTORY                            of the working tree, goes along with the code although git ignores it
#   --secrets=FILE                              KEY=value lines, mode 600, for the trainer's environment
#   --python=P                                  of the workers (default: found there, or installed)
# Of single verbs, and not kept:
#   --attempts=N                                of watch: starts of a run that crashes by itself before it gives up
#   --delete-after                              of watch: delete the slice when the run has ended
#   --discard                                   of stop: delete the slice although something on it is nowhere else
#   --allow_changed_config=NAMES                of run and watch: go on with a run whose settings have changed (docs/resuming.md)
#   --worker=N, --port=N                        of logs: follow one worker; of tensorboard: the port here
# DRY_RUN=1: print the commands, run nothing. ../docs/launching.md says the rest.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/common.sh
source "$here/common.sh"
# shellcheck source=launch/slice.sh
source "$here/slice.sh"
# shellcheck source=launch/watch.sh
source "$here/watch.sh"
root="$(dirname -- "$here")"

verbs="create setup run watch status logs tensorboard fetch stop"
usage="usage: launch/tpu.sh VERB NAME [CONFIG] [OPTION ...]; VERB: ${verbs// /, }"
declare -A settings=() given=()
words=() overrides=()

parse() {
  local word key value
  for word in "$@"; do
    case "$word" in
      *$'\n'*) fail "an argument with a line break: $(printf '%q' "$word")" ;;
      --config.*=* | --allow_changed_config=*) overrides+=("$word") ;;
      --spot | --reserved | --on-demand) given[capacity]="${word#--}" ;;
      --keep | --discard | --delete-after) given[${word#--}]=yes ;;
      --*=*)
        key="${word%%=*}" value="${word#*=}"
        case "$key" in
          --project | --zone | --type | --runtime | --valid-until | --service-account | --bucket | --run | --files | --send | \
            --secrets | --python | --worker | --port | --attempts) given[${key#--}]="$value" ;;
          *) fail "$key: unknown option; the head of launch/tpu.sh lists them" ;;
        esac
        ;;
      -*) fail "$word: unknown option, or one that needs a value (--key=value)" ;;
      *) words+=("$word") ;;
    esac
  done
}

# What was given now, else what is kept of this slice, else the environment.
load_settings() {
  local key line
  settings[project]="${PROJECT:-}" settings[zone]="${ZONE:-}"
  if [[ -f "$kept/settings" ]]; then
    while IFS= read -r line; do settings[${line%%=*}]="${line#*=}"; done < "$kept/settings"
  fi
  for key in "${!given[@]}"; do settings[$key]="${given[$key]}"; done
  settings[run]="${settings[run]:-$name}"
  settings[bucket]="${settings[bucket]:-}"
  while [[ "${settings[bucket]}" == */ ]]; do settings[bucket]="${settings[bucket]%/}"; done
}

save_settings() {
  local key
  if [[ -n "${DRY_RUN:-}" ]]; then return; fi
  mkdir -p -- "$kept"
  for key in project zone type runtime capacity valid-until service-account bucket run files send secrets python; do
    if [[ -n "${settings[$key]:-}" ]]; then echo "$key=${settings[$key]}"; fi
  done > "$kept/settings.new"
  mv -- "$kept/settings.new" "$kept/settings"
}

check() {
  local key value=""
  matches() { [[ -z "${settings[$1]:-}" || "${settings[$1]}" =~ $2 ]] || fail "--$1=${settings[$1]}: expected $3"; }
  matches zone '^[a-z]+-[a-z0-9-]+$' "a zone such as us-east5-b"
  matches project '^[a-z][a-z0-9.:-]*$' "a project's ID"
  matches type '^[a-z0-9]+-[0-9]+$' "an accelerator type such as v6e-8"
  matches runtime '^[a-z0-9.-]+$' "a TPU software version such as v2-alpha-tpuv6e"
  matches valid-until '^[0-9]+[smhd]$' "a duration such as 6h"
  matches service-account '^[a-zA-Z0-9.-]+@[a-zA-Z0-9.-]+$' "an e-mail address"
  matches bucket '^gs://[a-z0-9][a-z0-9._-]+(/[^]*?[#]+)?$' "gs://BUCKET/DIRECTORY without wildcards"
  matches files '^gs://[a-z0-9][a-z0-9._-]+(/[^]*?[#]+)?$' "gs://BUCKET/DIRECTORY without wildcards"
  matches run '^[^]/*?[#.-][^]/*?[#]*$' "a name without / and wildcards that does not start with . or -"
  matches worker '^[0-9]+$' "a worker's number, from 0"
  matches port '^[0-9]+$' "a port"
  matches attempts '^[1-9][0-9]*$' "a number from 1"
  if [[ -n "${settings[send]:-}" && ! -d "$root/${settings[send]}" ]]; then
    fail "--send=${settings[send]}: no such directory in $root"
  fi
  if [[ -n "${settings[secrets]:-}" ]]; then
    [[ -f "${settings[secrets]}" ]] || fail "--secrets=${settings[secrets]}: no such file"
    settings[secrets]="$(cd -- "$(dirname -- "${settings[secrets]}")" && pwd)/$(basename -- "${settings[secrets]}")"
    value="$(stat -c %a -- "${settings[secrets]}" 2> /dev/null || stat -f %Lp -- "${settings[secrets]}")"
    [[ "$value" == 600 || "$value" == 400 ]] || fail "--secrets=${settings[secrets]}: others may read it (mode $value); chmod 600"
  fi
}

# CONFIG as the workers know it.
config_of() {
  local config="${words[2]:-}" word=""
  [[ -n "$config" ]] || fail "$verb needs a config file, or words for a shipped one such as scope,arithmetic; $usage"
  # FILE.py:WORDS, where the file's get_config takes words; words alone are for a shipped config.
  if [[ "$config" == *.py:* && ! -f "$config" ]]; then word=":${config#*.py:}" config="${config%%.py:*}.py"; fi
  if [[ "$config" != *.py ]]; then
    echo "$config"
    return
  fi
  [[ -f "$config" ]] || fail "$config: no such config file; give one, or words for a shipped one such as scope,arithmetic"
  config="$(cd -- "$(dirname -- "$config")" && pwd)/$(basename -- "$config")"
  [[ "$config" == "$root"/* ]] || fail "$config: the config file must be in $root, which is what the workers get"
  echo "${config#"$root"/}$word"
}

tensorboard() {
  local port="${settings[port]:-6006}"
  echo "TensorBoard: http://localhost:$port (Ctrl-C ends it)"
  # With a terminal over there (-t -t), what runs there ends with the connection.
  run "${vm[@]}" ssh "$name" "${where[@]}" --worker=0 --command="$(remote_word \
    scope_jax_launch/.venv/bin/python -m tensorboard.main --logdir="scope_jax_launch/runs/${settings[run]}/tb" \
    --host=localhost --port="$port")" -- -t -t -L "$port:localhost:$port"
}

logs() {
  if [[ -n "${given[worker]:-}" ]]; then
    on_worker "${given[worker]}" log "${settings[run]}" 200 follow
    return
  fi
  # One file a worker, named by its number.
  if [[ -z "${DRY_RUN:-}" ]]; then mkdir -p -- "$kept/logs"; fi
  run "${vm[@]}" ssh "$name" "${where[@]}" --worker=all --output-directory="$kept/logs" \
    --command="$(remote_word bash scope_jax_launch/launch/worker.sh log "${settings[run]}" +1)" < /dev/null || return
  if [[ -z "${DRY_RUN:-}" ]]; then
    tail -n 5 -- "$kept/logs"/*.log
    echo "whole logs: $kept/logs; --worker=N follows one"
  fi
}

# The workdir of worker 0, where there is no bucket to look into.
fetch() {
  local target="$root/runs/${settings[run]}"
  if [[ -e "$target" ]]; then fail "$target is there already; move it away first"; fi
  on_worker 0 pack "${settings[run]}"
  run "${vm[@]}" scp "$name:scope_jax_workdir.tar" "$stage/workdir.tar" "${where[@]}" --worker=0
  if [[ -z "${DRY_RUN:-}" ]]; then mkdir -p -- "$root/runs"; fi
  run tar -xf "$stage/workdir.tar" -C "$root/runs"
  if [[ -z "${DRY_RUN:-}" ]]; then echo "fetched: $target"; fi
}

# A watch of this slice, on this machine, must not bring it back.
note_stop() {
  if [[ -z "${DRY_RUN:-}" ]]; then
    mkdir -p -- "$kept"
    touch -- "$kept/stopped"
  fi
}

forget_stop() {
  if [[ -z "${DRY_RUN:-}" ]]; then rm -f -- "$kept/stopped"; fi
}

stop() {
  local state others command code=0
  state="$(DRY_STATE=usable slice_state)"
  if [[ "$state" == usable ]]; then
    if [[ -z "${settings[bucket]}" && -z "${given[keep]:-}${given[discard]:-}" ]]; then
      fail "the run has no bucket, and its workdir would go with the slice; launch/tpu.sh fetch $name, then stop with --discard"
    fi
    # Which run is meant is what was said last, and that may not be the one that is alive.
    if [[ -z "${given[keep]:-}${given[discard]:-}" ]]; then
      others="$(others_alive || true)"
      if [[ -n "$others" ]]; then fail "$(runs_there "$others")"; fi
    fi
    note_stop
    # Workers that were never set up have nothing to stop.
    command="$(remote_word bash "$remote_script" stop "${settings[run]}" "${STOP_SECONDS:-600}")"
    ssh_all "if [ -f $remote_script ]; then $command; fi" || code=$?
    if [[ "$code" -ne 0 && -z "${given[discard]:-}" ]]; then
      echo "error: a worker did not stop (see above); the slice is left as it is, and costs; --discard deletes it all the same" >&2
      exit 1
    fi
  fi
  note_stop
  if [[ -n "${given[keep]:-}" ]]; then
    echo "$name is kept, and costs; launch/tpu.sh stop $name deletes it"
  elif [[ "$state" == unknown ]]; then
    echo "error: what became of $name cannot be found out; look into the console" >&2
    exit 1
  elif [[ "$state" != none ]]; then
    delete_slice
  fi
}

[[ $# -ge 1 && " $verbs " == *" ${1:-} "* ]] || fail "$usage"
parse "$@"
verb="${words[0]}"
[[ ${#words[@]} -ge 2 ]] || fail "$usage"
name="${words[1]}"
[[ "$name" =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || fail "$name: a slice's name has small letters, digits and -, as in tpu-0"
[[ "$verb" == run || "$verb" == watch || ${#words[@]} -eq 2 ]] || fail "${words[2]}: one word too many for $verb"
[[ ${#words[@]} -le 3 ]] || fail "${words[3]}: one word too many; options are --key=value"
kept="$root/runs/slices/$name"
load_settings
check
vm=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
where=(--quiet)
if [[ -n "${settings[zone]}" ]]; then where+=(--zone="${settings[zone]}"); fi
if [[ -n "${settings[project]}" ]]; then where+=(--project="${settings[project]}"); fi
stage="$(mktemp -d)"
trap 'rm -rf -- "$stage"' EXIT

case "$verb" in
  create)
    need_type
    save_settings
    forget_stop
    ensure_slice
    ;;
  setup)
    save_settings
    pack_code
    set_up
    ;;
  run)
    config="$(config_of)"
    save_settings
    pack_code
    set_up
    start_run
    if [[ -z "${DRY_RUN:-}" ]]; then
      echo "${settings[run]} runs on $name; launch/tpu.sh status $name, logs $name --worker=0, tensorboard $name, stop $name"
    fi
    ;;
  watch)
    config="$(config_of)"
    need_type
    [[ -n "${settings[bucket]}" ]] || fail "watch needs --bucket=gs://...: what is only on the slice goes with it"
    save_settings
    watch_run
    ;;
  status)
    state="$(DRY_STATE=usable slice_state)"
    echo "$name: $state"
    if [[ "$state" == usable ]]; then on_all status "${settings[run]}"; fi
    ;;
  logs) logs ;;
  tensorboard) tensorboard ;;
  fetch) fetch ;;
  stop) stop ;;
esac
