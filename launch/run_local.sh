#!/usr/bin/env bash
# Train on this machine (CPU, GPU or one TPU VM): launch/run_local.sh CONFIG WORKDIR [--config.key=value ...]
# CONFIG: as train takes it, such as scope,arithmetic or FILE.py.
# Run the same command again to go on with a run that was stopped. What it prints goes to WORKDIR/run.log too.
# DRY_RUN=1: print the command, run nothing.
set -euo pipefail

if [[ $# -lt 2 || "$1" == -* || "$2" == -* ]]; then
  echo "usage: launch/run_local.sh CONFIG WORKDIR [--config.key=value ...]" >&2
  exit 2
fi
config="$1"
workdir="$2"
shift 2

# The program starts in the repository, for cache/ and data/ there; paths given stay the caller's.
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
# FILE.py or FILE.py:WORDS, of the caller or of the repository; or words for a shipped config, such as scope,arithmetic.
file="$config" words=""
if [[ ! -f "$file" && "$file" == *.py:* ]]; then file="${config%%.py:*}.py" words="${config#"$file"}"; fi
if [[ -f "$file" ]]; then
  config="$(cd -- "$(dirname -- "$file")" && pwd)/$(basename -- "$file")$words"
elif [[ "$file" == *.py && ! -f "$root/$file" ]]; then
  echo "error: $file: no such config file; give one, or words for a shipped one such as scope,arithmetic" >&2
  exit 2
fi
if [[ -z "${DRY_RUN:-}" ]]; then
  mkdir -p -- "$workdir"
  workdir="$(cd -- "$workdir" && pwd)"
elif [[ "$workdir" != /* ]]; then
  workdir="$PWD/$workdir"
fi
# PYTHON, else the repository's environment (make setup EXTRAS=tpu or cuda), else the python3 of the path.
python="${PYTHON:-}"
if [[ "$python" == */* && "$python" != /* && -x "$python" ]]; then python="$PWD/$python"; fi
cd -- "$root"
if [[ -z "$python" ]]; then
  python="python3"
  if [[ -x .venv/bin/python ]]; then python=".venv/bin/python"; fi
fi

command=("$python" -m scope_jax.train --config="$config" --workdir="$workdir" "$@")
if [[ -n "${DRY_RUN:-}" ]]; then
  # As a shell would read it, from the folder that it starts in.
  printf 'cd -- %q\n' "$root"
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi

# Compiled programs are kept, so that going on starts sooner.
export TOKENIZERS_PARALLELISM=false
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/scope_jax/compiled}"

# The trainer takes the place of this script: a signal sent to the script stops it properly, and its exit code is the script's.
exec "${command[@]}" > >(exec tee -ai -- "$workdir/run.log") 2>&1
