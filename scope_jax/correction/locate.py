"""Rows cut into steps, the steps scored, the first error of each row found."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from scope_jax.correction.first_error import first_error, prefix_quality
from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import to_host
from scope_jax.devices.shapes import row_count
from scope_jax.prm.model import ProcessRewardModel
from scope_jax.rollout import completion_ids, texts
from scope_jax.tasks import Domain, Problem
from scope_jax.text import step_ends
from scope_jax.text.steps import Separator
from scope_jax.types import Rollout

LOCALISERS = ("prm", "oracle", "monte_carlo")

# search(rows_R, ends) -> (first error of each row, its number of steps where none; tokens that the
# search generated)
Search = Callable[[np.ndarray, Sequence[Sequence[int]]], tuple[np.ndarray, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Located:
    """Some rows of a rollout, in steps. R rows, at most J steps.

    rows_R: their numbers in the rollout. ends: exclusive ends of each row's steps, counted in
    completion tokens. score_RJ: the probability that a step is right; valid_RJ: steps that were
    scored. error_R: the first error, J where there is none. quality_R: `prefix_quality`. metrics:
    rows that could not be scored (`scope/unscored`) and what the scores cost (`cost/prm_tokens`,
    `cost/localiser_tokens`).
    """

    rows_R: np.ndarray
    steps: list[list[str]]
    ends: list[list[int]]
    score_RJ: np.ndarray
    valid_RJ: np.ndarray
    error_R: np.ndarray
    quality_R: np.ndarray
    metrics: dict[str, float]

    @property
    def found_R(self) -> np.ndarray:
        """bool[R]: an error was found."""
        return self.error_R < np.array([len(row) for row in self.steps], int).reshape(
            len(self.steps)
        )


def in_steps(
    rollout: Rollout, rows_R: np.ndarray, tokenizer: Any, divider: Separator
) -> tuple[list[list[str]], list[list[int]], list[list[int]]]:
    """(texts of the steps, their exclusive ends, ids) of each row, counted in the tokens that were
    written after the prompt. The ids are cut where they stand; nothing is encoded again."""
    every = completion_ids(rollout)
    ids = [every[b] for b in rows_R]
    ends = by_share(
        lambda own: [step_ends(row, tokenizer, divider) if row else [] for row in own], ids
    )
    pieces = [
        [row[start:stop] for start, stop in zip([0, *stops[:-1]], stops)]
        for row, stops in zip(ids, ends)
    ]
    flat = iter(texts([piece for row in pieces for piece in row], tokenizer))
    return [[next(flat) for _ in row] for row in pieces], ends, ids


def locate(
    rollout: Rollout,
    mask_B: np.ndarray,
    problems: Sequence[Problem],
    *,
    localiser: str,
    threshold: float,
    domain: Domain,
    tokenizer: Any,
    prm: ProcessRewardModel | None = None,
    search: Search | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Located:
    """The rows where `mask_B`, in steps, with the first error of each: by a PRM (the first step
    scored below `threshold`), by the domain's own step check (`oracle`), or by `search`
    (`monte_carlo`, on finished rows).

    `noise`: the probability that a row's error is moved to one of its steps drawn at random, to
    see what a bad localiser does. Raises ValueError where the localiser lacks what it needs.
    """
    rows = np.flatnonzero(mask_B)
    steps, ends, ids = in_steps(rollout, rows, tokenizer, domain.divider)
    R, J = len(rows), max([len(row) for row in steps], default=0)
    metrics = {"scope/unscored": 0.0, "cost/prm_tokens": 0.0, "cost/localiser_tokens": 0.0}
    if localiser == "prm":
        if prm is None:
            raise ValueError(
                "correction.localiser 'prm' needs a process reward model; set models.prm, or"
                " localiser 'oracle'"
            )
        score, valid, unscored = prm.score(
            [problems[int(b)].prompt for b in rows], steps, rows=mask_B.size
        )
        prompt_length = to_host(rollout.prompt_length_B)[rows]
        metrics["scope/unscored"] = float(unscored)
        metrics["cost/prm_tokens"] = float(sum(len(row) for row in ids) + prompt_length.sum())
    else:
        score, valid = np.zeros((R, J), np.float32), np.zeros((R, J), bool)
        if localiser == "oracle":
            checks = by_share(
                lambda own, lists: [
                    domain.check_steps(p, row) for p, row in zip(own, lists, strict=True)
                ],
                [problems[int(b)] for b in rows],
                steps,
            )
            for r, labels in enumerate(checks):
                if labels is None:
                    raise ValueError(
                        f"correction.localiser 'oracle': domain {domain.name!r} cannot check steps;"
                        " use 'prm'"
                    )
                score[r, : len(labels)], valid[r, : len(labels)] = labels, True
        else:
            if search is None:
                raise ValueError(
                    "correction.localiser 'monte_carlo' needs a policy to continue the rows with"
                )
            finished = to_host(rollout.finished_B)[rows]
            chosen = np.flatnonzero(
                finished & np.array([len(row) > 0 for row in steps], bool).reshape(R)
            )
            found, tokens = search(rows[chosen], [ends[r] for r in chosen])
            metrics["cost/localiser_tokens"] = float(tokens)
            for r, error in zip(chosen.tolist(), found.tolist(), strict=True):
                score[r, :error], valid[r, : len(steps[r])] = 1.0, True
    if noise > 0:
        score = _moved(score, valid, threshold, noise, seed)
    error, quality = _judge(score, valid, threshold, row_count(R, mask_B.size))
    return Located(rows, steps, ends, score, valid, error, quality, metrics)


def _moved(
    score_RJ: np.ndarray, valid_RJ: np.ndarray, threshold: float, noise: float, seed: int
) -> np.ndarray:
    """Scores with the first error of some rows moved: 1 before its new place, 0 from there on."""
    rng = np.random.default_rng([seed, 3])
    moved = score_RJ.copy()
    for r in range(len(moved)):
        steps = int(valid_RJ[r].sum())
        strikes, place = rng.random() < noise, rng.random()
        if strikes and steps and (score_RJ[r, :steps] < threshold).any():
            moved[r, :steps] = np.arange(steps) < int(place * steps)
    return moved


def _judge(
    score_RJ: np.ndarray, valid_RJ: np.ndarray, threshold: float, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """(first error, prefix quality) of each row, computed on arrays of a few fixed sizes."""
    R, J = score_RJ.shape
    pad = ((0, rows - R), (0, -J % 8 or (8 if J == 0 else 0)))
    error, quality = _error_and_quality(np.pad(score_RJ, pad), np.pad(valid_RJ, pad), threshold)
    return np.minimum(np.asarray(error)[:R], J), np.asarray(quality)[:R]


@jax.jit
def _error_and_quality(
    score: jax.Array, valid: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
    error = first_error(score, valid, threshold)
    return error, prefix_quality(score, valid, error)
