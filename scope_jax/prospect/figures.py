"""From the batches to the figures of the table: counts, sums and shares, nothing else."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scope_jax.prospect.measure import UNCHECKED, Batch, FirstErrors
from scope_jax.report import mean_and_standard_error

PARTS = 5  # of a row's length, for the histogram of first errors
PHASES = ("rollout", "verify", "prm", "correct")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What the policy can do by itself."""

    problems: int  # groups
    group: int  # rows of each
    all_failed: int  # groups without a right row, and with a failed one
    mixed: int
    all_right: int
    not_judged: int  # rows without a verdict; in pass rates they count as not right
    failed: int  # rows
    right: int  # rows
    pass_1: float
    pass_1_error: float  # its standard error over problems
    pass_group: float  # pass@M: share of the groups with a right row
    pass_group_error: float


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the first errors of failures lie that were not cut off."""

    rows: int  # failures with an error found
    none: int  # failures without one
    first_step: int  # of the rows: those whose first step is wrong, so that no good one precedes
    # Of the rows, by the share of their steps that precedes the error: 0 to 1/5, and so on.
    parts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Precision:
    """How well the localiser finds the first error, by the task's own check of steps. Rows that
    were cut off, or that the check says nothing of, are left out."""

    errors: int  # failures with a wrong step by the check
    exact: int  # of these: first error found at that step
    earlier: int
    later: int
    missed: int  # none found
    clean: int  # right rows without a wrong step by the check
    false_alarms: int  # of these: an error found


@dataclasses.dataclass(frozen=True)
class Rescues:
    """The way of the failures: each that is lost is lost at the first of these that fits it."""

    elsewhere: int  # in groups that `method.select.groups` leaves alone
    cut_off: int  # by length
    not_found: int  # no error found in them
    not_scored: int  # of these: the localiser gave no scores
    too_early: int  # fewer good steps before the error than `method.select.good_steps`
    eligible: int
    selected: int
    by_policy: int  # of these: repaired by the policy itself, before the teacher was asked
    steps: int  # asked of the teacher, `method.candidates` for each row
    corrected: int  # of these: steps that may be used
    rescued: int  # verified, those by the policy itself included
    refused: dict[str, int]  # why a teacher's step was not used


@dataclasses.dataclass(frozen=True)
class Cost:
    """Sums over all batches, but for the seconds."""

    rollout_tokens: int  # the policy's own rollouts
    tail_tokens: int  # what it wrote after the teacher
    self_tokens: int  # its own tries before the teacher was asked
    teacher_tokens: int  # written
    prm_tokens: int  # read
    localiser_tokens: int  # continuations of Monte Carlo
    # By phase, the median over the batches after the first, which compiles; of one batch alone,
    # its own.
    seconds: dict[str, float]
    compiling: bool  # whether that is of the first batch


@dataclasses.dataclass(frozen=True)
class Figures:
    """All of it."""

    seed: int
    batches: int
    localiser: str  # its kind
    good_steps: int  # of the selection
    candidates: int  # steps that the teacher writes for a row
    policy: Policy
    found: Places  # by the localiser
    checked: Places | None  # by the task's own check; None: it has none, or it is the localiser
    precision: Precision | None  # None as `checked`
    right_asked: int  # right rows that the localiser was asked about, and could score
    right_flagged: int  # of these: an error found
    rescues: Rescues
    dead_before: float  # share of groups without an advantage
    dead_after: float
    cost: Cost


def figures(
    batches: Sequence[Batch],
    *,
    localiser: str,
    good_steps: int = 1,
    candidates: int = 1,
    seed: int = 0,
) -> Figures:
    """The figures of one or more batches. `localiser`: `localiser.kind` of the config."""
    failures = FirstErrors.joined([batch.failures for batch in batches])
    asked = [batch.right for batch in batches if batch.right is not None]
    right = FirstErrors.joined(asked) if asked else failures.take(np.zeros(0, int))
    ended = failures.take(failures.ended_R)
    known = ended.take(ended.true_R != UNCHECKED)
    checks = localiser != "oracle" and bool(len(known.true_R))
    scored = right.take(right.scored_R)
    return Figures(
        seed=seed,
        batches=len(batches),
        localiser=localiser,
        good_steps=good_steps,
        candidates=candidates,
        policy=policy_of(batches),
        found=places(ended.found_R, ended.steps_R),
        checked=places(known.true_R, known.steps_R) if checks else None,
        precision=precision(known, right) if checks else None,
        right_asked=len(scored.found_R),
        right_flagged=int(np.sum(scored.found_R < scored.steps_R)),
        rescues=rescues_of(batches, failures, good_steps, candidates),
        dead_before=_mean(batches, "advantage/zero_group_share"),
        dead_after=_mean(batches, "advantage/zero_group_share_after"),
        cost=cost_of(batches),
    )


def policy_of(batches: Sequence[Batch]) -> Policy:
    """Groups and pass rates."""
    group = batches[0].group
    right = np.concatenate([b.right_B.reshape(-1, group) for b in batches])
    failed = np.concatenate([b.failed_B.reshape(-1, group) for b in batches])
    has_right, has_failed = right.any(axis=1), failed.any(axis=1)
    one, one_error = mean_and_standard_error(right.mean(axis=1).tolist())
    many, many_error = mean_and_standard_error(has_right.astype(float).tolist())
    return Policy(
        problems=len(right),
        group=group,
        all_failed=int(np.sum(~has_right & has_failed)),
        mixed=int(np.sum(has_right & has_failed)),
        all_right=int(np.sum(has_right & ~has_failed)),
        not_judged=int(np.sum(~right & ~failed)),
        failed=int(failed.sum()),
        right=int(right.sum()),
        pass_1=one,
        pass_1_error=one_error,
        pass_group=many,
        pass_group_error=many_error,
    )


def places(error_R: np.ndarray, steps_R: np.ndarray) -> Places:
    """The histogram of first errors. `error_R`: the number of a step, that of all of them where
    none is wrong."""
    wrong = error_R < steps_R
    error, steps = error_R[wrong], steps_R[wrong]
    part = error * PARTS // np.maximum(steps, 1)
    return Places(
        rows=int(wrong.sum()),
        none=int(np.sum(~wrong)),
        first_step=int(np.sum(error == 0)),
        parts=tuple(int(np.sum(part == n)) for n in range(PARTS)),
    )


def precision(failures: FirstErrors, right: FirstErrors) -> Precision:
    """The localiser against the check. `failures`: those that ended and were checked."""
    wrong = failures.take(failures.true_R < failures.steps_R)
    found = wrong.found_R < wrong.steps_R
    # A row that was not scored cannot be flagged.
    clean = right.take((right.true_R == right.steps_R) & right.scored_R)
    return Precision(
        errors=len(wrong.true_R),
        exact=int(np.sum(wrong.found_R == wrong.true_R)),
        earlier=int(np.sum(wrong.found_R < wrong.true_R)),
        later=int(np.sum(found & (wrong.found_R > wrong.true_R))),
        missed=int(np.sum(~found)),
        clean=len(clean.true_R),
        false_alarms=int(np.sum(clean.found_R < clean.steps_R)),
    )


def rescues_of(
    batches: Sequence[Batch], failures: FirstErrors, good_steps: int, candidates: int
) -> Rescues:
    """The way of the failures."""
    ended, found = failures.ended_R, failures.found_R < failures.steps_R
    early = failures.found_R < good_steps
    refused: Counter[str] = Counter()
    for batch in batches:
        for name, value in batch.metrics.items():
            if value and (reason := _refusal(name)) is not None:
                refused[reason] += int(value)
    failed = sum(int(batch.failed_B.sum()) for batch in batches)
    selected, by_policy = _sum(batches, "scope/selected"), _sum(batches, "scope/self_accepted")
    return Rescues(
        elsewhere=failed - len(failures.found_R),
        cut_off=int(np.sum(~ended)),
        not_found=int(np.sum(ended & ~found)),
        not_scored=int(np.sum(ended & ~failures.scored_R)),
        too_early=int(np.sum(ended & found & early)),
        eligible=int(np.sum(ended & found & ~early)),
        selected=selected,
        by_policy=by_policy,
        steps=(selected - by_policy) * candidates,
        corrected=_sum(batches, "scope/corrected"),
        rescued=_sum(batches, "scope/accepted"),
        refused=dict(refused),
    )


def cost_of(batches: Sequence[Batch]) -> Cost:
    """Tokens of all batches, seconds of one."""
    later = batches[1:] or batches
    seconds = {
        phase: float(np.median([b.metrics.get(f"time/{phase}", 0.0) for b in later]))
        for phase in PHASES
    }
    return Cost(
        rollout_tokens=_sum(batches, "cost/rollout_tokens"),
        tail_tokens=_sum(batches, "cost/tail_tokens"),
        self_tokens=_sum(batches, "cost/self_tokens"),
        teacher_tokens=_sum(batches, "cost/teacher_tokens"),
        prm_tokens=_sum(batches, "cost/prm_tokens"),
        localiser_tokens=_sum(batches, "cost/localiser_tokens"),
        seconds=seconds,
        compiling=len(batches) == 1,
    )


def _refusal(metric: str) -> str | None:
    """The reason that a metric counts, None for other metrics."""
    if metric == "scope/leaks":
        return "leak"
    if metric == "scope/incomplete_steps":
        return "incomplete_step"
    if metric.startswith("scope/teacher_failed_"):
        return "teacher_" + metric.removeprefix("scope/teacher_failed_")
    return None


def _sum(batches: Sequence[Batch], metric: str) -> int:
    return round(sum(batch.metrics.get(metric, 0.0) for batch in batches))


def _mean(batches: Sequence[Batch], metric: str) -> float:
    return float(np.mean([batch.metrics[metric] for batch in batches]))
