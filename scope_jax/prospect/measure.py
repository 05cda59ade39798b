"""The first batches of a run, played as `train_step` plays them, without its update.

The stages, the keys, the seeds and the order of the problems are those of training, so the metrics
of batch 0 are those that the run of this config reports for its first step. Further batches are
those of the same run if nothing were learned in it.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from scope_jax import streams
from scope_jax.configuration import Scope, TrainConfig
from scope_jax.correction import Groups, Located, Scene, StepRows, locate, rescue
from scope_jax.correction.choose import correctable
from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import to_host
from scope_jax.learning.credit import advantages
from scope_jax.rollout import Generator
from scope_jax.run import PhaseTimer
from scope_jax.tasks import Domain, Problem
from scope_jax.train import no_signal
from scope_jax.training.actors import Actors
from scope_jax.training.rollouts import Progress, Step, collect_rollouts, scene_of

UNCHECKED = -1  # in `FirstErrors.true_R`


@dataclasses.dataclass(frozen=True, eq=False)
class FirstErrors:
    """Where R rows go wrong. A step is a number from 0; the count of a row's steps says that none
    is wrong."""

    steps_R: np.ndarray  # int: how many steps the row has
    found_R: np.ndarray  # int: its first wrong step by the run's localiser
    true_R: np.ndarray  # int: by the task's own check of steps, UNCHECKED where there is none
    scored_R: np.ndarray  # bool: the localiser could score it
    ended_R: np.ndarray  # bool: it was not cut off by length

    def take(self, rows: np.ndarray) -> "FirstErrors":
        """Some of the rows, by a mask or by their positions."""
        return FirstErrors(*(getattr(self, field.name)[rows] for field in _FIELDS))

    @classmethod
    def joined(cls, parts: Sequence["FirstErrors"]) -> "FirstErrors":
        """The rows of all parts; there is at least one part."""
        return cls(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in _FIELDS))


_FIELDS = dataclasses.fields(FirstErrors)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What one batch of rollouts and its rescue came to."""

    group: int  # rows of one prompt
    right_B: np.ndarray  # bool: rows with a verdict, and a good one
    failed_B: np.ndarray  # bool: rows with a verdict, and a bad one
    failures: FirstErrors  # of the rows that failed, in the groups that may be corrected
    right: FirstErrors | None  # of the right ones; None: the localiser was not asked about them
    metrics: dict[str, float]  # those of a training step, as far as it goes without an update


def measure(actors: Actors, policy: Generator, config: TrainConfig, batches: int) -> list[Batch]:
    """So many batches of the run that `config` describes. `policy`: the actors' own, laid out for
    decoding. All processes call it."""
    progress, root, found = Progress(), jax.random.key(config.seed), []
    for number in range(batches):
        key, seed = jax.random.fold_in(root, number), streams.step_seed(config.seed, number)
        step = Step(number, key, seed, PhaseTimer())
        found.append(measure_batch(actors, policy, config, progress, step))
    return found


def measure_batch(
    actors: Actors, policy: Generator, config: TrainConfig, progress: Progress, step: Step
) -> Batch:
    """One batch: rollouts, verdicts, rescue, advantages; and beside what training does, the
    localiser's word on the right rows, and the task's check of all steps."""
    assert isinstance(config.method, Scope)
    groups = collect_rollouts(actors, policy, config, progress, step)
    scene = scene_of(actors, policy, config, step)
    rescued = rescue(groups, scene, config.method, keep_gallery=False)
    final = rescued.groups
    spec, done = config.advantage, step.number / config.steps
    advantage, more = advantages(
        final, scene, config.credit, spec, max_new_tokens=config.rollout.new_tokens, done=done
    )
    metrics = groups.metrics | rescued.metrics | more
    metrics["advantage/zero_group_share_after"] = no_signal(advantage, final)
    metrics |= step.timer.pop()
    # With prefixes to be spared the localiser is asked of all failures.
    located, may_B = rescued.located, correctable(groups, config.method.select)
    failures = first_errors(located, actors.task.domain).take(may_B[located.rows.rows_R])
    return Batch(
        group=groups.group,
        right_B=groups.right_B,
        failed_B=groups.failed_B,
        failures=failures,
        right=right_rows(groups, scene, config.localiser.kind),
        metrics=metrics,
    )


def right_rows(groups: Groups, scene: Scene, localiser: str) -> FirstErrors | None:
    """What the localiser says of the right rows. Not asked where it is the step check itself, or
    pays for its word with rollouts (`monte_carlo`)."""
    if localiser in ("oracle", "monte_carlo"):
        return None
    return first_errors(locate(groups, groups.right_B, scene), scene.domain)


def first_errors(located: Located, domain: Domain) -> FirstErrors:
    """The first errors of located rows, and those by the task's own check."""
    rows = located.rows
    return FirstErrors(
        steps_R=rows.count_R,
        found_R=np.where(located.has_error_R, located.error_R, rows.count_R),
        true_R=check(rows, domain),
        scored_R=located.valid_RJ.any(axis=1).reshape(len(rows.steps)),
        ended_R=to_host(rows.rollout.finished_B)[rows.rows_R],
    )


def check(rows: StepRows, domain: Domain) -> np.ndarray:
    """int[R]: the first wrong step of each row by `domain.check_steps`; the count of its steps
    where none is, UNCHECKED where the domain cannot say."""

    def first_wrong(problems: Sequence[Problem], steps: Sequence[list[str]]) -> list[int]:
        found = []
        for problem, row in zip(problems, steps, strict=True):
            labels = domain.check_steps(problem, row)
            found.append(UNCHECKED if labels is None else [*labels, False].index(False))
        return found

    if not domain.checks_steps:
        return np.full(len(rows.steps), UNCHECKED)
    return np.array(by_share(first_wrong, rows.problems_R, rows.steps), int)
