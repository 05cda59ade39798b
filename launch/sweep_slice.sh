#!/usr/bin/env bash
# A sweep on one slice of any number of workers: one run after another has the whole slice, each by `launch/tpu.sh watch`, so that
# a slice that is taken away is made anew and its run goes on.
#
#   launch/sweep_slice.sh SWEEP RECORDS SLICE [OPTION of launch/tpu.sh watch ...] [-- [--only=PATTERN] [--shard=I/N]]
#
# Runs that have a record in RECORDS are left out; give the same command again after an interruption. Several slices: the same
# command for each, with a shard of its own. --delete-after: delete the slice when all is done.
# PYTHON: with scope_jax, on this machine (default: .venv/bin/python of the repository). DRY_RUN=1: print the commands.
# Exit code 0: every run has its record; 1: a run failed, or was given up; 2: bad input; 75: somebody stopped the run.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/common.sh
source "$here/common.sh"
root="$(dirname -- "$here")"

usage="usage: launch/sweep_slice.sh SWEEP RECORDS SLICE [OPTION of launch/tpu.sh watch ...] [-- [--only=PATTERN] [--shard=I/N]]"
if [[ $# -lt 3 ]]; then fail "$usage"; fi
sweep="$1" records="$2" slice="$3"
shift 3
options=() delete="" bucket=""
while [[ $# -gt 0 && "$1" != -- ]]; do
  case "$1" in
    --delete-after) delete=yes ;;
    --run=* | --config.*) fail "$1 is set by this script" ;;
    --bucket=*)
      bucket="${1#--bucket=}"
      options+=("$1")
      ;;
    *) options+=("$1") ;;
  esac
  shift
done
if [[ "${1:-}" == -- ]]; then shift; fi
for option in "$@"; do
  [[ "$option" == --only=* || "$option" == --shard=* ]] || fail "$option: after -- come --only=PATTERN and --shard=I/N"
done
[[ "$slice" =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || fail "$slice: a slice's name has small letters, digits and -, as in tpu-0"
[[ -f "$sweep" ]] || fail "$sweep: no such sweep file; give one such as configs/sweeps/miniature_table.py"
sweep="$(cd -- "$(dirname -- "$sweep")" && pwd)/$(basename -- "$sweep")"
[[ "$sweep" == "$root"/* ]] || fail "$sweep: the sweep file must be in $root, which is what the workers get"
sweep="${sweep#"$root"/}"
# Given before, it is kept with the slice.
if [[ -z "$bucket" && -f "$root/runs/slices/$slice/settings" ]]; then
  bucket="$(sed -n 's/^bucket=//p' "$root/runs/slices/$slice/settings")"
fi
[[ -n "$bucket" ]] || fail "--bucket=gs://... is missing: runs that a slice is taken from go on from there"
while [[ "$bucket" == */ ]]; do bucket="${bucket%/}"; done
mkdir -p -- "$records"
records="$(cd -- "$records" && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
stage="$(mktemp -d)"
trap 'rm -rf -- "$stage"' EXIT
# Sweep and config files are named from the top of the repository, here and on the workers.
cd -- "$root"
ask() {
  "$python" -m scope_jax.sweep_slice "$1" --sweep="$sweep" --records="$records" "${@:2}"
}

ask plan "$@" > "$stage/plan" || exit 2
mapfile -d '' names < "$stage/plan"
bad=0
for name in "${names[@]}"; do
  # A run's name in the bucket is one word of a path.
  run="${name//\//__}" code=0
  say "$name"
  bash "$here/tpu.sh" watch "$slice" "configs/sweeps/one.py:$sweep:$name" "${options[@]}" --run="$run" 2>&1 | tee "$stage/said" || code=$?
  if [[ -n "${DRY_RUN:-}" ]]; then
    if [[ "$code" -ne 0 ]]; then exit "$code"; fi
    continue
  fi
  if [[ "$code" -eq 2 ]] && grep -q '^error: the run ended with exit code 2' "$stage/said"; then
    # What the trainers said stands in the ends of the workers' logs, behind their exit codes.
    reason="$(sed -n '/ code=2 /,$p' "$stage/said" | grep 'error: ' | grep -v '^error: the run ended' | sort -u | paste -sd '|' - || true)"
    ask failed --name="$name" --reason="${reason:-exit code 2}"
    say "$name: FAILED: ${reason:-exit code 2}"
    bad=1
  elif [[ "$code" -ne 0 ]]; then
    exit "$code"
  else
    rm -rf -- "$stage/run"
    mkdir -- "$stage/run"
    gcloud storage cp --quiet "$bucket/$run/metrics.jsonl" "$bucket/$run/summary.json" "$stage/run/"
    ask record --name="$name" --workdir="$stage/run"
    say "$name: done"
  fi
done
if [[ -n "$delete" ]]; then bash "$here/tpu.sh" stop "$slice"; fi
exit "$bad"
