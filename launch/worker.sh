#!/usr/bin/env bash
# What launch/tpu.sh has done on each worker (host) of a slice. It is shipped with the code and lies beside it there.
#
#   worker.sh setup [PYTHON [EXTRAS [FILES]]]       make .venv, lay what is in FILES (gs://...) beside the code; then does nothing
#   worker.sh start RUN BUCKET CONFIG [OVERRIDE ...]  train, detached from the connection; BUCKET may be ""
#   worker.sh status RUN       one line: worker=0 of=1 state=running|ended|lost|none code=75 asked=no step=120 own=-
#   worker.sh stop RUN SECONDS [hard]               SIGTERM, and wait for its checkpoint and its copy; hard: SIGKILL after that
#   worker.sh log RUN LINES [follow]
#   worker.sh pack RUN                              its workdir as scope_jax_workdir.tar in the home directory
#   worker.sh idle [RUN]                            fails where a run is alive, RUN aside
#   worker.sh chips N COMMAND ...                   the command N times side by side, each on a chip of its own
#
# launched/RUN/ holds log, exit (exit code, once ended), own (whether a crash was the run's own), pid, lock (held for as long as the
# run lives), asked (somebody stopped it), unsaved (what came last of it is not in the bucket). With DRY_RUN nothing is done here.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$root"
# Seconds between two copies of the workdir to the bucket.
sync_seconds="${SYNC_SECONDS:-60}"

fail() {
  echo "error: $(hostname): $*" >&2
  exit "${code:-2}"
}

