"""Rows divided into steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scope_jax.devices.hosts import by_share
from scope_jax.rollout import completion_ids, texts
from scope_jax.tasks import Problem
from scope_jax.text import step_ends
from scope_jax.text.boundaries import Separator
from scope_jax.text.steps import token_bytes
from scope_jax.types import Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class StepRows:
    """R rows of a rollout, divided into steps."""

    rollout: Rollout
    problems: Sequence[Problem]  # one per row of the rollout
    rows_R: np.ndarray  # int: their numbers in the rollout
    steps: list[list[str]]  # per row, the texts of its steps
    ends: list[list[int]]  # per row, the exclusive ends of its steps in completion tokens

    @property
    def problems_R(self) -> list[Problem]:
        """The problem of each of the R rows."""
        return [self.problems[int(b)] for b in self.rows_R]

    @property
    def count_R(self) -> np.ndarray:
        """int[R]: the number of steps of each row."""
        return np.array([len(row) for row in self.steps], int).reshape(len(self.steps))

    def take(self, positions: np.ndarray) -> "StepRows":
        """Some of the R rows, by their positions among them."""
        return dataclasses.replace(
            self,
            rows_R=self.rows_R[positions],
            steps=[self.steps[r] for r in positions],
            ends=[self.ends[r] for r in positions],
        )


def in_steps(
    rollout: Rollout,
    problems: Sequence[Problem],
    rows_R: np.ndarray,
    tokenizer: Any,
    divider: Separator,
) -> StepRows:
    """Rows `rows_R` in the steps of what was written after the prompt. The ids are cut where they
    stand; nothing is encoded again."""
    every = completion_ids(rollout)
    ids = [every[b] for b in rows_R]

    def find_ends(rows: Sequence[list[int]]) -> list[list[int]]:
        return [step_ends(row, tokenizer, divider) if row else [] for row in rows]

    ends = by_share(find_ends, ids)
    pieces = [
        [row[start:stop] for start, stop in zip([0, *stops[:-1]], stops)]
        for row, stops in zip(ids, ends)
    ]
    flat = iter(texts([piece for row in pieces for piece in row], tokenizer))
    steps = [[next(flat) for _ in row] for row in pieces]
    for texts_, row in zip(steps, pieces):
        texts_[1:] = [
            _with_first_blank(text, piece, tokenizer)
            for text, piece in zip(texts_[1:], row[1:], strict=True)
        ]
    return StepRows(rollout, problems, rows_R, steps, ends)


def _with_first_blank(text: str, ids: Sequence[int], tokenizer: Any) -> str:
    """The text of ids that others precede: with the blank of its first word, which a tokenizer of
    sentencepiece's kind leaves off where it decodes them alone."""
    pieces = token_bytes(tokenizer)
    lost = ids[0] < len(pieces) and pieces[ids[0]].startswith(b" ") and not text.startswith(" ")
    return " " + text if lost else text


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """int32[size]: row numbers, filled up with row 0."""
    index = np.zeros(size, np.int32)
    index[: len(rows)] = rows
    return index
