"""What a task is: problems with checkable answers, solved in steps.

A task is one file with a subclass of `Domain`. Three members must be given (`name`, `separator`,
`verify`) and one more where answers can be compared as strings (`answer_of`). The rest are
capabilities: what a domain cannot do returns None, and callers treat None as "not available here",
so mathematics (no program teacher, no step oracle) and the embedded arithmetic (both) run through
the same loop.
"""

import abc
import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from scope_jax.tasks.answers import equations_in
from scope_jax.text.boundaries import Separator, divider

# Right, wrong, partial credit (a number in [0, 1]), not judged.
Verdict = bool | float | None


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem."""

    id: str
    prompt: str  # the text shown to the policy
    answer: str  # the reference, in the domain's own notation
    solution: str | None = None  # a whole reference solution, if the data set has one


class Domain(abc.ABC):
    """A kind of problem. Implementations hold configuration only: every method is a pure function
    of its arguments.

    Completions and steps are texts without end-of-text tokens. A step is a piece of a completion
    that ends with `separator`, which belongs to it; the last step of a finished solution has none.
    Where steps end in more than one way, `boundary`, a name of `text.boundaries.NAMED` or a pattern
    of `re`, says where a text is divided; `separator` then only closes a step that lacks an end.
    """

    name: str
    separator: str
    boundary: str = ""
    system: str | None = None  # the system turn of the policy's chat template

    @property
    def divider(self) -> Separator:
        """What divides a text into steps."""
        return divider(self.separator, self.boundary)

    @property
    def writes_steps(self) -> bool:
        """Whether a program can write the next step of a solution (`next_step`)."""
        return type(self).next_step is not Domain.next_step

    @property
    def checks_steps(self) -> bool:
        """Whether steps can be checked without a model (`check_steps`)."""
        return type(self).check_steps is not Domain.check_steps

    @property
    def finds_paths(self) -> bool:
        """Whether right solutions of one path are known from those of another
        (`solution_path`)."""
        return type(self).solution_path is not Domain.solution_path

    @property
    def how_to_read(self) -> str:
        """One line for people who see a step of this domain for the first time; empty where steps
        are plain language."""
        return ""

    def policy_prompt(self, problem: Problem) -> str:
        """What the policy is shown of a problem: the user's turn, or all of the prompt without a
        chat template."""
        return problem.prompt

    @abc.abstractmethod
    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> Sequence[Verdict]:
        """Whether each completion reaches its problem's answer (outcome only); None where it could
        not be judged. A number in [0, 1] is partial credit: only 1 is right (`is_right`)."""

    def answer_of(self, completion: str) -> str | None:
        """The final answer as a normalised string (for the entropy of answers); None where there
        is none."""
        return None

    def answer_marker(self, step: str) -> bool:
        """Whether this step carries the mark of a final answer. Used to refuse a teacher's step
        that gives it away."""
        return False

    def check_steps(
        self, problem: Problem, steps: Sequence[str], *, complete: bool = True
    ) -> list[bool] | None:
        """Oracle labels, one per step: True up to the first error, False from there on. None: no
        oracle.

        `complete` says that the last step is the end of the solution; with False the steps are a
        prefix of one.
        """
        return None

    def solution_path(self, problem: Problem, completion: str) -> Hashable | None:
        """What identifies the path of a right solution (to count distinct ones); None if a step is
        wrong."""
        return None

    def equations(self, completion: str) -> list[str] | None:
        """The equations of a completion as normalised strings, to count distinct ones; by default
        its lines with an "=". None: no two solutions of a problem, nor two lines of one, could
        share an equation, so that the share of distinct ones (`diversity/div_equ`) would be 1
        whatever the policy does; it is left out."""
        return equations_in(completion)

    def reference_solution(self, problem: Problem) -> str | None:
        """The data set's own solution as a completion that `verify` accepts; None where there is
        none."""
        return problem.solution

    def demonstration(self, problem: Problem, rng: np.random.Generator, style: str) -> str | None:
        """A whole solution written by a program, in one of the domain's styles; None: no such
        program."""
        return None

    def next_step(
        self,
        problem: Problem,
        steps: Sequence[str],
        rng: np.random.Generator,
        style: str,
        wrong_step: str | None = None,
    ) -> str | None:
        """The step a program teacher writes after `steps` (separator included unless it ends the
        solution).

        `wrong_step` is what the policy wrote there. None: no such program, or it cannot go on from
        these steps.
        """
        return None


class GeneratedDomain(Domain):
    """A domain whose problems come from a program: what supervised training and data sets need
    beyond `Domain`.

    Prompts and completions consist of `characters`, each a token of its own. `k` is the size of a
    problem (terms, numbers).
    """

    characters: str
    styles: tuple[str, ...]  # of `demonstration` and `next_step`

    @abc.abstractmethod
    def problem(self, seed: int, split: str, index: int, k: int | Sequence[int]) -> Problem:
        """Problem number `index` of a split, of size `k` or one of several sizes: a pure function
        of its arguments.

        Splits are train, validation, test (no problem shared, whatever the seed) and test_ood.
        """

    @abc.abstractmethod
    def prompt_length(self, k: int) -> int:
        """Maximum number of tokens of a prompt of size k."""

    @abc.abstractmethod
    def completion_length(self, k: int) -> int:
        """Maximum number of tokens of a right solution of size k, end token included."""


def verdicts(
    domain: Domain, problems: Sequence[Problem], completions: Sequence[str]
) -> list[Verdict]:
    """`domain.verify`; each process judges its share of the rows. Raises ValueError where it does
    not give one verdict (True, False, a number or None) for each completion."""
    from scope_jax.devices.hosts import by_share

    def judge(problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        return _checked(domain, domain.verify(problems, completions), len(completions))

    return by_share(judge, problems, completions)


def is_right(verdict: bool | float | None) -> bool:
    """Whether a verdict of `Domain.verify` says that the completion is right: True, or the whole
    of the credit."""
    return verdict is not None and math.isfinite(verdict) and verdict >= 1


def _checked(domain: Domain, found: Any, count: int) -> list[Verdict]:
    expected = f"domain {domain.name!r}: verify: expected a list of {count} verdicts"
    if not isinstance(found, list | tuple | np.ndarray):
        raise ValueError(f"{expected}, found {type(found).__name__}")
    if len(found) != count:
        raise ValueError(f"{expected}, one for each completion, found {len(found)}")
    for place, verdict in enumerate(found):
        if verdict is not None and not isinstance(verdict, bool | int | float | np.generic):
            raise ValueError(
                f"{expected}, each True, False or None; number {place} is {verdict!r:.60}"
            )
        credit = math.nan if verdict is None else float(verdict)
        if math.isfinite(credit) and not 0 <= credit <= 1:
            raise ValueError(
                f"{expected}, partial credit from 0 to 1; number {place} is {verdict!r:.60}"
            )
    # Python's own kinds, since JSON carries them between processes.
    return [verdict.item() if isinstance(verdict, np.generic) else verdict for verdict in found]


def answers_and_paths(
    domain: Domain, problems: Sequence[Problem], completions: Sequence[str], right: Sequence[bool]
) -> tuple[list[str | None], list[str | None]]:
    """(final answers, paths of the right solutions as texts), for measures of diversity. Each
    process reads its share of the rows."""
    from scope_jax.devices.hosts import by_share

    def read(
        problems: Sequence[Problem], completions: Sequence[str], right: Sequence[bool]
    ) -> list[tuple[str | None, str | None]]:
        paths = [
            domain.solution_path(p, text) if ok else None
            for p, text, ok in zip(problems, completions, right, strict=True)
        ]
        return [
            (domain.answer_of(text), None if path is None else repr(path))
            for text, path in zip(completions, paths)
        ]

    rows = by_share(read, problems, completions, right)
    return [answer for answer, _ in rows], [path for _, path in rows]
