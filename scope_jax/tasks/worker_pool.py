"""Worker processes that judge items, each under a deadline.

Made by hand because `pebble.ProcessPool` (5.2) failed here: its spawned children run an unguarded
script of the user again and import JAX with it; hash seed and hidden accelerators can only be set
in the parent's own environment; an item stuck for 1 s was given up after 4.1 s.
"""

import collections
import contextlib
import errno
import json
import math
import os
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from scope_jax.errors import MachineError

# Starts in a row that the system may cut short, for each of the workers that a pool may have, and
# the seconds that such a round lasts at least: who is short of memory may have some in a moment.
_STARTS = 5
_PAUSE = 0.5

_WORKER = Path(__file__).with_name("math_worker.py")
_HIDE_ACCELERATORS = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "TPU_VISIBLE_CHIPS": "",
    "TPU_VISIBLE_DEVICES": "",
}


class WorkerPool:
    """Worker processes, started when needed, and the items handed to them. A context manager;
    `close` ends the processes. Threads may share it.

    arguments         of the worker program
    workers           maximum number of processes
    seconds           default time limit of one item
    items_per_worker  a worker is replaced after this many items
    start_seconds     time limit for the start of a worker
    program           of the workers, a file of this folder; None: that of mathematics

    A worker that the system kills while it starts is started again; where that goes on, nothing
    can be judged, and MachineError ends it. One that ends by itself, because a function cannot be
    imported, would do so again: RuntimeError, with its last words.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workers: int,
        seconds: float,
        items_per_worker: int,
        start_seconds: float,
        program: str | None = None,
    ):
        for name, value in (
            ("workers", workers),
            ("items_per_worker", items_per_worker),
            ("seconds", seconds),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{type(self).__name__}: {name} is {value}; a positive number is needed"
                )
        self._arguments, self._most, self._seconds = tuple(arguments), workers, seconds
        self._program = program
        self._items_per_worker, self._start_seconds = items_per_worker, start_seconds
        self._pool: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self._started = False  # whether any worker ever did
        self._cut_short = 0  # starts since the last one that went well
        self.counts: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. May be called twice."""
        with self._lock:
            self._closed = True
            self._end(self._pool)

    def start(self) -> None:
        """Start a process now, so that what keeps it from starting shows before there is anything
        to judge. Raises RuntimeError, MachineError."""
        with self._lock:
            try:
                while not (self._pool and all(worker.ready for worker in self._pool)):
                    if not self._pool:
                        self._add_worker()
                    for worker, reply in _wait(self._pool):
                        self._hear(worker, reply, [])
            except BaseException:
                self._end(self._pool)
                raise

    def _judge(self, requests: Sequence[dict[str, Any] | str], seconds: float | None) -> list[Any]:
        """The verdict on each request. A text in place of a request is the reason why it is not
        judged."""
        limit = self._seconds if seconds is None else seconds
        if not (math.isfinite(limit) and limit > 0):
            raise ValueError(
                f"{type(self).__name__}: seconds is {limit}; a positive number is needed"
            )
        with self._lock:
            if self._closed:
                raise ValueError(f"{type(self).__name__}: verify after close")
            try:
                return self._hand_out(requests, limit)
            except BaseException:
                self._end(self._pool)  # a worker at work would answer an item of the next call
                raise

    def _hand_out(self, requests: Sequence[dict[str, Any] | str], limit: float) -> list[Any]:
        verdicts: list[Any] = [None] * len(requests)
        waiting = collections.deque(range(len(requests)))
        self._end([worker for worker in self._pool if worker.process.poll() is not None])
        while waiting or any(worker.item is not None for worker in self._pool):
            free = [worker for worker in self._pool if worker.item is None]
            missing = min(self._most - len(self._pool), len(waiting) - len(free))
            for _ in range(missing):
                self._add_worker()
            for worker in free:
                if worker.ready and waiting:
                    item = waiting.popleft()
                    request = requests[item]
                    if isinstance(request, str):
                        verdicts[item] = self._result(None, request)
                        self.counts[request] += 1
                    else:
                        worker.ask(item, {**request, "seconds": limit})
            if not any(worker.deadline < math.inf for worker in self._pool):
                continue  # what is left needs no worker
            for worker, reply in _wait(self._pool):
                self._hear(worker, reply, verdicts)
        return verdicts

    def _hear(self, worker: "_Worker", reply: dict[str, Any] | None, verdicts: list[Any]) -> None:
        """Handle what one worker said. None: it died, or its time is over."""
        if not worker.ready:
            if reply is None:
                self._missed(worker)
            else:
                worker.ready, worker.deadline = True, math.inf
                self._started, self._cut_short = True, 0
            return
        item, worker.item, worker.deadline = worker.item, None, math.inf
        if reply is None:
            if item is not None:
                reason = "crash" if worker.closed else "timeout"
                verdicts[item] = self._result(None, reason)
                self.counts[reason] += 1
            self._end([worker])
        elif item is not None:
            detail = reply.get("detail", "")
            verdicts[item] = self._result(reply["verdict"], reply["reason"], detail)
            self.counts["judged" if reply["verdict"] is not None else reply["reason"]] += 1
            worker.served += 1
            if reply["retire"] or worker.served >= self._items_per_worker:
                self._end([worker])

    def _result(self, verdict: Any, reason: str, detail: str = "") -> Any:
        """What `_judge` says of an item, from its verdict and, where that is None, the reason:
        here the verdict alone."""
        return verdict

    def _add_worker(self) -> None:
        while True:
            try:
                self._pool.append(_Worker(self._program, self._arguments, self._start_seconds))
                return
            except OSError as error:  # no memory, process or pipe to be had
                self._try_again(error.strerror or str(error))

    def _missed(self, worker: "_Worker") -> None:
        """Handle the end, or the silence, of a worker that was to start."""
        code, said = worker.last_words()
        self._end([worker])
        name = type(self).__name__
        # An import that never ends never will; where one ended before, the machine is slow.
        if code is None and not worker.closed and not self._started:
            raise MachineError(
                f"{name}: a worker did not start within {self._start_seconds:g} s: the machine is"
                " busy, or an import never ends"
            )
        if code is not None and code >= 0 and not _of_the_system(said):
            raise RuntimeError(f"{name}: a worker did not start: {said or f'exit code {code}'}")
        if code is None:
            said = "it said nothing"
        elif code < 0:
            said = f"killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
        self._try_again(said)

    def _try_again(self, what: str) -> None:
        """Count a start that was cut short, and wait a little: the loop makes another. Raises
        MachineError where it happened too often in a row."""
        self._cut_short += 1
        if (tries := self._cut_short) >= _STARTS * self._most:
            self._cut_short = 0
            raise MachineError(
                f"{type(self).__name__}: no worker can be started, {tries} tries in a row (the last"
                f" one: {what}): the machine may be out of memory; start the same command again"
            )
        time.sleep(_PAUSE / self._most)

    def _end(self, workers: list["_Worker"]) -> None:
        for worker in list(workers):
            worker.end()
            self._pool.remove(worker)


