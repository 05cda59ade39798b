#!/usr/bin/env bash
# A sweep on Cloud TPU VMs of one host each: VM number i of n takes every n-th run from the i-th on; records are copied back.
#
#   ZONE=us-east5-b launch/sweep_tpu.sh SWEEP RECORDS VM [VM ...] [-- OPTION OF scope_jax.sweep ...]
#
# PROJECT, ZONE: of the VMs (default: gcloud's own settings). SEND: a directory of the repository that git ignores and the
# runs need, such as cache/checkpoints (otherwise each VM makes its own). VM_PYTHON: Python 3.11 or later there (default: what
# launch/worker.sh finds, or installs). PER_VM: so many runs at once on each VM, each on one chip (default: one run on all chips).
# RECORD_SECONDS: between two copies of the records to here while the sweep runs (600).
# DRY_RUN=1: print the commands, run nothing. Run it again after an interruption: runs that have a record are left out.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/common.sh
source "$here/common.sh"

usage="usage: launch/sweep_tpu.sh SWEEP RECORDS VM [VM ...] [-- OPTION OF scope_jax.sweep ...]"
if [[ $# -lt 3 ]]; then fail "$usage"; fi
sweep="$1"
records="$2"
shift 2
vms=()
while [[ $# -gt 0 && "$1" != -- ]]; do
  # What goes into an address must not be read as an option or as a path.
  [[ "$1" =~ ^([a-z_][a-zA-Z0-9_.-]*@)?[a-z][a-z0-9-]*$ ]] || fail "VM $1: expected a name such as tpu-0 or user@tpu-0"
  vms+=("$1")
  shift
done
if [[ ${#vms[@]} -eq 0 ]]; then fail "$usage"; fi
if [[ "${1:-}" == -- ]]; then shift; fi
for option in "$@"; do
  case "$option" in
    --sweep | --sweep=* | --workdir | --workdir=* | --records | --records=* | --shard | --shard=*) fail "$option is set by this script" ;;
  esac
done

root="$(dirname -- "$here")"
[[ -f "$sweep" ]] || fail "$sweep: no such sweep file; give one such as configs/sweeps/miniature_table.py"
sweep="$(cd -- "$(dirname -- "$sweep")" && pwd)/$(basename -- "$sweep")"
[[ "$sweep" == "$root"/* ]] || fail "$sweep: the sweep file must be in $root, which is what the VMs get"
sweep="${sweep#"$root"/}"
if [[ -n "${SEND:-}" && ! -d "$root/$SEND" ]]; then fail "SEND=$SEND: no such directory in $root"; fi
per_vm="${PER_VM:-1}"
[[ "$per_vm" =~ ^[1-9][0-9]?$ ]] || fail "PER_VM=$per_vm: expected the number of chips of a VM to use, such as 4"
if [[ -z "${DRY_RUN:-}" ]]; then
  mkdir -p -- "$records"
  records="$(cd -- "$records" && pwd)"
fi

at=(gcloud compute tpus tpu-vm)
where=(--quiet)
if [[ -n "${ZONE:-}" ]]; then where+=(--zone="$ZONE"); fi
if [[ -n "${PROJECT:-}" ]]; then where+=(--project="$PROJECT"); fi
code="$(code_version "$root")"
stage="$(mktemp -d)"
trap 'rm -rf -- "$stage"' EXIT

# What VM number $1 does, as one word for its shell. The lock: if the connection was lost, the sweep goes on over there, and
# a second call waits for it.
remote() {
  local number="$1" command version
  shift
  printf -v command '%q ' .venv/bin/python -m scope_jax.sweep --sweep="$sweep" --workdir=runs/sweep --records=sweep_records \
    --shard="$number/${#vms[@]}" "$@"
  # Several at once take turns by the locks of their common workdir. Before, one of them makes the checkpoints, and no run.
  if [[ "$per_vm" -gt 1 ]]; then command="$command--only= && bash launch/worker.sh chips $per_vm $command"; fi
  printf -v version '%q' "$code"
  printf -v command '%s; ' 'set -euo pipefail' \
    'mkdir -p scope_jax_sweep/sweep_records' 'cd scope_jax_sweep' 'exec 9>sweep.lock' 'flock 9' \
    'tar -xzf ../scope_jax_code.tar.gz' 'tar -xzf ../scope_jax_before.tar.gz -C sweep_records' \
    "bash launch/worker.sh setup $(printf '%q' "${VM_PYTHON:-}")" \
    "export SCOPE_JAX_CODE=$version" "code=0" "$command || code=\$?" \
    'tar -czf ../scope_jax_records.tar.gz -C sweep_records .' "exit \$code"
  printf 'bash -c %q' "$command"
}

# The records of archive $1 into RECORDS. One archive at a time: VMs may bring the same earlier records, and two tars would each
# find the other's file where it has just made room for its own. A signal waits until the archive is unpacked.
unpack_records() (
  if [[ -n "${DRY_RUN:-}" ]]; then
    run tar -xzf "$1" -C "$records"
    return
  fi
  trap '' INT TERM
  until mkdir -- "$stage/unpacking" 2> /dev/null; do
    [[ -d "$stage" ]] || return 1
    sleep 0.1
  done
  result=0
  tar -xzf "$1" -C "$records" || result=$?
  rmdir -- "$stage/unpacking"
  return "$result"
)

# The records that VM number $1 has so far: what is here is not lost with the VM.
bring_records() {
  local vm="${vms[$1]}" archive="scope_jax_records_now.tar.gz"
  "${at[@]}" ssh "${where[@]}" "$vm" --command="tar -czf $archive -C scope_jax_sweep/sweep_records ." &&
    "${at[@]}" scp "${where[@]}" "$vm:$archive" "$stage/$1.now.tar.gz" && unpack_records "$stage/$1.now.tar.gz"
}

keep_bringing() {
  local nap
  trap 'kill "$nap" 2> /dev/null || true; exit' TERM
  while :; do
    sleep "${RECORD_SECONDS:-600}" &
    nap=$!
    wait "$nap" || true
    bring_records "$1" || true
  done
}

one_vm() {
  local number="$1" vm="${vms[$1]}" result=0 bringing=""
  shift
  run "${at[@]}" scp "${where[@]}" "$stage/scope_jax_code.tar.gz" "$stage/scope_jax_before.tar.gz" "$vm:" || return
  if [[ -z "${DRY_RUN:-}" ]]; then
    keep_bringing "$number" < /dev/null > /dev/null 2>&1 &
    bringing=$!
  fi
  run "${at[@]}" ssh "${where[@]}" "$vm" --command="$(remote "$number" "$@")" || result=$?
  if [[ -n "$bringing" ]]; then
    kill "$bringing" 2> /dev/null || true
    wait "$bringing" || true
  fi
  # Also after failures: what is done is done.
  run "${at[@]}" scp "${where[@]}" "$vm:scope_jax_records.tar.gz" "$stage/$number.tar.gz" || return
  unpack_records "$stage/$number.tar.gz" || return
  return "$result"
}

if [[ -n "${DRY_RUN:-}" ]]; then
  for number in "${!vms[@]}"; do one_vm "$number" "$@"; done
  exit 0
fi
pack "$root" "$stage/scope_jax_code.tar.gz" "${SEND:-}"
# And the records that are here, so that a fresh VM does not repeat their runs.
tar -czf "$stage/scope_jax_before.tar.gz" -C "$records" .
# Each VM in a process group of its own, so that Ctrl-C ends what belongs to it as well. The VMs go on; see the lock above.
set -m
workers=()
# shellcheck disable=SC2329  # the trap calls it
end_all() {
  local worker
  for worker in "${workers[@]}"; do kill -- "-$worker" 2> /dev/null || true; done
  exit 130
}
trap end_all INT TERM
for number in "${!vms[@]}"; do
  (one_vm "$number" "$@" < /dev/null 2>&1 | sed "s/^/[${vms[$number]}] /") &
  workers+=($!)
done
bad=0
for number in "${!workers[@]}"; do
  wait "${workers[$number]}" || {
    echo "error: ${vms[$number]} did not finish its share (exit code $?); run the same command again" >&2
    bad=1
  }
done
exit "$bad"
