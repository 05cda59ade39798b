"""One chunk: its rows judged, their first errors found, corrected, gone on with. Everything is done
by the stages of `scope_jax.correction`, on groups of one row."""

import collections
import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from scope_jax.correction import Groups, Located, choose, correct, locate
from scope_jax.correction.correct import CorrectedRows
from scope_jax.correction.finish import Attempts, finish
from scope_jax.devices.mesh import to_host
from scope_jax.rewards import Rows
from scope_jax.rollout import completion_ids, from_prompts, splice
from scope_jax.salvage.cast import Cast
from scope_jax.salvage.encode import Row, exact
from scope_jax.salvage.writer import EndpointWriter
from scope_jax.tasks import Problem
from scope_jax.types import Owner, Rollout

# What became of a row, beside the reasons of a teacher, a tail or a policy's server.
RIGHT, NOT_JUDGED, BAD = "right", "not_judged", "bad_line"
UNSCORED, NO_ERROR, NO_GOOD_STEP, CUT_OFF = "unscored", "no_error_found", "no_good_step", "cut_off"
RESCUED, UNVERIFIED, SAME_STEP = "rescued", "unverified", "same_step"


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A rollout of three writers, as ids: the prompt, what was kept, the teacher's step, the tail.
    The end token belongs to who ended the row."""

    prompt: list[int]
    kept: list[int]
    step: list[int]
    tail: list[int]
    finished: bool
    reward: float | None  # None: not verified


@dataclasses.dataclass(frozen=True)
class Fate:
    """What became of one row."""

    row: Row
    outcome: str
    steps: tuple[str, ...] = ()  # exact texts; of right rows too
    scores: tuple[float, ...] = ()
    error: int | None = None  # the first wrong step
    mixed: Mixed | None = None
    refused: str | None = None  # what a teacher wrote that was not taken


@dataclasses.dataclass(frozen=True)
class Played:
    """The fates of a chunk's rows, in their order, and what they cost."""

    fates: list[Fate]
    cost: dict[str, float]


def play(rows: Sequence[Row], cast: Cast) -> Played:
    """Play a chunk of at most `settings.rows` rows. Rows that turn out right, or cannot be judged,
    are not corrected."""
    if not rows:
        return Played([], {})
    with cast.timer("verify"):
        groups = _judged(rows, cast)
    outcome = [
        RIGHT if groups.right_B[b] else NOT_JUDGED if np.isnan(groups.reward_B[b]) else ""
        for b in range(len(rows))
    ]
    if not groups.failed_B.any():
        return Played([Fate(row, word) for row, word in zip(rows, outcome)], {})
    with cast.timer("localise"):
        located = locate(groups, groups.failed_B, cast.scene)
    chosen = choose(located, groups, cast.spec.select, cast.scene.seed)
    corrected = attempts = None
    if len(chosen.rows_N):
        with cast.timer("teacher"):
            corrected = _without_same_steps(correct(chosen, groups, cast.scene, cast.spec))
        attempts = finish(corrected, cast.scene, cast.spec)  # keeps its own time
    fates = [Fate(row, word) for row, word in zip(rows, outcome)]
    for r, b in enumerate(located.rows.rows_R.tolist()):
        fates[b] = _located(rows[b], located, r, bool(to_host(groups.rollout.finished_B)[b]), cast)
    if attempts is not None:
        for n, b in enumerate(chosen.rows_N.tolist()):
            fates[b] = _attempted(fates[b], attempts, n, cast)
    metrics = attempts.metrics if attempts is not None else chosen.metrics
    cost = {
        name.removeprefix("cost/"): v for name, v in metrics.items() if name.startswith("cost/")
    }
    asked = metrics.get("scope/teacher_requests")
    return Played(fates, cost if asked is None else cost | {"teacher_requests": asked})


def _judged(rows: Sequence[Row], cast: Cast) -> Groups:
    """The rows as groups of one, filled up to a batch of one size by finished rows without a
    verdict."""
    settings, size = cast.settings, cast.settings.rows
    rollout = _rollout(rows, size, settings.prompt_tokens + settings.new_tokens)
    nobody = Problem("", "", "")
    problems = [row.problem for row in rows] + [nobody] * (size - len(rows))
    reward, right = np.full(size, np.nan, np.float32), np.zeros(size, bool)
    known = [b for b, row in enumerate(rows) if row.logged.reward is not None]
    reward[known] = [rows[b].logged.reward for b in known]
    right[known] = reward[known] >= settings.right
    asked = [b for b, row in enumerate(rows) if row.logged.reward is None]
    if asked:
        ids = [completion_ids(rollout)[b] for b in asked]
        tokenizer = cast.scene.policy.tokenizer
        judged = cast.scene.reward.judge(
            Rows(
                cast.scene.domain,
                [problems[b] for b in asked],
                [exact(row, tokenizer) for row in ids],
                ids,
                np.array([rows[b].finished for b in asked]),
            )
        )
        reward[asked], right[asked] = judged.reward_B, judged.right_B
    own = np.ones(size, bool)
    return Groups(rollout, 1, problems, reward, right, ~np.isnan(reward), own, {})


