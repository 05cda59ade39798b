#!/usr/bin/env bash
# A sweep on one slice of any number of workers: one run after another has the whole slice, each by `launch/tpu.sh watch`, so that
# a slice that is taken away is made anew and its run goes on.
#
#   launch/sweep_slice.sh SWEEP RECORDS SLICE [OPTION of launch/tpu.sh watch ...] [-- [--only=PATTERN] [--shard=I/N]]
#
# Runs that have a record in RECORDS are left out; give the same command again after an interruption. Several slices: the same
# command for each, with a shard of its own. --delete-after: delete the slice when all is done. --send=cache/checkpoints: what the
# sweep's runs start from, which git ignores.
# PYTHON: with scope_jax, on this machine (default: .venv/bin/python of the repository). DRY_RUN=1: print the commands; the sweep
# file is read for that, nothing is written.
#
# A run that ended with exit code 2 (bad input, or it gave up), or that crashed by its own fault in each attempt of watch, leaves
# NAME.failed.json, and the next one is started. What storage, network or slice did leaves nothing: watch tries it so many
# times, and then the sweep ends.
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
    # Of the folder that this was called from, which is left below.
    --secrets=[!/]*) options+=("--secrets=$PWD/${1#--secrets=}") ;;
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
if [[ -z "${DRY_RUN:-}" ]]; then
  mkdir -p -- "$records"
  records="$(cd -- "$records" && pwd)"
else
  if [[ "$records" != /* ]]; then records="$PWD/$records"; fi
  # Reading the sweep's files leaves nothing beside them.
  export PYTHONDONTWRITEBYTECODE=1
fi
python="${PYTHON:-$root/.venv/bin/python}"
if [[ "$python" == */* && "$python" != /* ]]; then python="$PWD/$python"; fi
stage="$(mktemp -d)"
trap 'rm -rf -- "$stage"' EXIT
# Sweep and config files are named from the top of the repository, here and on the workers.
cd -- "$root"
ask() {
  "$python" -m scope_jax.sweep.slices "$1" --sweep="$sweep" --records="$records" "${@:2}"
}

# Metrics, summary and counts by problem of run $1, which is finished: they are in the bucket, which may not answer at the moment.
bring() {
  local pause="${PAUSE_SECONDS:-60}" try
  for try in 1 2 3; do
    rm -rf -- "$stage/run"
    mkdir -- "$stage/run"
    if gcloud storage cp --quiet "$bucket/$1/metrics.jsonl" "$bucket/$1/summary.json" "$stage/run/"; then
      # A run without an evaluation has no counts by problem.
      gcloud storage cp --quiet "$bucket/$1/evaluation_problems.json" "$stage/run/" 2> /dev/null ||
        echo "$1: no counts by problem in the bucket; its record has none" >&2
      return
    fi
    if [[ "$try" -lt 3 ]]; then sleep "$((pause * try))"; fi
  done
  return 1
}

# What the trainers of the last attempt said at their end: it stands in the ends of their logs, behind the exit codes. Their one
# line of error, or, of a crash, the last line of its traceback.
reason_of_end() {
  local said
  said="$(awk '/^== [0-9:]+ attempt /{said = ""; on = 0} /^worker=/{on = 1} on{said = said $0 "\n"} END{print said}' "$stage/said" |
    grep -v '^error: the run ' || true)"
  { grep 'error: ' <<< "$said" || grep -E '^[A-Za-z_][A-Za-z0-9_.]*(Error|Exception): ' <<< "$said" || true; } |
    sort -u | paste -sd '|' -
}

ask plan "$@" > "$stage/plan" || exit 2
mapfile -d '' names < "$stage/plan"
bad=0
for name in "${names[@]}"; do
  # A run's name in the bucket is one word of a path.
  run="${name//\//__}" code=0
  say "$name"
  # The exit code is that of watch; tee's says nothing about the run.
  bash "$here/tpu.sh" watch "$slice" "configs/sweeps/one.py:$sweep:$name" "${options[@]}" --run="$run" 2>&1 | tee "$stage/said" ||
    code="${PIPESTATUS[0]}"
  if [[ -n "${DRY_RUN:-}" ]]; then
    if [[ "$code" -ne 0 ]]; then exit "$code"; fi
    continue
  fi
  if [[ "$code" -eq 2 ]] && grep -q '^error: the run ended with exit code 2' "$stage/said" ||
    { [[ "$code" -eq 1 ]] && grep -q '^error: the run crashed in each of' "$stage/said"; }; then
    reason="$(reason_of_end)"
    ask failed --name="$name" --reason="${reason:-watch ended with exit code $code}"
    say "$name: FAILED: ${reason:-watch ended with exit code $code}"
    bad=1
  elif [[ "$code" -eq 1 ]]; then
    echo "error: $name: given up, not recorded as failed: not known to be its own fault; the same command goes on" >&2
    exit 1
  elif [[ "$code" -ne 0 ]]; then
    exit "$code"
  elif ! bring "$run"; then
    echo "error: $name: finished, but $bucket/$run cannot be read, so it has no record yet; the same command goes on" >&2
    exit 1
  else
    ask record --name="$name" --workdir="$stage/run" || code=$?
    case "$code" in
      0) say "$name: done" ;;
      2)
        # Whole, but not to be recorded: metrics that were lost with a slice, say. That is no reason to keep the others waiting.
        say "$name: finished, and not recorded (see above)"
        bad=1
        ;;
      *) exit 1 ;;
    esac
  fi
done
# With the options: where nothing was left to run, they may not be kept yet.
if [[ -n "$delete" ]]; then bash "$here/tpu.sh" stop "$slice" "${options[@]}"; fi
exit "$bad"
