#!/usr/bin/env bash
# `launch/tpu.sh watch`: a run that is brought back for as long as that makes sense. tpu.sh sources this.
# shellcheck disable=SC2154
set -euo pipefail

# Seconds between two looks at the run, and how many looks in a row may fail while the slice is said to be usable.
watch_seconds="${WATCH_SECONDS:-60}"
misses_allowed="${WATCH_MISSES:-5}"
# Seconds that workers have to end after another one failed: worker 0 may be copying to the bucket.
linger_seconds="${LINGER_SECONDS:-600}"
# The pause before the second attempt; each further one is twice as long, up to half an hour. Attempts count anew after a run
# that lasted for steady_seconds.
pause_seconds="${PAUSE_SECONDS:-60}"
steady_seconds="${STEADY_SECONDS:-3600}"

# How often in all a run may fail to start on one slice.
start_tries=3

# Of the slice that is there: whether this command has set it up, and how often a start has failed since the last one that did not,
# on workers that answered and on workers that did not.
shipped="" refused=0 silent=0

# Exits 0: the run is finished. 2: bad input, it gave up, or another run is alive on the slice. 75: somebody stopped it. 1: the
# attempts are used up, or workers that answer could not be made to start it. What is a slice's fault, a storage's or a network's
# (exit code 1) is an attempt, and never final by itself.
watch_run() {
  local attempt=1 attempts="${settings[attempts]:-10}" began lasted pause outcome crashes=0 others=""
  forget_stop
  # Once: what is edited meanwhile belongs to other runs.
  pack_code
  while :; do
    say "attempt $attempt of $attempts: ${settings[run]} on $name"
    lasted=0 outcome=failed
    if ensure_slice; then
      began="$SECONDS"
      if ensure_running; then
        if [[ -n "${DRY_RUN:-}" ]]; then
          on_all status "${settings[run]}"
          return
        fi
        refused=0 silent=0
        follow
        lasted=$((SECONDS - began))
      else
        why_not_started
      fi
    fi
    say "${settings[run]}: $outcome"
    case "$outcome" in
      finished)
        if [[ -n "${given[delete-after]:-}" ]]; then
          others="$(others_alive || true)"
          if [[ -n "$others" ]]; then
            say "not deleted: $(runs_there "$others")"
          else
            delete_slice || exit 1
          fi
        else
          say "$name still costs; launch/tpu.sh stop $name deletes it"
        fi
        exit 0
        ;;
      bad)
        echo "error: the run ended with exit code 2 (bad input, or it gave up) and is not tried again; its last words are above" >&2
        say "$name still costs; launch/tpu.sh stop $name deletes it"
        exit 2
        ;;
      asked)
        say "the run was stopped by somebody; the same command goes on with it"
        exit 75
        ;;
      occupied) fail "$(runs_there "$others")" ;;
      refused)
        echo "error: ${settings[run]}: not started in $refused tries on $name, whose workers answer; what they said is above" >&2
        say "$name still costs; launch/tpu.sh stop $name deletes it"
        exit 1
        ;;
      crashed) crashes=$((crashes + 1)) ;;
      unreachable)
        # Said to be usable, and is not: another one. Unless all of it answers after all (it was this machine that had no network),
        # or another run is alive on the part that does.
        if [[ ! -e "$kept/stopped" && "$(slice_state)" != unknown ]]; then
          if others="$(others_alive)" && [[ -z "$others" ]]; then
            say "$name answers again, and is kept"
          elif [[ -n "$others" ]]; then
            fail "$(runs_there "$others")"
          else
            delete_slice || true
          fi
        fi
        ;;
    esac
    if [[ -e "$kept/stopped" ]]; then exit 75; fi
    # Of the run: what a request waited in the queue for nothing is not counted.
    if [[ "$lasted" -ge "$steady_seconds" ]]; then attempt=0 crashes=0; fi
    if [[ "$attempt" -ge "$attempts" ]]; then
      # sweep_slice.sh tells the two by these words.
      if [[ "$crashes" -ge "$attempt" ]]; then
        echo "error: the run crashed in each of $attempt attempts and is given up; its last words are above" >&2
      else
        echo "error: ${settings[run]}: given up after $attempt attempts; what it has is in ${settings[bucket]}/${settings[run]}" >&2
      fi
      say "state of $name: $(slice_state); launch/tpu.sh stop $name deletes what is left"
      exit 1
    fi
    pause=$((pause_seconds << (attempt > 5 ? 5 : (attempt > 1 ? attempt - 1 : 0))))
    pause=$((pause > 1800 ? 1800 : pause))
    say "${settings[run]} is tried again in $pause s"
    sleep "$pause"
    attempt=$((attempt + 1))
    if [[ -e "$kept/stopped" ]]; then exit 75; fi
  done
}