def _rollout(rows: Sequence[Row], size: int, buffer: int) -> Rollout:
    """The rows as a batch. Row ids are line numbers, so that what is drawn for a row does not
    depend on its chunk."""
    fill = size - len(rows)
    prompts = from_prompts([row.prompt_ids for row in rows] + [[0]] * fill, 1, buffer)
    tokens, count = np.zeros((size, buffer), np.int32), np.zeros(size, np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row.ids)], count[b] = row.ids, len(row.ids)
    finished = np.array([row.finished for row in rows] + [True] * fill)
    ids = np.array([row.logged.line for row in rows] + [0] * fill, np.int64) % (1 << 31)
    written = splice(
        prompts,
        jnp.asarray(tokens),
        jnp.asarray(count),
        Owner.POLICY,
        finished_B=jnp.asarray(finished),
    )
    return written.replace(
        finished_B=jnp.asarray(finished), row_id_B=jnp.asarray(ids.astype(np.int32))
    )


def _without_same_steps(corrected: CorrectedRows) -> CorrectedRows:
    """A step that is the wrong one again is no correction."""
    usable, refused = corrected.usable_R.copy(), list(corrected.refused)
    for n, (ask, step) in enumerate(zip(corrected.job.asks, corrected.steps, strict=True)):
        if refused[n] is None and step.split() == ask.wrong.split():
            usable[n], refused[n] = False, SAME_STEP
    return dataclasses.replace(corrected, usable_R=usable, refused=refused)


def _located(row: Row, located: Located, r: int, finished: bool, cast: Cast) -> Fate:
    """The fate of a failed row, as if nobody corrected it."""
    ends, error = located.rows.ends[r], int(located.error_R[r])
    starts = [0, *ends[:-1]]
    steps = tuple(exact(row.ids[a:b], cast.encoder.tokenizer) for a, b in zip(starts, ends))
    valid = located.valid_RJ[r]
    scores = tuple(float(x) for x in located.score_RJ[r][valid])
    if not valid.any():
        return Fate(row, UNSCORED, steps)
    if not located.has_error_R[r]:
        return Fate(row, NO_ERROR, steps, scores)
    enough = error >= cast.settings.good_steps
    outcome = NO_GOOD_STEP if not enough else CUT_OFF if not finished else ""
    return Fate(row, outcome, steps, scores, error)


def _attempted(fate: Fate, attempts: Attempts, n: int, cast: Cast) -> Fate:
    """The fate of row n of those that a teacher was asked about."""
    job, rows = attempts.corrected.job, attempts.rows
    verified = attempts.spec.tail != "none"
    reason = attempts.failed[n]
    writer = cast.scene.policy.generator
    if reason == "no_room" and isinstance(writer, EndpointWriter) and n in writer.failed:
        reason = f"policy_{writer.failed[n]}"
    if reason is not None or not attempts.accepted_R[n]:
        refused = None if attempts.corrected.usable_R[n] else attempts.corrected.steps[n] or None
        return dataclasses.replace(fate, outcome=reason or "tail_wrong", refused=refused)
    tokens, length, prompt, finished = to_host(
        (rows.tokens_BT, rows.length_B, rows.prompt_length_B, rows.finished_B)
    )
    kept, stop = int(job.kept_B[n]), int(to_host(attempts.corrected.rows.length_B)[n])
    ids = tokens[n].tolist()
    mixed = Mixed(
        ids[: prompt[n]],
        ids[prompt[n] : kept],
        ids[kept:stop],
        ids[stop : length[n]],
        bool(finished[n]),
        float(attempts.reward_R[n]) if verified else None,
    )
    return dataclasses.replace(fate, outcome=RESCUED if verified else UNVERIFIED, mixed=mixed)


def tally(fates: Sequence[Fate]) -> collections.Counter[str]:
    """How often each outcome came."""
    return collections.Counter(fate.outcome for fate in fates)
