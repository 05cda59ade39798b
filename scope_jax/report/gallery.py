"""Rescued rollouts: what the policy wrote well, where it went wrong, and what became of it.

Here an item of a samples file becomes what the gallery shows; `gallery.html.j2` draws it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.report.wording import is_prose, plain_text, share, why_not

STATUSES = ("kept", "wrong", "discarded", "corrected", "tail")

# What a step is called where its author or its fate changes.
_LABELS = {
    "wrong": "first wrong step",
    "discarded": "thrown away",
    "corrected": "teacher",
    "tail": "policy, again",
    "refused": "teacher, refused",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A step as it is shown."""

    number: int  # in its solution, from 1
    status: str  # one of STATUSES, or "refused"
    text: str
    label: str = ""  # who wrote it, or what became of it
    score: float | None = None  # of the process reward model, in [0, 1]
    correct: bool | None = None  # by the task's own check; None: not checked


@dataclasses.dataclass(frozen=True)
class ShownRescue:
    """A failed rollout and the rescued one: the steps that both have, then each one's own."""

    prompt: str
    answer: str  # the reference
    threshold: float | None  # of the score
    kept: list[Cell]
    before: list[Cell]
    after: list[Cell]
    rescued: bool  # whether anything was written in place of the wrong step
    why_not: str  # why it was not accepted; empty where it was, or where nobody knows
    verdict_before: bool | None  # None: not judged
    verdict_after: bool | None
    prose: bool  # sentences, not code

    @property
    def heading_after(self) -> str:
        """What the rescued rollout is called."""
        if not self.rescued:
            return "No correction"
        if not any(cell.status == "corrected" for cell in self.after):
            return "Repaired by the policy itself"
        tails = {cell.label for cell in self.after if cell.status == "tail"}
        by_policy = _LABELS["tail"] in tails
        return "Corrected by the teacher" + (", finished by the policy" if by_policy else "")

    @property
    def after_checked(self) -> bool:
        """Whether the steps of the rescued rollout have scores or checks to show."""
        return any(cell.score is not None or cell.correct is not None for cell in self.after)


def rescue_of(item: Mapping[str, Any]) -> ShownRescue:
    """An item of a samples file: prompt, answer, steps [{text, score, owner, status, correct}],
    verdict_before, verdict_after, and optionally `threshold`, `not_rescued` (why), `refused` (what
    the teacher wrote then).

    `status` is one of kept, wrong, discarded (the first rollout), corrected, tail (the rescued
    one, after the kept steps). Raises ValueError for another one.
    """
    for number, step in enumerate(item["steps"]):
        if step.get("status") not in STATUSES:
            raise ValueError(
                f"step {number}: status {step.get('status')!r}; one of {', '.join(STATUSES)} is"
                " expected"
            )

    def cells(first: int, *statuses: str) -> list[Cell]:
        steps = [s for name in statuses for s in item["steps"] if s["status"] == name]
        return _cells(steps, first)

    kept = cells(1, "kept")
    before = cells(len(kept) + 1, "wrong", "discarded")
    after = cells(len(kept) + 1, "corrected", "tail")
    rescued, refused = bool(after), plain_text(item.get("refused"))
    if refused and not rescued:
        after = [Cell(len(kept) + 1, "refused", refused, _LABELS["refused"])]
    prompt = plain_text(item.get("prompt"))
    return ShownRescue(
        prompt=prompt,
        answer=plain_text(item.get("answer")),
        threshold=share(item.get("threshold")),
        kept=kept,
        before=before,
        after=after,
        rescued=rescued,
        why_not=why_not(item.get("not_rescued")),
        verdict_before=item.get("verdict_before"),
        verdict_after=item.get("verdict_after"),
        prose=is_prose(prompt, *(cell.text for cell in (*kept, *before, *after))),
    )


def _cells(steps: Sequence[Mapping[str, Any]], first: int) -> list[Cell]:
    """Steps numbered from `first`; the first of several of one kind says what they are."""
    cells: list[Cell] = []
    for number, step in enumerate(steps, start=first):
        status = step["status"]
        new = not cells or cells[-1].status != status
        label = _LABELS.get(status, "") if new else ""
        if label and status == "tail" and step.get("owner") == "teacher":
            label = "teacher, again"
        text, score = plain_text(step.get("text")), share(step.get("score"))
        cells.append(Cell(number, status, text, label, score, step.get("correct")))
    return cells
