"""A step checker of the user as localiser: a function that names the first wrong step, called in
worker processes under a deadline and a limit of memory (`tasks.worker_pool`)."""

import collections
import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_jax.correction.records import Scene
from scope_jax.correction.steps import StepRows
from scope_jax.devices.hosts import by_share, is_main
from scope_jax.rewards.functions import CALLS_PER_WORKER, MIB
from scope_jax.tasks import Problem
from scope_jax.tasks.worker_pool import WorkerPool

if TYPE_CHECKING:
    from scope_jax.correction.localisers import LocaliserSpec, Scores

# Why a row is not located, as metrics name it.
REASONS = ("exception", "timeout", "memory", "crash", "not_an_index", "out_of_range")
_RENAMED = {"out of memory": "memory"}

# (index of the first wrong step or -1, "", "") or (None, reason, what was said); a list once it was
# exchanged between processes.
Found = tuple[int | None, str, str]


class Checkers(WorkerPool):
    """The processes of a step checker, `function(problem, steps)`.

    Whatever else a call does (raises, never ends, takes all memory, ends its process) costs that
    row only. `start` imports the function: RuntimeError with the reason where that fails, or where
    it does not take two arguments.
    """

    def __init__(self, spec: "LocaliserSpec", start_seconds: float = 120.0):
        search = [os.path.abspath(place) for place in sys.path]
        cores = max(1, min(8, (os.cpu_count() or 2) // 2))
        super().__init__(
            ["steps", str(spec.memory_mb * MIB), spec.function or "", *search],
            cores if spec.workers is None else spec.workers,
            spec.seconds,
            CALLS_PER_WORKER,
            start_seconds,
            "function_worker.py",
        )

    def first_wrong(
        self, problems: Sequence[Problem], steps: Sequence[Sequence[str]]
    ) -> list[Found]:
        """For each row the index of its first wrong step, -1 where there is none, or the reason
        why neither is known."""
        requests: list[dict[str, Any] | str] = [
            {"problem": dataclasses.asdict(problem), "steps": list(row)}
            for problem, row in zip(problems, steps, strict=True)
        ]
        return self._judge(requests, None)

    def _result(self, verdict: Any, reason: str, detail: str = "") -> Found:
        if verdict is None:
            reason = _RENAMED.get(reason, reason)
            return None, reason if reason in REASONS else "exception", detail or reason
        return int(verdict), "", ""


class StepChecker:
    """The localiser `function`: 1 before the step that the checker names, 0 from there on. A
    context manager; `close` ends its processes.

    All processes of a run call `score` with the same rows; each asks about its share of them.
    """

    def __init__(self, spec: "LocaliserSpec"):
        self.spec = spec
        self._checkers = Checkers(spec)
        self._said: set[str] = set()  # reasons that were warned of, once each

    def __enter__(self) -> "StepChecker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. May be called twice."""
        self._checkers.close()

    def start(self) -> None:
        """Import the function in a process of its own. Raises ValueError, naming the setting, where
        that fails or it does not take its two arguments."""
        try:
            self._checkers.start()
        except RuntimeError as error:
            words = str(error).partition("did not start: ")[2] or str(error)
            where = f"config.localiser.function = {self.spec.function!r}"
            raise ValueError(f"{where}: {words}") from None

    def score(self, rows: StepRows, scene: Scene) -> "Scores":
        """The scores of the steps of `rows`; rows that the checker fails on count as not scored,
        by reason."""
        from scope_jax.correction.localisers import Scores, no_scores

        score, valid = no_scores(rows)
        asked = np.flatnonzero(rows.count_R)
        problems = rows.problems_R
        found: list[Found] = by_share(
            self._checkers.first_wrong,
            [problems[r] for r in asked],
            [rows.steps[r] for r in asked],
        )
        reasons = collections.Counter(dict.fromkeys(REASONS, 0))
        for r, (index, reason, detail) in zip(asked.tolist(), found, strict=True):
            if index is None:
                reasons[reason] += 1
                self._warn(problems[r], reason, detail)
                continue
            count = len(rows.steps[r])
            score[r, : count if index < 0 else index], valid[r, :count] = 1.0, True
        metrics = {f"scope/unscored_{reason}": float(n) for reason, n in sorted(reasons.items())}
        return Scores(score, valid, {"scope/unscored": float(reasons.total())} | metrics)

    def _warn(self, problem: Problem, reason: str, detail: str) -> None:
        if is_main() and reason not in self._said:
            self._said.add(reason)
            warnings.warn(
                f"localiser {self.spec.function!r}: problem {problem.id}: {detail}; such rows stay"
                f" the failures that they were, counted in scope/unscored_{reason}",
                stacklevel=4,
            )
