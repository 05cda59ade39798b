"""Does the answer of a completion equal the reference? Judged by the rules of `tasks.rules` and
math_verify's reader, in processes that may be killed.

math_verify and sympy can spin for ever, also inside C code, and take any amount of memory. So each
item is judged in a worker process (`math_worker.py`) under three limits: an alarm within the
worker, a deadline kept by the pool (`worker_pool.py`), and a memory limit. What cannot be judged is
None, not False. A user's own function is called in the same way (`FunctionVerifier`).
"""

import atexit
import importlib.util
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.tasks.worker_pool import WorkerPool

Verdict = bool | None


def verify_math(
    predictions: Sequence[str], golds: Sequence[str], *, seconds: float = 5.0
) -> list[Verdict]:
    r"""One verdict per pair: True, False, or None where it could not be judged (time, memory,
    crash, unreadable gold).

    predictions  completions; the last \boxed{} counts, else what math_verify finds in the text
    golds        reference answers: bare LaTeX ("\frac{1}{2}"), or text with a box or a delimited
                 formula
    seconds      time limit of one item

    One pool per process is started on first use and closed at exit; `MathVerifier` gives control
    over it. Raises ValueError for bad arguments and RuntimeError if no worker can be started.
    """
    return _shared_verifier().verify(predictions, golds, seconds=seconds)


class MathVerifier(WorkerPool):
    """A pool of processes that judge answers. A context manager; `close` ends the processes.
    Threads may share it.

    workers           maximum number of processes, started when needed (about a second each)
    seconds           default time limit of one item
    max_characters    of a longer prediction only the end is judged, a longer gold not at all
    items_per_worker  a worker is replaced after this many items, because sympy's caches grow
    memory_bytes      address space of a worker
    start_seconds     time limit for the start of a worker

    `counts` says what became of the items: judged, timeout, crash, gold is empty, ...
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        seconds: float = 5.0,
        max_characters: int = 10_000,
        items_per_worker: int = 1000,
        memory_bytes: int = 4 << 30,
        start_seconds: float = 120.0,
    ):
        super().__init__([str(memory_bytes)], workers, seconds, items_per_worker, start_seconds)
        if importlib.util.find_spec("math_verify") is None:
            raise RuntimeError(
                "MathVerifier: math_verify is not installed; pip install 'math-verify[antlr4_13_2]'"
            )
        self._max_characters = max_characters

    def verify(
        self, predictions: Sequence[str], golds: Sequence[str], *, seconds: float | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of the pairs; see `verify_math`."""
        _check(predictions, golds)
        most = self._max_characters
        return self._judge(
            [
                {"prediction": prediction[-most:], "gold": gold}
                if len(gold) <= most
                else "gold is too long"
                for prediction, gold in zip(predictions, golds)
            ],
            seconds,
        )


class FunctionVerifier(WorkerPool):
    """Judges by a user's function, named as "module:function", which worker processes import by
    that name.

    It is called as `function(fields, completion)` with a dict of the problem's fields, and returns
    True, False, a number in [0, 1], or None where it cannot judge. Whatever else it does (raises,
    returns something else, never ends, ends its process) costs that item only: its verdict is None
    and `counts` has the reason. Imports are found as in this process; accelerators are hidden from
    it.
    """

    def __init__(
        self,
        function: str,
        workers: int = 2,
        *,
        seconds: float = 5.0,
        items_per_worker: int = 1000,
        start_seconds: float = 120.0,
    ):
        search = [os.path.abspath(place) for place in sys.path]
        super().__init__(
            ["verdict", function, *search],
            workers,
            seconds,
            items_per_worker,
            start_seconds,
            "function_worker.py",
        )

    def verify(
        self,
        predictions: Sequence[str],
        problems: Sequence[Mapping[str, Any]],
        *,
        seconds: float | None = None,
    ) -> list[bool | float | None]:
        """One verdict per pair of a completion and the fields of its problem (what is not JSON in
        them goes as text)."""
        if isinstance(predictions, str) or len(predictions) != len(problems):
            raise ValueError(
                "FunctionVerifier: predictions and problems are two sequences of one length"
            )
        requests = [
            {"prediction": text, "problem": dict(fields)}
            for text, fields in zip(predictions, problems)
        ]
        return self._judge(requests, seconds)


def _check(predictions: Sequence[str], golds: Sequence[str]) -> None:
    if isinstance(predictions, str) or isinstance(golds, str) or len(predictions) != len(golds):
        raise ValueError(
            "verify_math: predictions and golds are two sequences of strings of one length"
        )
    for name, texts in (("predictions", predictions), ("golds", golds)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"verify_math: {name}[{i}] is a {type(text).__name__}; a string is needed"
                )


_SHARED: dict[
    int, MathVerifier
] = {}  # by process id: a forked child must not write into its parent's pipes
_SHARED_LOCK = threading.Lock()


def _shared_verifier() -> MathVerifier:
    with _SHARED_LOCK:
        verifier = _SHARED.get(os.getpid())
        if verifier is None:
            verifier = MathVerifier(workers=max(1, min(8, (os.cpu_count() or 2) // 2)))
            atexit.register(_close_shared)
            _SHARED[os.getpid()] = verifier
        return verifier


def _close_shared() -> None:
    verifier = _SHARED.pop(os.getpid(), None)
    if verifier is not None:
        verifier.close()
