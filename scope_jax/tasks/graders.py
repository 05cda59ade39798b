"""Graders: from the text of a completion to a score in [0, 1], or None where it could not be
judged.

    math             math_verify in worker processes, reference first (tasks.verify_math)
    choice           the letter in the last box, else the one after "answer is"
    exact            the last box, else the last line, letter by letter (case and white space aside)
    module:function  a function of the user, called in worker processes as
                     function(fields of the problem, completion)

No text is ever evaluated as code, every pattern takes time linear in the text, and what may hang
runs in a process that may be killed.
"""

import collections
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.tasks.answers import last_boxed, normal_answer
from scope_jax.tasks.domain import Problem
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
        """What made the verdicts, for the record of an evaluation."""
        if self.name == "math":
            version = importlib.metadata.version("math-verify")
            how = (
                "gold first; last \\boxed{}, else what math_verify finds; float_rounding 6, strict"
            )
            return {"name": "math", "math_verify": version, "seconds": self.seconds, "how": how}
        return (
            {"name": self.name, "seconds": self.seconds}
            if self._pool is not None
            else {"name": self.name}
        )


def check_grader(name: str) -> None:
    """Raise ValueError unless `name` is a grader or has the form module:function."""
    module, colon, function = name.partition(":")
    parts = [*module.split("."), *function.split(".")]
    if name not in NAMES and not (colon and all(part.isidentifier() for part in parts)):
        raise ValueError(
            f"grader {name!r} is unknown; one of {', '.join(NAMES)}, or a function of yours as"
            " module:function"
        )


def choice_letter(completion: str) -> str | None:
    r"""The letter chosen: in the last box (\boxed{C}, \boxed{\text{(C) 12 cm}}), else after the
    last "answer is" or "Answer:"."""
    box = last_boxed(completion)
    if box is not None:
        content = _WRAPPING.sub("", box[:200]).strip()
        found = _FIRST_LETTER.match(content)
        if found and (found[1].isupper() or len(content) == 1):
            return found[1].upper()
    letters = [match[1] for match in _ANSWER_IS.finditer(completion)]
    return letters[-1] if letters else None


def exact_answer(completion: str) -> str | None:
    """The last box, else the last line that is not empty, lower case and with single spaces."""
    box = last_boxed(completion)
    if box is None:
        lines = completion.strip().splitlines()
        box = lines[-1] if lines else ""
    answer = _plain(box)
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def boxed_form(completion: str) -> str | None:
    """The last box in a spelling in which equal answers are mostly equal strings. For votes only:
    verdicts do not use it."""
    box = last_boxed(completion)
    return None if box is None or len(box) > LONGEST_ANSWER else normal_answer(box) or None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


_WRAPPING = re.compile(r"\\(?:textbf|text|mathrm|mathbf|rm|bf)(?![a-z])|[${}*\\]")
_FIRST_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:,]|$)")
_ANSWER_IS = re.compile(
    r"[Aa]nswer(?:\s{1,3}is)?\s{0,3}:?\s{0,3}(?:option\s|choice\s)?[*$({\[]{0,4}([A-Z])(?![A-Za-z'’])"
)
