#!/usr/bin/env bash
# Train on GPU nodes of a Slurm cluster, one process a node with all of its GPUs. In the repository, on a disk that all nodes see:
#   sbatch [--nodes=N --gpus-per-node=G --partition=P --account=A ...] launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]
# Before the time limit the run stops with a checkpoint and the job is queued again, until the run is finished.
# scancel --signal=USR1 --batch JOB: stop with a checkpoint and stay stopped; the same sbatch command goes on.
# DRY_RUN=1, without sbatch: print what a node would run. Not run on a real cluster yet: docs/launching.md says what was tested.
#SBATCH --job-name=scope_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

if [[ $# -lt 2 || "$1" == -* || "$2" == -* ]]; then
  echo "usage: sbatch [OPTIONS] launch/slurm.sh CONFIG WORKDIR [--config.key=value ...]" >&2
  exit 2
fi
config="$1" workdir="$2"
shift 2
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' srun --ntasks-per-node=1 "${PYTHON:-.venv/bin/python}" -m scope_jax.train --config="$config" --workdir="$workdir" "$@"
  echo
  exit 0
fi
[[ -n "${SLURM_JOB_ID:-}" ]] || fail "not a job of Slurm; submit it: sbatch launch/slurm.sh $config $workdir"
# Slurm runs a copy of this script that lies elsewhere; where sbatch was called is known.
cd -- "${SLURM_SUBMIT_DIR:-.}"
[[ -f launch/slurm.sh ]] || fail "$PWD is not the repository; call sbatch there"
python="${PYTHON:-.venv/bin/python}"
command -v -- "$python" > /dev/null || fail "$python is missing; make setup EXTRAS=cuda, or PYTHON=..."
nodes="${SLURM_JOB_NUM_NODES:-1}" gpus="${SLURM_GPUS_ON_NODE:-0}"
[[ "$gpus" -gt 0 ]] || fail "the job has no GPUs; ask for them: sbatch --gpus-per-node=N"

# As in run_local.sh.
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/scope_jax/compiled}"
extra=()
if [[ "$nodes" -gt 1 ]]; then
  extra+=(--distributed=auto)
  # Under Slurm JAX would take one GPU for each process.
  JAX_LOCAL_DEVICE_IDS="$(seq -s , 0 "$((gpus - 1))")"
  export JAX_LOCAL_DEVICE_IDS
fi

child="" interrupted="" for_good="" code=1
# srun hands the signal on to its tasks. One is enough: the processes agree on where to stop.
pass_on() {
  interrupted=yes
  if [[ -n "$child" ]]; then kill -TERM "$child" 2> /dev/null || true; fi
}
trap pass_on TERM
trap 'for_good=yes; pass_on' USR1

# No --kill-on-bad-exit: a process that has stopped must not end the others while they write their part of a checkpoint.
srun --export=ALL --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 \
  "$python" -m scope_jax.train --config="$config" --workdir="$workdir" "${extra[@]}" "$@" &
child=$!
if [[ -n "$interrupted" ]]; then pass_on; fi
while :; do
  interrupted="" now=0
  wait "$child" || now=$?
  # 127: it had ended before a signal could disturb this.
  if [[ "$now" -ne 127 ]]; then code="$now"; fi
  if [[ -z "$interrupted" ]]; then break; fi
done

echo "== $(date -u +%FT%TZ) $workdir: exit code $code"
if [[ "$code" -eq 75 && -z "$for_good" ]]; then
  # A job that somebody cancelled is no longer RUNNING here, and stays cancelled.
  state="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T || true)"
  if [[ "$state" != RUNNING ]]; then
    echo "== the job is ${state:-unknown to squeue}: not queued again; the same sbatch command goes on"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "== queued again"
  else
    echo "error: the job could not be queued again; the same sbatch command goes on" >&2
  fi
fi
exit "$code"
