"""Worker processes that judge items, each under a deadline.

Made by hand because `pebble.ProcessPool` (5.2) failed here: its spawned children run an unguarded
script of the user again and import JAX with it; hash seed and hidden accelerators can only be set
in the parent's own environment; an item stuck for 1 s was given up after 4.1 s.
"""

import collections
import json
import math
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

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
    """

    def __init__(
        self,
        arguments: Sequence[str],
        workers: int,
        seconds: float,
        items_per_worker: int,
        start_seconds: float,
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
        self._items_per_worker, self._start_seconds = items_per_worker, start_seconds
        self._pool: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
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
        to judge. Raises RuntimeError."""
        with self._lock:
            if not self._pool:
                self._pool.append(_Worker(self._arguments, self._start_seconds))
            try:
                while not all(worker.ready for worker in self._pool):
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
            self._pool += [_Worker(self._arguments, self._start_seconds) for _ in range(missing)]
            for worker in free:
                if worker.ready and waiting:
                    item = waiting.popleft()
                    request = requests[item]
                    if isinstance(request, str):
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
                raise RuntimeError(
                    f"{type(self).__name__}: a worker did not start: {worker.last_words()}"
                )
            worker.ready, worker.deadline = True, math.inf
            return
        item, worker.item, worker.deadline = worker.item, None, math.inf
        if reply is None:
            if item is not None:
                self.counts["crash" if worker.closed else "timeout"] += 1
            self._end([worker])
        elif item is not None:
            verdicts[item] = reply["verdict"]
            self.counts["judged" if reply["verdict"] is not None else reply["reason"]] += 1
            worker.served += 1
            if reply["retire"] or worker.served >= self._items_per_worker:
                self._end([worker])

    def _end(self, workers: list["_Worker"]) -> None:
        for worker in list(workers):
            worker.end()
            self._pool.remove(worker)


class _Worker:
    """One process and its messages. `deadline` is infinite while no answer is expected."""

    def __init__(self, arguments: Sequence[str], start_seconds: float):
        # By path, with -P: the package is not imported in the child, nor can its files shadow
        # other modules there.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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

    def last_words(self) -> str:
        """The last line on stderr of a process that did not start."""
        self.process.kill()
        assert self.process.stderr
        lines = self.process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.wait()}"

    def end(self) -> None:
        """Terminate, then kill; the pipes are closed and the process is reaped."""
        process = self.process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: the group is the worker's
                process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
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