# The outcome of a start that failed: occupied where another run is alive, else not started, and after so many tries refused
# where all workers answer (those of another slice would refuse it too), unreachable where they do not.
why_not_started() {
  outcome="not started"
  if others="$(others_alive)"; then
    refused=$((refused + 1))
    if [[ "$refused" -ge "$start_tries" ]]; then outcome=refused; fi
  else
    silent=$((silent + 1))
    if [[ "$silent" -ge "$start_tries" ]]; then outcome=unreachable silent=0; fi
  fi
  if [[ -n "$others" ]]; then outcome=occupied; fi
}

# A usable slice: the one that is there, or a new one in the place of one that is gone.
ensure_slice() {
  local state
  state="$(slice_state)"
  if [[ "$state" == usable ]]; then return; fi
  shipped="" refused=0 silent=0
  case "$state" in
    waiting) ;;
    gone)
      say "$name is gone: deleting what is left of it"
      delete_slice || return
      create_slice || return
      ;;
    none) create_slice || return ;;
    *) return 1 ;;
  esac
  wait_for_slice
}

# The run on every worker: one that is alive there (this command was started again) is left alone.
ensure_running() {
  local lines
  if [[ -z "${DRY_RUN:-}" ]] && lines="$(look 2> /dev/null)" && ! grep -qv state=running <<< "$lines"; then
    say "${settings[run]} is running there already"
    return
  fi
  # What is left of an attempt before.
  if [[ -n "${lines:-}" ]]; then on_all stop "${settings[run]}" "$linger_seconds" hard || return; fi
  if [[ -z "$shipped" ]]; then set_up || return; fi
  # A slice that somebody else made anew has no code: the next attempt brings it.
  shipped=""
  start_run || return
  shipped=yes
}

# One line a worker; fails where one does not answer, or says nothing sensible.
look() {
  local lines of
  # By a file: a connection that hangs and is given up would keep $(...) open.
  SSH_SECONDS="${LOOK_SECONDS:-180}" on_all status "${settings[run]}" > "$stage/look" || return 1
  lines="$(grep -E '^worker=[0-9]+ of=[0-9]+ state=' "$stage/look")" || return 1
  of="$(sed -nE '1s/.* of=([0-9]+) .*/\1/p' <<< "$lines")"
  [[ "$(wc -l <<< "$lines")" -eq "$of" ]] || return 1
  sort -t= -k2n <<< "$lines"
}

# Until the run has ended in one way or another; says which in `outcome`: finished, bad, asked, crashed (by its own fault), failed,
# gone, unreachable.
follow() {
  local lines bad misses=0 since="" state step="" before=""
  while :; do
    sleep "$watch_seconds"
    if [[ -e "$kept/stopped" ]]; then
      outcome=asked
      return
    fi
    if ! lines="$(look 2> "$stage/look.err")"; then
      state="$(slice_state)"
      case "$state" in
        usable | unknown)
          misses=$((misses + 1))
          say "no answer from every worker ($misses of $misses_allowed; slice: $state)"
          if [[ "$misses" -lt "$misses_allowed" ]]; then continue; fi
          tail -n 5 -- "$stage/look.err" >&2
          outcome=unreachable
          ;;
        *) outcome=gone ;;
      esac
      return
    fi
    misses=0
    step="$(sed -nE '1s/.* step=([^ ]*).*/\1/p' <<< "$lines")"
    if [[ "$step" != "$before" ]]; then say "${settings[run]}: step $step"; fi
    before="$step"
    bad="$(grep -v -e state=running -e 'state=ended code=0 ' <<< "$lines" || true)"
    if grep -q state=running <<< "$lines"; then
      # One that has ended well may be ahead of the others.
      if [[ -z "$bad" ]]; then
        since=""
        continue
      fi
      since="${since:-$SECONDS}"
      if [[ $((SECONDS - since)) -lt "$linger_seconds" ]]; then continue; fi
      say "some workers are left over; ending them"
      on_all stop "${settings[run]}" 30 hard || true
    fi
    if [[ -z "$bad" ]]; then
      outcome=finished
      return
    fi
    echo "$lines"
    on_all log "${settings[run]}" 15 || true
    if grep -q ' code=2 ' <<< "$lines"; then
      outcome=bad
    elif grep -q ' asked=yes ' <<< "$lines"; then
      outcome=asked
    elif grep -q ' own=yes$' <<< "$lines" && ! grep -q ' own=no$' <<< "$lines"; then
      outcome=crashed
    else
      outcome=failed
    fi
    return
  done
}
