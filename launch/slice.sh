#!/usr/bin/env bash
# A slice as seen from outside: requested, waited for, deleted; and what is sent to its workers. tpu.sh sources this; it sets
# name, settings, vm, queue, where, stage, root, config and overrides.
# shellcheck disable=SC2154
set -euo pipefail

# Seconds between two looks at a slice that is being made.
create_seconds="${CREATE_SECONDS:-30}"
# And after how many a request is given up (a day). Waiting costs nothing.
queue_seconds="${QUEUE_SECONDS:-86400}"

# On a worker.
remote_script=scope_jax_launch/launch/worker.sh

runtime_of() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

need_type() {
  [[ -n "${settings[type]:-}" ]] || fail "--type is missing: an accelerator type such as v6e-8"
  [[ -n "${settings[zone]}" ]] || fail "--zone is missing: a zone such as us-east5-b"
}

# Fails where the request is refused: quota, a type that the zone does not have, a name that is taken.
create_slice() {
  local type="${settings[type]}" words
  words=(--node-id="$name" --accelerator-type="$type" --runtime-version="${settings[runtime]:-$(runtime_of "$type")}")
  # What the workers may do is said by the rights of the account, not by scopes.
  words+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
  case "${settings[capacity]:-on-demand}" in
    spot) words+=(--spot) ;;
    reserved) words+=(--reserved) ;;
  esac
  if [[ -n "${settings[valid-until]:-}" ]]; then words+=(--valid-until-duration="${settings[valid-until]}"); fi
  if [[ -n "${settings[service-account]:-}" ]]; then words+=(--service-account="${settings[service-account]}"); fi
  run "${queue[@]}" create "$name" "${where[@]}" "${words[@]}"
}

