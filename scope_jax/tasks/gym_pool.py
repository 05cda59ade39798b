"""Entries of reasoning-gym, and scores of answers to them, from worker processes.

The package is code of many hands that is shown what a model wrote: each request runs in a process
(`gym_worker.py`) under the limits of `worker_pool`: an alarm within, a deadline kept by the pool,
a memory limit, no files written.
"""

import atexit
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.tasks.worker_pool import WorkerPool


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator of reasoning-gym with its settings, as JSON with sorted names."""

    name: str
    settings: str = "{}"

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> "Generator":
        """From settings as a mapping."""
        return cls(name, json.dumps(dict(settings), sort_keys=True))

    @property
    def key(self) -> str:
        """Its name in ids of problems: that of the generator, and a digest of settings where there
        are any."""
        if self.settings == "{}":
            return self.name
        return f"{self.name}:{hashlib.sha256(self.settings.encode()).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Which entry: that of
    `reasoning_gym.create_dataset(name, seed=seed, size=500, **settings)[index]`."""

    generator: Generator
    seed: int
    index: int

    def request(self, what: str) -> dict[str, Any]:
        """As a worker process is asked for it."""
        return {
            "what": what,
            "generator": self.generator.name,
            "settings": json.loads(self.generator.settings),
            "seed": self.seed,
            "index": self.index,
        }


class GymPool(WorkerPool):
    """A pool of processes that make entries and score answers. A context manager; `close` ends
    the processes. Threads may share it. `counts` says what became of the items."""

    def __init__(self, workers: int = 2, *, memory_bytes: int = 4 << 30):
        super().__init__([str(memory_bytes)], workers, 60.0, 10_000, 120.0, "gym_worker.py")

    def problems(
        self, entries: Sequence[Entry], seconds: float
    ) -> list[tuple[dict[str, Any] | None, str]]:
        """For each entry (question, answer and solution; "") or (None, why there is none). Raises
        ValueError for what takes longer than `seconds` or ends its process: what a problem is
        may not depend on the machine."""
        found: list[tuple[dict[str, Any] | None, str]] = []
        for entry, reply in zip(
            entries, self._judge([entry.request("problem") for entry in entries], seconds)
        ):
            if reply is None:
                raise ValueError(
                    f"reasoning_gym: {entry.generator.name} made no entry {entry.index} of seed"
                    f" {entry.seed} with settings {entry.generator.settings} within {seconds:g} s"
                    " and 4 GiB: easier settings or a larger task.options.problem_seconds"
                )
            found.append((reply.get("problem"), reply.get("reason", "")))
        return found

    def scores(
        self, entries: Sequence[Entry], answers: Sequence[str], seconds: float, making: float
    ) -> list[float | None]:
        """The scorer's number in [0, 1] for each answer; None where it took longer than `seconds`
        (making the entry aside, which has `making`), more memory than there is, or its process."""
        requests = [
            {**entry.request("score"), "answer": answer, "score_seconds": seconds}
            for entry, answer in zip(entries, answers, strict=True)
        ]
        return self._judge(requests, seconds + making)


# By process id: a forked child must not write into its parent's pipes.
_SHARED: dict[int, GymPool] = {}
_SHARED_LOCK = threading.Lock()


def shared_pool() -> GymPool:
    """The one pool of this process, closed at its end."""
    with _SHARED_LOCK:
        pool = _SHARED.get(os.getpid())
        if pool is None:
            pool = GymPool(workers=max(1, min(8, (os.cpu_count() or 2) // 2)))
            atexit.register(_close_shared)
            _SHARED[os.getpid()] = pool
        return pool


def _close_shared() -> None:
    pool = _SHARED.pop(os.getpid(), None)
    if pool is not None:
        pool.close()
