"""A step checker of algebra: config.localiser.function = scope_jax.tasks.check_algebra:first_wrong.

What a step checker is: docs/step_checkers.md. It is a file of its own because whoever imports it is
about to check lines: sympy is imported here at once, and not within the deadline of the first call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy  # noqa: F401

from scope_jax.tasks.algebra_checker import problem_text, reasons


def first_wrong(problem: Mapping[str, Any], steps: Sequence[str]) -> int | None:
    """The index of the first wrong line of a solution; None where all are right.

    The field `prompt` of the problem is an equation or an expression, with or without a colon after
    it. Raises `Unreadable` where it is neither.
    """
    found = reasons(problem_text(problem["prompt"]), list(steps))
    return next((index for index, reason in enumerate(found) if reason), None)
