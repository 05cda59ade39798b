#!/usr/bin/env bash
# A sweep on Cloud TPU VMs of one host each: VM number i of n takes every n-th run from the i-th on; records are copied back.
#
#   ZONE=us-east5-b launch/sweep_tpu.sh SWEEP RECORDS VM [VM ...] [-- OPTION OF scope_jax.sweep ...]
#
# PROJECT, ZONE: of the VMs (default: gcloud's own settings). SEND: a directory of the repository that git ignores and the
# runs need, such as cache/checkpoints (otherwise each VM makes its own). VM_PYTHON: Python 3.11 or later there (python3).
# DRY_RUN=1: print the commands, run nothing. Run it again after an interruption: runs that have a record are left out.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

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

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
[[ -f "$sweep" ]] || fail "$sweep: no such sweep file; give one such as configs/sweeps/miniature_table.py"
sweep="$(cd -- "$(dirname -- "$sweep")" && pwd)/$(basename -- "$sweep")"
[[ "$sweep" == "$root"/* ]] || fail "$sweep: the sweep file must be in $root, which is what the VMs get"
sweep="${sweep#"$root"/}"
if [[ -n "${SEND:-}" && ! -d "$root/$SEND" ]]; then fail "SEND=$SEND: no such directory in $root"; fi
if [[ -z "${DRY_RUN:-}" ]]; then
  mkdir -p -- "$records"
  records="$(cd -- "$records" && pwd)"
fi

at=(gcloud compute tpus tpu-vm)
where=(--quiet)
if [[ -n "${ZONE:-}" ]]; then where+=(--zone="$ZONE"); fi
if [[ -n "${PROJECT:-}" ]]; then where+=(--project="$PROJECT"); fi
code="$(git -C "$root" describe --always --dirty=+)"
stage="$(mktemp -d)"
trap 'rm -rf -- "$stage"' EXIT

# A command, or with DRY_RUN its text, which a shell would read as the same words.
run() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# The working tree as it is, what git ignores aside: a config that was changed a minute ago is meant. And the records that
# are here, so that a fresh VM does not repeat their runs.
pack() {
  cd -- "$root"
  {
    git ls-files -z --cached --others --exclude-standard
    if [[ -n "${SEND:-}" ]]; then find "$SEND" -type f -print0; fi
  } | while IFS= read -r -d '' file; do
    if [[ -e "$file" ]]; then printf '%s\0' "$file"; fi
  done | tar -czf "$stage/scope_jax_code.tar.gz" --null -T -
  tar -czf "$stage/scope_jax_before.tar.gz" -C "$records" .
}

# What VM number $1 does, as one word for its shell. The lock: if the connection was lost, the sweep goes on over there, and
# a second call waits for it.
remote() {
  local number="$1" command
  shift
  printf -v command '%q ' .venv/bin/python -m scope_jax.sweep --sweep="$sweep" --workdir=runs/sweep --records=sweep_records \
    --shard="$number/${#vms[@]}" "$@"
  printf -v command '%s; ' 'set -euo pipefail' \
    'mkdir -p scope_jax_sweep/sweep_records' 'cd scope_jax_sweep' 'exec 9>sweep.lock' 'flock 9' \
    'tar -xzf ../scope_jax_code.tar.gz' 'tar -xzf ../scope_jax_before.tar.gz -C sweep_records' \
    "make setup EXTRAS=tpu PYTHON=$(printf '%q' "${VM_PYTHON:-python3}")" \
    "code=0" "SCOPE_JAX_CODE=$(printf '%q' "$code") $command || code=\$?" \
    'tar -czf ../scope_jax_records.tar.gz -C sweep_records .' "exit \$code"
  printf 'bash -c %q' "$command"
}

one_vm() {
  local number="$1" vm="${vms[$1]}" result=0
  shift
  run "${at[@]}" scp "${where[@]}" "$stage/scope_jax_code.tar.gz" "$stage/scope_jax_before.tar.gz" "$vm:" || return
  run "${at[@]}" ssh "${where[@]}" "$vm" --command="$(remote "$number" "$@")" || result=$?
  # Also after failures: what is done is done.
  run "${at[@]}" scp "${where[@]}" "$vm:scope_jax_records.tar.gz" "$stage/$number.tar.gz" || return
  run tar -xzf "$stage/$number.tar.gz" -C "$records" || return
  return "$result"
}

if [[ -n "${DRY_RUN:-}" ]]; then
  for number in "${!vms[@]}"; do one_vm "$number" "$@"; done
  exit 0
fi
(pack)
# Each VM in a process group of its own, so that Ctrl-C ends what belongs to it as well. The VMs go on; see the lock above.
set -m
workers=()
trap 'for worker in "${workers[@]}"; do kill -- "-$worker" 2> /dev/null || true; done; exit 130' INT TERM
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
