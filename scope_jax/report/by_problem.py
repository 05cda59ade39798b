"""What an evaluation found problem by problem, in few characters: how many samples were right, and
on how many different paths.

Kept so that methods can be compared on the same problems: the error of a difference over problems
is that of the paired differences, which means over problems cannot give.
"""

import dataclasses
import math
import string
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# In the workdir: {name of an evaluation, as before the "/" of its metrics: a ByProblem as JSON}.
BY_PROBLEM = "evaluation_problems.json"
# One character for a number from 0 to 61.
DIGITS = string.digits + string.ascii_lowercase + string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class ByProblem:
    """One set of problems at one temperature; index i is the same problem in every list."""

    samples: int  # of each problem
    problems: str  # which problems, in which order: `digest_of` their ids
    right: Sequence[int]  # right samples
    paths: Sequence[int] | None = None  # distinct right paths; None: not counted

    def to_json(self) -> dict[str, Any]:
        """As JSON: the numbers are digits of base 62 where each has one, else a list."""
        lists = {"right": self.right} | ({} if self.paths is None else {"paths": self.paths})
        return {
            "samples": self.samples,
            "problems": self.problems,
            **{name: _text_of(values) for name, values in lists.items()},
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "ByProblem":
        """What `to_json` made. Raises ValueError for anything else."""
        try:
            right = _values_of(saved["right"])
            paths = _values_of(saved["paths"]) if "paths" in saved else None
            found = cls(int(saved["samples"]), str(saved["problems"]), right, paths)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"counts by problem: expected what to_json made ({error!r})") from None
        lengths = {len(values) for values in (right, paths) if values is not None}
        if len(lengths) > 1 or max(right, default=0) > found.samples:
            raise ValueError(
                f"counts by problem: {len(right)} problems of {found.samples} samples have other"
                " counts"
            )
        return found


def digest_of(ids: Sequence[str]) -> str:
    """Eight characters that tell lists of problems apart, by their ids and order."""
    return f"{zlib.crc32(chr(10).join(ids).encode()):08x}"


def paired_over_problems(
    ours: Sequence[ByProblem], theirs: Sequence[ByProblem]
) -> tuple[float, float]:
    """(mean difference of pass@1, its standard error over problems) of two methods with runs on
    the same problems: ours - theirs of each problem's share of right samples in all runs together.
    The error says how much another draw of problems would move it, given these runs; how much
    other seeds would is another error. NaN for no run.

    Raises ValueError where the runs were evaluated on different problems.
    """
    if not ours or not theirs:
        return math.nan, math.nan
    draws = {one.problems for one in (*ours, *theirs)}
    if len(draws) > 1:
        raise ValueError(f"runs on {len(draws)} different sets of problems cannot be paired")
    gap = _shares(ours) - _shares(theirs)
    error = float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else math.nan
    return float(gap.mean()), error


def _shares(runs: Sequence[ByProblem]) -> np.ndarray:
    """Each problem's share of right samples, mean over runs: [problems]."""
    return np.mean([np.asarray(run.right, np.float64) / run.samples for run in runs], axis=0)


def _text_of(values: Sequence[int]) -> str | list[int]:
    if max(values, default=0) < len(DIGITS):
        return "".join(DIGITS[value] for value in values)
    return [int(value) for value in values]


def _values_of(saved: str | list[int]) -> list[int]:
    if isinstance(saved, str):
        return [DIGITS.index(digit) for digit in saved]
    return [int(value) for value in saved]