# Of what a process said before it ended.
_LAST_BYTES, _LONGEST_WORDS = 1 << 20, 300
# What the system says where it has no memory, no process, no file or no answer.
_OF_THE_SYSTEM = tuple(
    os.strerror(number)
    for number in (
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EMFILE,
        errno.ENFILE,
        errno.EIO,
        errno.ESTALE,
    )
)


def _of_the_system(words: str) -> bool:
    """Whether the last words of a process blame the system, and not what it was given."""
    return words.startswith("MemoryError") or any(sign in words for sign in _OF_THE_SYSTEM)


class _Worker:
    """One process and its messages. `deadline` is infinite while no answer is expected."""

    def __init__(self, program: str | None, arguments: Sequence[str], start_seconds: float):
        # A file, not a pipe: an import may say more than a pipe holds, and nobody reads meanwhile.
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  Closed by end().
        # By path, with -P: the package is not imported in the child, nor can its files shadow
        # other modules there.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                str(_WORKER.with_name(program) if program else _WORKER),
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            bufsize=0,
            start_new_session=True,
            # A fixed hash seed: sympy's choices, and so verdicts at the edge of the time limit,
            # repeat.
            env={**os.environ, **_HIDE_ACCELERATORS, "PYTHONHASHSEED": "0"},
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.inbox, self.outbox = bytearray(), bytearray()
        self.item: int | None = None
        self.served = 0
        self.ready = self.closed = False
        self.deadline = time.monotonic() + start_seconds

    def ask(self, item: int, request: dict[str, Any]) -> None:
        body = json.dumps(request, default=str).encode("ascii")  # lone surrogates travel as escapes
        self.outbox += struct.pack(">I", len(body)) + body
        self.item, self.deadline = item, time.monotonic() + request["seconds"]
        self.push()

    def push(self) -> None:
        """Write what the pipe takes."""
        try:
            while self.outbox:
                del self.outbox[: os.write(self.stdin, self.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self.outbox.clear()  # it is gone; its end of the other pipe says so

    def pull(self) -> dict[str, Any] | None:
        """A message, if one is complete; `closed` where the process has hung up."""
        try:
            while chunk := os.read(self.stdout, 1 << 16):
                self.inbox += chunk
            self.closed = True
        except BlockingIOError:
            pass
        if len(self.inbox) < 4:
            return None
        (size,) = struct.unpack_from(">I", self.inbox)
        if len(self.inbox) < 4 + size:
            return None
        body = bytes(self.inbox[4 : 4 + size])
        del self.inbox[: 4 + size]
        return json.loads(body)

    def last_words(self) -> tuple[int | None, str]:
        """(exit code, the last line on stderr) of a process that did not start. The code is minus
        the number of a signal that killed it, and None while it is still at it."""
        try:
            # Its pipe may be closed a moment before it is gone.
            code = self.process.wait(5.0 if self.closed else 0.0)
        except subprocess.TimeoutExpired:
            return None, ""
        self.stderr.seek(max(0, os.fstat(self.stderr.fileno()).st_size - _LAST_BYTES))
        lines = self.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return code, lines[-1].strip()[:_LONGEST_WORDS] if lines else ""

    def end(self) -> None:
        """Terminate, then kill, what it started too; the pipes are closed, the process is
        reaped."""
        process = self.process
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        # Its own session: the group is the worker's, and may outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, self.stderr):
            if pipe:
                pipe.close()


def _wait(workers: Sequence[_Worker]) -> list[tuple[_Worker, dict[str, Any] | None]]:
    """Wait until a worker says something, dies or runs out of time; each such worker, with its
    message or None."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            if worker.outbox:
                selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
        patience = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
        events = selector.select(patience)
    said: list[tuple[_Worker, dict[str, Any] | None]] = []
    for key, mask in events:
        worker = key.data
        if mask & selectors.EVENT_WRITE:
            worker.push()
        else:
            reply = worker.pull()
            if reply is not None or worker.closed:
                said.append((worker, reply))
    now = time.monotonic()
    heard = [worker for worker, _ in said]
    return said + [
        (worker, None) for worker in workers if worker.deadline <= now and worker not in heard
    ]