# What the TPU VM knows about itself; jax.distributed asks the same two.
metadata() {
  curl --silent --fail --max-time 10 --retry 3 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

who_am_i() {
  local endpoints
  if ! worker="$(metadata agent-worker-number)" || ! endpoints="$(metadata worker-network-endpoints)"; then
    fail "the metadata server does not say which worker this is; is this a TPU VM?"
  fi
  # One entry a worker, separated by commas.
  endpoints="${endpoints//[!,]/}"
  workers=$((${#endpoints} + 1))
}

setup() {
  local python="${1:-}" extras="${2:-tpu}" files="${3:-}" candidate
  if [[ -z "$python" ]]; then
    for candidate in python3.12 python3.13 python3.11 python3; do
      if "$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; then
        python="$candidate"
        break
      fi
    done
  fi
  if [[ -z "$python" ]]; then
    # The images of TPU VMs have 3.10: a newer one, in the home directory.
    python3 -m pip install --user --quiet uv
    PATH="$(python3 -m site --user-base)/bin:$PATH"
    uv python install --quiet 3.12
    python="$(uv python find 3.12)"
  fi
  command -v make > /dev/null || fail "make is missing; install it: sudo apt-get install make"
  exec 8> .setup.lock
  flock 8
  make setup EXTRAS="$extras" PYTHON="$python"
  if [[ -n "$files" ]]; then gcloud storage rsync --quiet --recursive "$files" .; fi
}

alive() {
  [[ -e "$place/lock" ]] && ! flock --nonblock --shared "$place/lock" true
}

# Prepares `place` (what is known about the run) and `workdir` for RUN.
of_run() {
  run="$1"
  place="$root/launched/$run"
  workdir="$root/runs/$run"
}

idle() {
  local lock name found=""
  for lock in launched/*/lock; do
    name="$(basename -- "$(dirname -- "$lock")")"
    if [[ "$name" != "${1:-}" && -e "$lock" ]] && ! flock --nonblock --shared "$lock" true; then
      # others_alive in slice.sh reads this line.
      echo "error: $(hostname): $name runs here; stop it first" >&2
      found=yes
    fi
  done
  if [[ -n "$found" ]]; then exit 3; fi
}

start() {
  of_run "$1"
  who_am_i
  local bucket="$2"
  if [[ "$workers" -gt 1 && -z "$bucket" ]]; then
    fail "a slice of $workers workers needs --bucket=gs://...: its workers share no folder for the checkpoints"
  fi
  [[ -x .venv/bin/python ]] || fail "not set up; launch/tpu.sh setup does that"
  mkdir -p -- "$place"
  exec 9>> "$place/lock"
  if ! flock --wait 3 9; then
    echo "worker $worker: $run runs already"
    return
  fi
  # Accelerators and memory are not shared. With its own lock in hand: of two that start at once, at most one goes on.
  idle "$run"
  rm -f -- "$place/exit" "$place/own" "$place/asked" "$place/pid" "$place/unsaved"
  # A session of its own: it outlives the connection, and is a process group that can be ended as one.
  setsid --fork nohup bash "$root/launch/worker.sh" supervise "$@" >> "$place/log" 2>&1 < /dev/null
  echo "worker $worker of $workers: started $run"
}

# The process that stands behind a run: the bucket before, the trainer, the bucket meanwhile and afterwards, the exit code.
supervise() {
  of_run "$1"
  bucket="${2:+$2/$run}"
  local config="$3" child="" interrupted="" code=1 now=0 syncing="" extra=() begin
  shift 3
  echo "$BASHPID" > "$place/pid"
  begin="$(wc -c < "$place/log")"
  trap 'interrupted=yes; if [[ -n "$child" ]]; then kill -TERM "$child" 2> /dev/null || true; fi' TERM INT
  who_am_i
  if [[ "$workers" -gt 1 ]]; then extra+=(--distributed=auto "--config.checkpoint.directory=$bucket/checkpoints"); fi
  echo "== $(date -u +%FT%TZ) worker $worker of $workers: $run"
  if [[ "$worker" -eq 0 && -n "$bucket" ]] && ! pull; then
    echo "error: $bucket cannot be read or written; see above" >&2
    finish 1
  fi
  if [[ -n "$interrupted" ]]; then finish 75; fi
  secrets
  # As in run_local.sh.
  export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/scope_jax/compiled}"
  .venv/bin/python -m scope_jax.train --config="$config" --workdir="runs/$run" "${extra[@]}" "$@" &
  child=$!
  if [[ "$worker" -eq 0 && -n "$bucket" ]]; then
    keep_pushing &
    syncing=$!
  fi
  while :; do
    if [[ -n "$interrupted" ]]; then kill -TERM "$child" 2> /dev/null || true; fi
    interrupted="" now=0
    wait "$child" || now=$?
    # 127: it had ended before a signal could disturb this.
    if [[ "$now" -ne 127 ]]; then code="$now"; fi
    if [[ -z "$interrupted" ]]; then break; fi
  done
  if [[ -n "$syncing" ]]; then
    kill -TERM "$syncing" 2> /dev/null || true
    wait "$syncing" || true
  fi
  whose_fault "$code" "$begin" > "$place/own" || true
  if [[ -n "$syncing" ]] && ! { push || push || push; }; then
    echo "error: $bucket cannot be written: what came last of $run is on this machine only" >&2
    touch -- "$place/unsaved"
    # Not finished before it is there.
    if [[ "$code" -eq 0 ]]; then code=1; fi
  fi
  finish "$code"
}

finish() {
  echo "== $(date -u +%FT%TZ) $run ended with exit code $1"
  echo "$1" > "$place/exit.new"
  mv -- "$place/exit.new" "$place/exit"
  exit 0
}

# How a trainer's exit code CODE speaks of the run, by what its log says from byte BEGIN on. yes: it crashed by itself. no: storage,
# network, disk (one line `error: ...`), the device, a signal, or nobody knows. -: it did not crash, or because another worker did.
whose_fault() {
  local words device='(Jax|Xla)RuntimeError: |(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): '
  local around='OSError|IOError|[Cc]onnection|[Tt]imeout|[Tt]imed out|[Uu]navailable|H(ttp|TTP)Error|No space left'
  case "$1" in
    0 | 2 | 75 | 76)
      echo -
      return
      ;;
  esac
  words="$(tail -c "+$(($2 + 1))" -- "$place/log" | tr '\r' '\n' | tail -n 40)"
  if [[ "$1" -ge 128 ]]; then
    echo no
  elif grep -qE 'error: process [0-9]+ of [0-9]+ failed: ' <<< "$words"; then
    echo -
  # A run that does not fit into memory will not the next time.
  elif grep -q 'RuntimeError: RESOURCE_EXHAUSTED' <<< "$words"; then
    echo yes
  elif grep -qE "(^|[^[:alpha:]])error: |$device|$around" <<< "$words"; then
    echo no
  else
    echo yes
  fi
}

# KEY=value lines of a file that only this user can read become the trainer's environment. Nothing in it is executed.
secrets() {
  local line
  if [[ ! -f .secrets/env ]]; then return; fi
  while IFS= read -r line || [[ -n "$line" ]]; do
    if [[ "$line" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then export "${line?}"; fi
  done < .secrets/env
}

# ---- the workdir and the bucket (worker 0)
#
# The trainer writes a local folder. The bucket holds a copy of it, so that the run outlives the machine. The file .origin, a word
# drawn by the machine that took the run over last, says whose copy it is: one that another machine has overtaken neither
# goes on from its old folder nor writes over the newer copy.

bucket_origin() {
  local said
  if said="$(gcloud storage cat "$bucket/.origin" 2> "$place/gcloud.err")"; then
    echo "$said"
  elif ! grep -q 'matched no objects' "$place/gcloud.err"; then
    cat "$place/gcloud.err" >&2
    return 1
  fi
}

own_origin() {
  cat "$workdir/.origin" 2> /dev/null || true
}

pull() {
  local there mine aside skip='^logs/'
  # Several workers write their parts of the checkpoints straight to the bucket.
  if [[ "$workers" -gt 1 ]]; then skip='^(logs|checkpoints)/'; fi
  there="$(bucket_origin)" || return 1
  mine="$(own_origin)"
  if [[ -n "$there" && "$there" == "$mine" ]]; then return; fi
  if [[ -n "$there" ]]; then
    echo "== $run is in $bucket: taking it from there"
    # Each by itself: what is called in a condition does not stop at errors.
    rm -rf -- "$place/pulled" || return 1
    mkdir -p -- "$place/pulled" runs || return 1
    gcloud storage rsync --quiet --recursive --exclude="$skip" "$bucket" "$place/pulled" || return 1
    if [[ -e "$workdir" ]]; then
      aside="$workdir.before.$(date -u +%Y%m%dT%H%M%S)"
      echo "== the older folder that was here is now $aside"
      mv -- "$workdir" "$aside" || return 1
    fi
    mv -- "$place/pulled" "$workdir" || return 1
  fi
  mkdir -p -- "$workdir" || return 1
  echo "$(hostname) $(date -u +%FT%TZ) $RANDOM$RANDOM$RANDOM" > "$workdir/.origin" || return 1
  gcloud storage cp --quiet "$workdir/.origin" "$bucket/.origin"
}

# First everything else, then the checkpoints that were complete before that: the metrics of the copy are never behind its
# checkpoints. Then what is no checkpoint here any more is removed there. At any moment of this, the bucket has a whole one. Hard
# links keep a checkpoint that the trainer replaces while it is copied.
push() {
  local folder step steps=() there links="$place/links"
  there="$(bucket_origin)" || return 1
  if [[ "$there" != "$(own_origin)" ]]; then
    echo "warning: another machine has taken $run over ($there); nothing is copied to $bucket any more" >&2
    return
  fi
  rm -rf -- "$links" || return 1
  mkdir -p -- "$links" || return 1
  if [[ "$workers" -eq 1 ]]; then
    for folder in "$workdir"/checkpoints/*/; do
      step="$(basename -- "$folder")"
      # Not what is being written (that has another name), nor what is just being removed.
      if [[ ! "$step" =~ ^[0-9]+$ ]]; then continue; fi
      if cp -al -- "$folder" "$links/$step" && [[ -d "$folder" ]]; then
        steps+=("$step")
      elif [[ -d "$folder" ]]; then
        # No room for the links, say. It must not count as one that is gone.
        return 1
      fi
    done
  fi
  gcloud storage rsync --quiet --recursive '--exclude=^(checkpoints/|[.]origin$)' "$workdir" "$bucket" || return 1
  cp -- "$place/log" "$place/log.copy" && gcloud storage cp --quiet "$place/log.copy" "$bucket/logs/worker_$worker.log" || return 1
  if [[ "${#steps[@]}" -eq 0 ]]; then return; fi
  for step in "${steps[@]}"; do
    gcloud storage rsync --quiet --recursive "$links/$step" "$bucket/checkpoints/$step" || return 1
  done
  there="$(gcloud storage ls "$bucket/checkpoints/")" || return 1
  while IFS= read -r folder; do
    step="$(basename -- "$folder")"
    if [[ "$step" =~ ^[0-9]+$ && " ${steps[*]} " != *" $step "* ]]; then
      gcloud storage rm --quiet --recursive "$bucket/checkpoints/$step" || return 1
    fi
  done <<< "$there"
}

keep_pushing() {
  # Asked to end, it ends between two copies, not within one.
  local stopping="" nap
  trap 'stopping=yes; kill "$nap" 2> /dev/null || true' TERM
  trap '' INT
  while [[ -z "$stopping" ]]; do
    sleep "$sync_seconds" &
    nap=$!
    wait "$nap" || true
    if [[ -z "$stopping" ]]; then push > "$place/push.log" 2>&1 || cat "$place/push.log" >&2; fi
  done
}

# ----

status() {
  of_run "$1"
  who_am_i
  local state=none ended=- asked=no own=- step=-
  if [[ -e "$place/exit" ]]; then
    state=ended ended="$(cat "$place/exit")" own="$(cat "$place/own" 2> /dev/null || echo -)"
  elif alive; then
    state=running
  elif [[ -d "$place" ]]; then
    state=lost
  fi
  if [[ -e "$place/asked" ]]; then asked=yes; fi
  if [[ -s "$workdir/metrics.jsonl" ]]; then
    step="$(tail -n 1 "$workdir/metrics.jsonl" | sed -nE 's/^\{"step": ([0-9]+).*/\1/p')"
  fi
  echo "worker=$worker of=$workers state=$state code=$ended asked=$asked step=${step:--} own=$own"
}

stop() {
  of_run "$1"
  local seconds="$2" hard="${3:-}" pid waited=0
  # "soft": the slice goes on, somebody wants the run to end. "hard": the launcher clears up before it starts the run again.
  if [[ "$hard" != hard && -d "$place" ]]; then touch -- "$place/asked"; fi
  if ! alive; then
    all_saved "$hard"
    return
  fi
  pid="$(cat "$place/pid" 2> /dev/null || true)"
  if [[ -n "$pid" ]]; then kill -TERM "$pid" 2> /dev/null || true; fi
  while alive && [[ "$waited" -lt "$((seconds * 5))" ]]; do
    sleep 0.2
    waited=$((waited + 1))
  done
  if ! alive; then
    echo "$run ended with exit code $(cat "$place/exit" 2> /dev/null || echo unknown)"
    all_saved "$hard"
    return
  fi
  if [[ "$hard" != hard || -z "$pid" ]]; then code=4 fail "$run did not end within $seconds s; its log says why"; fi
  kill -KILL -- "-$pid" 2> /dev/null || true
  while alive; do sleep 0.2; done
}

# Before a slice is deleted. "hard": the run goes on here, and its next end brings what is missing.
all_saved() {
  if [[ "$1" != hard && -e "$place/unsaved" ]]; then
    code=4 fail "what came last of $run is on this machine only: the bucket could not be written; start it again, or --discard"
  fi
}

log() {
  of_run "$1"
  [[ -e "$place/log" ]] || fail "$1: no log here"
  if [[ "${3:-}" == follow ]]; then
    exec tail -n "$2" -F "$place/log"
  fi
  tail -n "$2" "$place/log"
}

pack() {
  of_run "$1"
  [[ -d "$workdir" ]] || fail "$1: no such run here"
  tar -cf ../scope_jax_workdir.tar -C runs -- "$1"
}

chips() {
  local count="$1" chip child children=() code=0 one
  shift
  for ((chip = 0; chip < count; chip++)); do
    TPU_VISIBLE_CHIPS="$chip" TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1 TPU_PROCESS_BOUNDS=1,1,1 "$@" &
    children+=($!)
  done
  for child in "${children[@]}"; do
    one=0
    wait "$child" || one=$?
    if [[ "$one" -gt "$code" ]]; then code="$one"; fi
  done
  return "$code"
}

case "${1:-}" in
  setup | start | supervise | status | stop | log | pack | idle | chips)
    if [[ -n "${DRY_RUN:-}" ]]; then
      printf '%q ' "$@"
      echo
    else
      "$@"
    fi
    ;;
  *) fail "expected setup, start, status, stop, log, pack, idle or chips" ;;
esac
