"""When one process fails, the others end too: signs of life by way of the key-value store that
`jax.distributed` keeps at process 0.

Without this, the others would wait in their next collective until their patience ends. With one
process nothing here does anything.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

import jax

# Exit code of a process that stopped because another one was not heard of any more.
LOST = 76
# Seconds between two signs of life, and without one until a process counts as lost
# ($SCOPE_JAX_HOST_TIMEOUT overrules it).
BEAT, SILENCE = 1.0, 60.0

_FAILURE = "scope_jax/failure"
_watch: "_Watch | None" = None


def start(silence: float) -> None:
    """Begin to give signs of life and to look at those of the others. For every process of
    several."""
    global _watch
    _watch = _Watch(silence)
    _watch.start()


def is_on() -> bool:
    """Whether this process watches the others, and has not left."""
    return _watch is not None and not _watch.leaving


def leave() -> None:
    """From now on the silence of this process is no failure: its run is over."""
    if _watch is not None:
        _watch.leaving = True


def fail(reason: str, code: int) -> None:
    """Tell the other processes why this one ends, and end it with exit code `code`; they end with
    the same code. Returns, and does nothing, where there is one process."""
    if _watch is None:
        return
    _watch.report(reason, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the usual way out waits for all processes at a barrier


def crashed(error: BaseException) -> None:
    """`fail` for an unexpected error, with its traceback. The error may be that another process
    went away in the middle of a collective: that one's own message is waited for first."""
    if _watch is None:
        return
    if _watch.told.wait(3 * BEAT):
        _watch.join()  # it ends the process
    traceback.print_exception(error)
    fail(f"{type(error).__name__}: {_first_line(error)}", 1)


class _Watch(threading.Thread):
    """Writes signs of life of this process into the store, and reads those of the others."""

    def __init__(self, silence: float):
        super().__init__(name="scope_jax-watch", daemon=True)
        from jax._src import distributed  # no public way to the store

        self.client: Any = distributed.global_state.client
        self.silence = silence
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.leaving = False
        # Set when the run has failed elsewhere: this process is about to end.
        self.told = threading.Event()

    def report(self, reason: str, code: int) -> None:
        if self.told.is_set():
            self.join()
        self.leaving = True
        # Where it cannot be set, another process was faster, or the store is gone: either way the
        # others are told.
        with contextlib.suppress(Exception):
            self.client.key_value_set(
                _FAILURE, json.dumps({"process": self.process, "reason": reason, "code": code})
            )
        self._linger()

    def run(self) -> None:
        last: dict[int, tuple[str, float]] = {}
        beats = 0
        while True:
            time.sleep(BEAT)
            if self.leaving:
                return
            beats += 1
            try:
                self.client.key_value_set(
                    f"scope_jax/beat/{self.process}", str(beats), allow_overwrite=True
                )
                seen = dict(self.client.key_value_dir_get("scope_jax/beat/"))
                failure = self._get(_FAILURE)
            except Exception as error:
                if not self.leaving:
                    self._stop(f"process 0 cannot be reached any more ({_first_line(error)})", LOST)
                return
            if failure is not None and not self.leaving:
                told = json.loads(failure)
                self._stop(
                    f"process {told['process']} of {self.processes} failed: {told['reason']}",
                    told["code"],
                )
                return
            now = time.monotonic()
            for key, value in seen.items():
                number = int(key.rsplit("/", 1)[1])
                if number not in last or last[number][0] != value:
                    last[number] = (value, now)
            for number in range(self.processes):
                since = now - last.setdefault(number, ("", now))[1]
                if (
                    number != self.process
                    and since > self.silence
                    and seen.get(f"scope_jax/beat/{number}") != "done"
                ):
                    self._stop(
                        f"process {number} of {self.processes} has not been heard of for"
                        f" {since:.0f} s",
                        LOST,
                    )
                    return

    def _get(self, key: str) -> str | None:
        try:
            return self.client.key_value_try_get(key)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _stop(self, reason: str, code: int) -> None:
        self.told.set()
        print(f"error: {reason}; process {self.process} stops", file=sys.stderr, flush=True)
        self._linger()
        os._exit(code)

    def _linger(self) -> None:
        """The store ends with process 0, which therefore gives the others time to read first."""
        if self.process == 0:
            time.sleep(3 * BEAT)


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )[:120]
