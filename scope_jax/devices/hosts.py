"""Several processes as one program: who does which host work, who writes, and how all stop when
one fails.

Every process runs the same program over the same mesh. Arrays are laid out over all devices; what
has to be done on the host (decoding text, verdicts, cutting into steps) is done by each process
for its own share of the rows, and the results, which are small, are exchanged, so that all decide
the same. Files are written by process 0. With one process nothing here does anything.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# Exit code of a process that stopped because another one was not heard of any more.
LOST = 76
# Seconds between two signs of life, and without one until a process counts as lost
# ($SCOPE_JAX_HOST_TIMEOUT overrules it).
BEAT, SILENCE = 1.0, 60.0

_FAILURE = "scope_jax/failure"
_watch: "_Watch | None" = None


def connect(where: str) -> None:
    """Join the other processes, before the first device is asked for. `where`: "" (one process),
    "auto" (TPU slices, Slurm, and what else `jax.distributed.initialize` finds by itself) or
    "HOST:PORT/N/I" (N processes, this is number I, from 0; number 0 listens at that address).

    Raises ValueError for another form, and where "auto" finds nothing.
    """
    global _watch
    if not where:
        return
    # Of processes on CPUs: which network their collectives use.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    silence = float(os.environ.get("SCOPE_JAX_HOST_TIMEOUT", SILENCE))
    # Ours speaks first, and says more.
    patience = int(2 * silence) + 10
    if where == "auto":
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=patience)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed=auto: no cluster found ({error}); give HOST:PORT/N/I"
            ) from error
    else:
        found = re.fullmatch(r"(\S+:\d+)/(\d+)/(\d+)", where)
        if found is None or not int(found[3]) < int(found[2]):
            raise ValueError(
                f"--distributed={where}: expected auto or HOST:PORT/N/I with I from 0 to N - 1"
            )
        jax.distributed.initialize(
            found[1], int(found[2]), int(found[3]), heartbeat_timeout_seconds=patience
        )
    if jax.process_count() > 1:
        _watch = _Watch(silence)
        _watch.start()


def is_main() -> bool:
    """Whether this process writes the files of the run and speaks on the terminal."""
    return jax.process_index() == 0


def own_share(rows: int) -> slice:
    """Which of so many rows this process works on: runs of rows of about equal length, in the
    order of the processes, as the devices of a mesh hold them."""
    return _share(rows, jax.process_index(), jax.process_count())


def _share(rows: int, process: int, processes: int) -> slice:
    return slice(rows * process // processes, rows * (process + 1) // processes)


def by_share(function: Callable[..., Sequence[Any]], *rows: Sequence[Any]) -> list[Any]:
    """`function(*rows)`, one result per row, each process calling it with its own share of the
    rows only; every process gets all results. Results are what JSON can hold (tuples come back as
    lists). All processes call it, with the same rows."""
    if jax.process_count() == 1:
        return list(function(*rows))
    own = own_share(len(rows[0]))
    done = list(function(*(x[own] for x in rows))) if own.stop > own.start else []
    parts = exchange(done)
    return [result for part in parts for result in part]


def exchange(value: Any) -> list[Any]:
    """What each process has for `value` (JSON), in their order."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array(text.size, np.int32))).reshape(
        -1
    )
    padded = np.pad(text, (0, _room(int(lengths.max())) - text.size))
    every = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [
        json.loads(row[:length].tobytes().decode())
        for row, length in zip(every, lengths, strict=True)
    ]


def from_main(value: Any) -> Any:
    """What process 0 has for `value` (JSON), on every process. All call it; what the others have
    is of no account."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value if is_main() else None).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.array(text.size, np.int32)))
    padded = np.zeros(_room(length), np.uint8)
    if is_main():
        padded[:length] = text
    return json.loads(
        np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()
    )


def _room(length: int) -> int:
    """Bytes of an array for a text of so many bytes: in few sizes, so that few programs are
    compiled."""
    return max(1 << (length - 1).bit_length(), 64)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes call it."""
    return any(exchange(bool(flag)))


def settle(tree: Any) -> Any:
    """`tree`, its arrays computed, on CPUs. There, programs that do not depend on each other run
    at once, and where their collectives meet in another order on another device (of this process
    or of another one) all wait for ever. Elsewhere devices work off their programs one after
    another, and nothing is waited for."""
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.block_until_ready(tree)
    return tree


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def fail(reason: str, code: int) -> None:
    """Tell the other processes why this one ends, and end it with exit code `code`; they end with
    the same code. Returns, and does nothing, where there is one process. Without this, the others
    would wait for this one until their patience ends."""
    if _watch is None:
        return
    _watch.report(reason, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the usual way out waits for all processes at a barrier


def crashed(error: BaseException) -> None:
    """`fail` for an error nobody expected: with its traceback. Where the error is that another
    process went away in the middle of a collective, that one's own words are waited for first."""
    if _watch is None:
        return
    if _watch.told.wait(3 * BEAT):
        _watch.join()  # it ends the process
    traceback.print_exception(error)
    fail(f"{type(error).__name__}: {_first_line(error)}", 1)


class _Watch(threading.Thread):
    """Signs of life of this process, and a look at those of the others, by way of the key-value
    store of process 0."""

    def __init__(self, silence: float):
        super().__init__(name="scope_jax-watch", daemon=True)
        from jax._src import distributed  # no public way to the store

        self.client: Any = distributed.global_state.client
        self.silence = silence
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.leaving = False
        self.told = (
            threading.Event()
        )  # that the run has failed elsewhere: this process is about to end

    def report(self, reason: str, code: int) -> None:
        if self.told.is_set():
            self.join()
        self.leaving = True
        # Where it cannot be set, another one was faster, or the store is gone: either way the
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
        """The store goes with process 0, and takes those with it that still wait for a word from
        it: it lets them read first."""
        if self.process == 0:
            time.sleep(3 * BEAT)


def finish() -> None:
    """The run is over for this process: it says so, so that its silence from now on is no failure.
    All processes call it."""
    if _watch is not None and not _watch.leaving:
        wait_for_all("scope_jax/finish")
        _watch.leaving = True


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )[:120]
