"""Mathematics as a domain: texts judged by math_verify, steps divided by blank lines or as the
options say.

No step oracle and no program that writes solutions: the first error is for a process reward model
to find, and the only demonstration is the reference solution that came with the problem.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence

import numpy as np

from scope_jax.tasks.answers import boxed_solution, normal_boxed
from scope_jax.tasks.domain import Domain, Problem
from scope_jax.tasks.verify_math import verify_math
from scope_jax.text.boundaries import NAMED

# What Qwen2.5-Math and its PRMs were trained with.
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclasses.dataclass(frozen=True)
class Mathematics(Domain):
    r"""Problems whose final answer stands in \boxed{}."""

    system: str | None = SYSTEM
    """System turn of the chat template (`rollout.chat`); "" leaves it out."""
    template: str = "{problem}"
    """What the policy is shown; `{problem}` stands for the problem's text."""
    seconds: float = 5.0
    """Time limit of one verdict."""
    separator: str = "\n\n"
    """Closes a step; a single newline makes lines steps."""
    boundary: str = ""
    """What divides solutions into steps in place of `separator`: sentences, numbered_steps, lines,
    blank_lines, or a pattern of `re`; "" is none."""

    name = "math"

    def __post_init__(self):
        if not self.separator or "\0" in self.separator:
            raise ValueError(
                f"math: separator {self.separator!r}: expected a non-empty text without NUL"
            )
        if self.boundary not in NAMED and (
            near := difflib.get_close_matches(self.boundary, NAMED, 1, 0.75)
        ):
            raise ValueError(
                f"math: boundary {self.boundary!r}: unknown name; the nearest known one is"
                f" {near[0]!r} (known: {', '.join(NAMED)}, or a pattern of re)"
            )
        try:
            pattern = re.compile(self.boundary)
        except re.error as error:
            raise ValueError(
                f"math: boundary {self.boundary!r}: not a pattern of re ({error})"
            ) from None
        if self.boundary and pattern.fullmatch(""):
            raise ValueError(
                f"math: boundary {self.boundary!r} matches everywhere; expected a pattern that"
                " stands between steps"
            )
        if "{problem}" not in self.template:
            raise ValueError(
                f"math: template {self.template!r}: expected a text that holds {{problem}}"
            )
        if not self.seconds > 0:
            raise ValueError(f"math: seconds {self.seconds}: expected a positive number")

    def policy_prompt(self, problem: Problem) -> str:
        """The template around the problem's text."""
        return self.template.replace("{problem}", problem.prompt)

    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[bool | None]:
        r"""Whether the last \boxed{} (else what math_verify finds) equals the reference; None:
        could not be judged."""
        golds = [problem.answer for problem in problems]
        return verify_math(completions, golds, seconds=self.seconds) if golds else []

    def answer_of(self, completion: str) -> str | None:
        r"""The content of the last \boxed{}, in one spelling; None without a box."""
        return normal_boxed(completion)

    def answer_marker(self, step: str) -> bool:
        r"""A step that opens a \boxed or \fbox gives the answer away, whether it closes or not."""
        return "\\boxed" in step or "\\fbox" in step

    def reference_solution(self, problem: Problem) -> str | None:
        r"""The data set's solution, ending in \boxed{}; None where there is none."""
        return (
            None if problem.solution is None else boxed_solution(problem.solution, problem.answer)
        )

    def demonstration(
        self, problem: Problem, rng: np.random.Generator, style: str = ""
    ) -> str | None:
        """The reference solution. `rng`, `style`: not used."""
        return self.reference_solution(problem)
