"""Graders: from the text of a completion to a score in [0, 1], or None where it could not be
judged.

    math             tasks.rules, then math_verify, in worker processes (tasks.verify_math)
    choice           the letter in the last box, else the one after "answer is" (tasks.rules)
    exact            the last box, else the last line, letter by letter (case and white space aside)
    module:function  a function of the user, called in worker processes as
                     function(fields of the problem, completion)

No text is ever evaluated as code, every pattern takes time linear in the text, and what may hang
runs in a process that may be killed.
"""

import collections
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.tasks.answers import last_boxed, normal_boxed
from scope_jax.tasks.domain import Problem
from scope_jax.tasks.rules import VERSION
from scope_jax.tasks.rules.choices import choice_letter
from scope_jax.tasks.verify_math import FunctionVerifier, MathVerifier

NAMES = ("math", "choice", "exact")
# A longer "answer" is a text that went astray; votes over such are of no use.
LONGEST_ANSWER = 1000


class Grader:
    """One way to judge, with the processes that it needs. A context manager; `close` ends the
    processes.

    name     see above
    seconds  time limit of one item in a worker process
    workers  maximum number of processes

    `counts` says why items were not judged: timeout, crash, "ValueError in module:function", ...
    Raises ValueError for an unknown name, RuntimeError (by `start`, else at the first use) if a
    function cannot be imported.
    """

    def __init__(self, name: str, *, seconds: float = 5.0, workers: int | None = None):
        check_grader(name)
        self.name, self.seconds = name, seconds
        workers = max(1, min(8, (os.cpu_count() or 2) // 2)) if workers is None else workers
        self._pool: MathVerifier | FunctionVerifier | None = None
        if name == "math":
            self._pool = MathVerifier(workers, seconds=seconds)
        elif name not in NAMES:
            self._pool = FunctionVerifier(name, workers, seconds=seconds)

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. May be called twice."""
        if self._pool is not None:
            self._pool.close()

    def start(self) -> None:
        """Start what can fail at the start: RuntimeError with the reason where a user's function
        cannot be imported."""
        if self._pool is not None:
            self._pool.start()

    @property
    def counts(self) -> collections.Counter[str]:
        return self._pool.counts if self._pool is not None else collections.Counter()

    def scores(
        self,
        problems: Sequence[Problem],
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float | None]:
        """One score per completion. `rows`: more fields for a user's function, such as the columns
        of a data set's row; those of the problem (id, prompt, answer) win."""
        if len(problems) != len(completions):
            raise ValueError(
                f"Grader: {len(problems)} problems and {len(completions)} completions: expected one"
                " each"
            )
        verdicts: Sequence[bool | float | None]
        if isinstance(self._pool, MathVerifier):
            verdicts = self._pool.verify(completions, [problem.answer for problem in problems])
        elif isinstance(self._pool, FunctionVerifier):
            fields = [
                {**row, "id": problem.id, "prompt": problem.prompt, "answer": problem.answer}
                for row, problem in zip(rows or [{}] * len(problems), problems)
            ]
            verdicts = self._pool.verify(completions, fields)
        elif self.name == "choice":
            verdicts = [
                choice_letter(text) == problem.answer
                for problem, text in zip(problems, completions)
            ]
        else:
            verdicts = [
                exact_answer(text) == _plain(problem.answer)
                for problem, text in zip(problems, completions)
            ]
        return [None if verdict is None else float(verdict) for verdict in verdicts]

    def answer(self, completion: str) -> str | None:
        """The final answer in a form that votes can be counted by; None where there is none."""
        if self.name == "choice":
            return choice_letter(completion)
        if self.name == "exact":
            return exact_answer(completion)
        return boxed_form(completion)

    def record(self) -> dict[str, Any]:
        """What made the verdicts, for the record of an evaluation. `rules`: the version of this
        project's own rules (`tasks.rules`); records without it are of version 1."""
        if self.name not in NAMES:
            return {"name": self.name, "seconds": self.seconds}
        record: dict[str, Any] = {"name": self.name, "rules": VERSION}
        if self.name == "math":
            record["math_verify"] = importlib.metadata.version("math-verify")
            record["seconds"] = self.seconds
            record["how"] = (
                "gold first; last \\boxed{}, else what math_verify finds; exact where both are"
                " rational"
            )
        return record


def check_grader(name: str) -> None:
    """Raise ValueError unless `name` is a grader or has the form module:function."""
    module, colon, function = name.partition(":")
    parts = [*module.split("."), *function.split(".")]
    if name not in NAMES and not (colon and all(part.isidentifier() for part in parts)):
        raise ValueError(
            f"grader {name!r} is unknown; one of {', '.join(NAMES)}, or a function of yours as"
            " module:function"
        )


def exact_answer(completion: str) -> str | None:
    """The last box, else the last line that is not empty, lower case and with single spaces."""
    box = last_boxed(completion)
    if box is None:
        lines = completion.strip().splitlines()
        box = lines[-1] if lines else ""
    answer = _plain(box)
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def boxed_form(completion: str) -> str | None:
    """The last box in a spelling in which equal answers are mostly equal strings. Votes are counted
    by it, and answers of one spelling are equal to the verifier."""
    answer = normal_boxed(completion)
    return None if answer is None or len(answer) > LONGEST_ANSWER else answer


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
