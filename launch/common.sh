#!/usr/bin/env bash
# What the scripts that speak to Cloud TPU VMs share. They source it; by itself it does nothing.
set -euo pipefail

# Of DRY_RUN: what is printed must not end up in a $(...).
exec 3>&1

fail() {
  echo "error: $*" >&2
  exit 2
}

say() {
  echo "== $(date +%H:%M:%S) $*"
}

# A command, or with DRY_RUN its text, which a shell would read as the same words.
run() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@" >&3
    echo >&3
  else
    "$@"
  fi
}

# Words as one word for the shell of another machine, whichever shell that is.
remote_word() {
  local words
  printf -v words '%q ' "$@"
  printf 'bash -c %q' "${words% }"
}

# pack ROOT ARCHIVE [DIRECTORY]: the working tree as it is, what git ignores aside: a config that was changed a minute ago is
# meant. DIRECTORY: of the tree, goes along although git ignores it. Weights that somebody put beside the code are not meant.
pack() {
  local root="$1" archive="$2" also="${3:-}" most="${PACK_MB:-500}" code=0
  (
    cd -- "$root" || exit
    # What fails here would otherwise be a short archive that counts as a whole one.
    {
      git ls-files -z --cached --others --exclude-standard || exit
      if [[ -n "$also" ]]; then find "$also" -type f -print0 || exit; fi
    } | while IFS= read -r -d '' file; do
      if [[ -e "$file" ]]; then printf '%s\0' "$file"; fi
    done | tar -cz --null -T - | head -c "$((most * 1000000 + 1))" > "$archive"
  ) || code=$?
  if [[ "$(wc -c < "$archive")" -gt "$((most * 1000000))" ]]; then
    fail "the working tree${also:+ with $also} packs to over $most MB; let git ignore what is large (.git/info/exclude)${also:+, send less}, or raise PACK_MB"
  fi
  if [[ "$code" -ne 0 ]]; then fail "$root could not be packed (exit code $code; see above)"; fi
}

# The commit of the tree at $1; + where it has changes.
code_version() {
  git -C "$1" describe --always --dirty=+
}
