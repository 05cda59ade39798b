"""Functions of the user and patterns, called in worker processes under a deadline and a limit of
memory (`tasks.worker_pool`, `tasks.function_worker`)."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from scope_jax.rewards.spec import Part, RewardSpec
from scope_jax.tasks import Problem
from scope_jax.tasks.worker_pool import WorkerPool

# Why a row has no value, as metrics name it.
REASONS = ("none", "exception", "timeout", "memory", "crash", "not_a_number", "out_of_range")
_RENAMED = {"out of memory": "memory"}
# A process is replaced after this many calls, in case the function's module keeps things.
CALLS_PER_WORKER = 10_000
MIB = 1 << 20

# (value, "", "") or (None, reason, what was said); a list once it was exchanged between processes.
Value = tuple[float | None, str, str]


class Functions(WorkerPool):
    """The processes of one part. A context manager; `close` ends them.

    function  called as `function(problem, completion, token_ids)`; it returns a number in
              `part.range`, or None where it cannot tell
    format    1 where `part.pattern` matches the whole completion, else 0

    Whatever else a call does (raises, never ends, takes all memory, ends its process) costs that
    row only. `start` imports the function: RuntimeError with the reason where that fails, or where
    it does not take three arguments.
    """

    def __init__(self, part: Part, spec: RewardSpec, start_seconds: float = 120.0):
        arguments = [str(spec.memory_mb * MIB), part.pattern or ""]
        if part.is_function:
            search = [os.path.abspath(place) for place in sys.path]
            arguments = [str(spec.memory_mb * MIB), part.function, *search]
        mode = "reward" if part.is_function else "format"
        cores = max(1, min(8, (os.cpu_count() or 2) // 2))
        workers = cores if spec.workers is None else spec.workers
        super().__init__(
            [mode, *arguments],
            workers,
            spec.seconds,
            CALLS_PER_WORKER,
            start_seconds,
            "function_worker.py",
        )
        self._part = part

    def values(
        self, problems: Sequence[Problem], texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[Value]:
        """One value for each completion, or the reason why there is none."""
        requests: list[dict[str, Any] | str] = [
            {"prediction": text, "problem": dataclasses.asdict(problem), "tokens": list(row)}
            for problem, text, row in zip(problems, texts, ids, strict=True)
        ]
        return self._judge(requests, None)

    def _result(self, verdict: Any, reason: str, detail: str = "") -> Value:
        if verdict is None:
            reason = _RENAMED.get(reason, reason)
            return None, reason if reason in REASONS else "exception", detail or reason
        low, high = self._part.range
        if not low <= verdict <= high:
            return None, "out_of_range", f"{verdict!r} is outside [{low:g}, {high:g}]"
        return float(verdict), "", ""