# none, waiting, usable, gone (there is something, but nothing that can be used: delete it), or unknown (no answer). In a dry run
# the answer is $DRY_STATE.
slice_state() {
  local request node
  if [[ -n "${DRY_RUN:-}" ]]; then
    run "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
    run "${vm[@]}" describe "$name" "${where[@]}" '--format=value(state)'
    echo "${DRY_STATE:-none}"
    return
  fi
  request="$(state_of "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)')"
  node="$(state_of "${vm[@]}" describe "$name" "${where[@]}" '--format=value(state)')"
  case "$request/$node" in
    unknown/* | */unknown) echo unknown ;;
    none/none) echo none ;;
    ACTIVE/READY | none/READY) echo usable ;;
    CREATING/* | ACCEPTED/* | WAITING_FOR_RESOURCES/* | PROVISIONING/*) echo waiting ;;
    ACTIVE/CREATING | ACTIVE/STARTING | ACTIVE/RESTARTING | ACTIVE/REIMAGING | ACTIVE/REPAIRING) echo waiting ;;
    none/CREATING | none/STARTING | none/RESTARTING | none/REIMAGING | none/REPAIRING) echo waiting ;;
    *) echo gone ;;
  esac
}

state_of() {
  local said
  if said="$("$@" 2> "$stage/describe.err")"; then
    echo "${said:-unknown}"
  elif grep -qiE 'NOT_FOUND|was not found' "$stage/describe.err"; then
    echo none
  else
    cat "$stage/describe.err" >&2
    echo unknown
  fi
}

# Fails where the slice does not come: the request failed or was taken back, or was not met within queue_seconds.
wait_for_slice() {
  local state before="" since="$SECONDS"
  while :; do
    state="$(DRY_STATE=usable slice_state)"
    if [[ "$state" != "$before" ]]; then say "$name: $state"; fi
    before="$state"
    case "$state" in
      usable) return ;;
      gone | none)
        echo "error: $name: the request failed, or the slice was taken away before it could be used" >&2
        return 1
        ;;
    esac
    if [[ $((SECONDS - since)) -ge "$queue_seconds" ]]; then
      echo "error: $name: not there after $queue_seconds s; the request stays: launch/tpu.sh stop $name takes it back" >&2
      return 1
    fi
    sleep "$create_seconds"
  done
}

# The request and its slice; returns when nothing is left that costs.
delete_slice() {
  local tries
  for tries in 1 2 3 4 5; do
    run "${queue[@]}" delete "$name" "${where[@]}" --force || true
    if [[ -n "${DRY_RUN:-}" ]]; then return; fi
    case "$(slice_state)" in
      none)
        say "$name: deleted"
        return
        ;;
      # A slice that was not made by way of a request, be it there or what is left of it.
      usable | gone) if [[ "$tries" -gt 1 ]]; then run "${vm[@]}" delete "$name" "${where[@]}" || true; fi ;;
    esac
    sleep "$create_seconds"
  done
  echo "error: $name could not be deleted, and may go on to cost; look into the console" >&2
  return 1
}

# ---- the workers

# A command with a time limit: a worker that is gone may leave the connection hanging.
limited() {
  local limit=()
  if command -v timeout > /dev/null; then limit=(timeout --foreground "${SSH_SECONDS:-1800}"); fi
  run "${limit[@]}" "$@"
}

# A command line on every worker at once; fails where it fails on one.
ssh_all() {
  limited "${vm[@]}" ssh "$name" "${where[@]}" --worker=all --command="$1" < /dev/null
}

# worker.sh on every worker.
on_all() {
  ssh_all "$(remote_word bash "$remote_script" "$@")"
}

# Names of the runs that are alive on the workers, one a line, that of these settings aside. Fails where a worker does not answer;
# what the others say is printed all the same. Workers that were never set up have no run.
others_alive() {
  local code=0
  # By a file: a connection that hangs and is given up would keep $(...) open.
  SSH_SECONDS="${LOOK_SECONDS:-180}" ssh_all "if [ -f $remote_script ]; then bash $remote_script idle 2>&1 || true; fi" \
    > "$stage/alive" 2> "$stage/alive.err" || code=$?
  sed -nE 's/^error: [^ ]+: (.*) runs here; stop it first$/\1/p' "$stage/alive" | sort -u | grep -vxF -e "${settings[run]}" || true
  return "$code"
}

on_worker() {
  local number="$1"
  shift
  run "${vm[@]}" ssh "$name" "${where[@]}" --worker="$number" \
    --command="$(remote_word bash "$remote_script" "$@")" < /dev/null
}

# About these names, what to do.
runs_there() {
  local command
  printf -v command '%q ' launch/tpu.sh stop "$name" --keep --run="${1%%$'\n'*}"
  echo "${1//$'\n'/, } runs on $name, which is left as it is; stop it first: ${command% }"
}

pack_code() {
  if [[ -n "${DRY_RUN:-}" ]]; then return; fi
  pack "$root" "$stage/scope_jax_code.tar.gz" "${settings[send]:-}"
}

# The code to every worker, secrets by a file, and the package installed. Fails where one worker does. Not while a run is alive:
# its files must not change under it.
set_up() {
  local all=(--worker=all) extras=tpu worker="$remote_script" command
  # Orbax writes to a bucket by way of gcsfs.
  if [[ -n "${settings[bucket]}" ]]; then extras=tpu,gcs; fi
  command="set -e; if [ -f $worker ]; then bash $worker idle; fi; mkdir -p scope_jax_launch/.secrets; "
  ssh_all "${command}chmod 700 scope_jax_launch scope_jax_launch/.secrets" || return
  limited "${vm[@]}" scp "$stage/scope_jax_code.tar.gz" "$name:" "${where[@]}" "${all[@]}" || return
  if [[ -n "${settings[secrets]:-}" ]]; then
    limited "${vm[@]}" scp "${settings[secrets]}" "$name:scope_jax_launch/.secrets/env" "${where[@]}" "${all[@]}" || return
  fi
  command="set -e; chmod -R go-rwx scope_jax_launch/.secrets; tar -xzf scope_jax_code.tar.gz -C scope_jax_launch; "
  ssh_all "$command$(remote_word bash "$worker" setup "${settings[python]:-}" "$extras" "${settings[files]:-}")"
}

start_run() {
  on_all start "${settings[run]}" "${settings[bucket]}" "$config" "${overrides[@]}"
}
