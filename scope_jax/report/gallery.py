"""Rescued rollouts side by side: what the policy wrote first, and what became of it.

Here an item of a samples file becomes rows of the gallery; `report.html.j2` draws them.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

STATUSES = ("kept", "wrong", "discarded", "corrected", "tail")

# What a step is called where its author or its fate changes.
_LABELS = {
    "wrong": "first wrong step",
    "discarded": "thrown away",
    "corrected": "teacher",
    "tail": "policy, again",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A step as it is shown."""

    status: str  # one of STATUSES, or "missing" for a note that stands where no step is
    text: str
    label: str = ""  # who wrote it, or what became of it
    score: float | None = None  # of the process reward model, in [0, 1]
    correct: bool | None = None  # by the task's own check; None: not checked


@dataclasses.dataclass(frozen=True)
class Row:
    """Two steps that stand beside each other; None where one rollout has no step left."""

    before: Cell | None
    after: Cell | None


@dataclasses.dataclass(frozen=True)
class ShownRescue:
    """A failed rollout on the left, the rescued one on the right."""

    prompt: str
    answer: str  # the reference
    first_error: int | None  # counted from 1
    threshold: float | None  # of the score
    rows: list[Row]
    rescued: bool  # whether anything was written in place of the wrong step
    verdict_before: bool | None  # None: not judged
    verdict_after: bool | None


def rescue_of(item: Mapping[str, Any]) -> ShownRescue:
    """An item of a samples file: prompt, answer, steps [{text, score, owner, status, correct}],
    first_error, verdict_before, verdict_after and optionally `threshold`.

    `status` is one of kept, wrong, discarded (the first rollout), corrected, tail (the rescued
    one, after the kept steps). Raises ValueError for another one.
    """
    for number, step in enumerate(item["steps"]):
        if step.get("status") not in STATUSES:
            raise ValueError(
                f"step {number}: status {step.get('status')!r}; one of {', '.join(STATUSES)} is"
                " expected"
            )
    steps = {
        status: [_cell(step) for step in item["steps"] if step["status"] == status]
        for status in STATUSES
    }
    # The kept steps belong to both rollouts; their scores are shown once.
    rows = [Row(cell, Cell("kept", cell.text)) for cell in steps["kept"]]
    before = _labelled(steps["wrong"]) + _labelled(steps["discarded"])
    after = _labelled(steps["corrected"]) + _labelled(steps["tail"])
    shown = after or [Cell("missing", "not rescued")]
    rows += [Row(*pair) for pair in itertools.zip_longest(before, shown)]
    first = item.get("first_error")
    return ShownRescue(
        prompt=_text(item.get("prompt")),
        answer=_text(item.get("answer")),
        first_error=first + 1 if isinstance(first, int) else None,
        threshold=_share(item.get("threshold")),
        rows=rows,
        rescued=bool(after),
        verdict_before=item.get("verdict_before"),
        verdict_after=item.get("verdict_after"),
    )


def _cell(step: Mapping[str, Any]) -> Cell:
    text = _text(step.get("text")).rstrip()
    return Cell(step["status"], text, "", _share(step.get("score")), step.get("correct"))


def _labelled(cells: list[Cell]) -> list[Cell]:
    """The first of several steps of one kind says what they are."""
    return [
        dataclasses.replace(cell, label="" if number else _LABELS[cell.status])
        for number, cell in enumerate(cells)
    ]


def _share(value: Any) -> float | None:
    """A number, moved into [0, 1]; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return min(max(float(value), 0.0), 1.0)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
