"""Dynamic sampling after the correction: groups that tell nothing even now are replaced.

    batch --rescue--> groups with two rewards stay
                      the others --> as many fresh prompts --rollouts--> --rescue--> in their places
                                     ... `method.resample` rounds at most

A group tells nothing where all rewards that count are equal, so that no row has an advantage. Set
aside before the rescue (as `collect_rollouts` does for other methods), groups that failed
altogether would go, which are those that a rescue is for. Every round has the shapes of the first
batch: the places of groups that stay are filled with finished rows, to which nothing is written.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from scope_jax import learning, rollout, streams
from scope_jax.configuration import Scope, TrainConfig
from scope_jax.correction import Groups, Rescue, rescue
from scope_jax.correction.finish import select_rows
from scope_jax.devices.mesh import put_rows, to_host
from scope_jax.training.actors import Actors
from scope_jax.training.rollouts import Progress, Step, draw, roll_out, scene_of
from scope_jax.types import Owner, Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """A batch of fresh prompts before and after its rescue."""

    fresh_P: np.ndarray  # bool: places with a fresh prompt; the others only fill the batch up
    before: Groups
    rescued: Rescue

    @property
    def silent_P(self) -> np.ndarray:
        """bool[P]: fresh groups that tell nothing after the rescue."""
        return self.fresh_P & silent_groups(self.rescued.groups)


def replace_silent(
    actors: Actors,
    policy: rollout.Generator,
    config: TrainConfig,
    progress: Progress,
    step: Step,
    groups: Groups,
    rescued: Rescue,
    safe_point: Callable[[], None],
) -> Rescue:
    """`rescued`, which came of `groups`, with the groups that tell nothing replaced by those of
    other prompts, `method.resample` times at most. What is silent then stays, and is counted. The
    metrics, costs included, speak of all rounds. At a `safe_point()` a run that was asked to stop
    gives the step up."""
    method = config.method
    assert isinstance(method, Scope)
    if not method.resample:
        return rescued
    scene = scene_of(actors, policy, config, step)
    final, gallery = rescued.groups, list(rescued.gallery)
    everyone = np.ones(len(groups.reward_B) // groups.group, bool)
    rounds = [Round(everyone, groups, rescued)]
    silent_P = rounds[0].silent_P
    while silent_P.any() and len(rounds) <= method.resample:
        number = len(rounds)
        before = _fresh_groups(actors, policy, config, progress, step, silent_P, number)
        safe_point()
        seed = streams.round_seed(step.seed, number)
        after = rescue(
            before,
            dataclasses.replace(scene, seed=seed),
            method,
            keep_gallery=step.samples.wants_rescues,
        )
        rounds.append(Round(silent_P, before, after))
        final, gallery = placed(final, after.groups, silent_P), gallery + after.gallery
        silent_P = rounds[-1].silent_P
    metrics = joined_metrics(rounds, final.rollout) | step.written.metrics(groups.group, actors)
    return Rescue(final, metrics, gallery, rescued.located)


def silent_groups(groups: Groups) -> np.ndarray:
    """bool[P]: groups in which all rewards that count are equal."""
    counted_B = np.where(groups.include_B, groups.reward_B, np.nan)
    return learning.zero_groups(counted_B, groups.group)


def placed(groups: Groups, others: Groups, place_P: np.ndarray) -> Groups:
    """`groups` with those of `others` in the places where `place_P` (bool[P])."""
    take_B = np.repeat(place_P, groups.group)
    pairs = zip(take_B, others.problems, groups.problems, strict=True)
    credit_from_B = None
    if groups.credit_from_B is not None or others.credit_from_B is not None:
        everything = np.zeros(len(take_B), np.int64)
        new, old = (
            everything if of.credit_from_B is None else of.credit_from_B for of in (others, groups)
        )
        credit_from_B = np.where(take_B, new, old)
    return dataclasses.replace(
        groups,
        rollout=select_rows(jnp.asarray(take_B), others.rollout, groups.rollout),
        problems=[new if take else old for take, new, old in pairs],
        reward_B=np.where(take_B, others.reward_B, groups.reward_B),
        right_B=np.where(take_B, others.right_B, groups.right_B),
        include_B=np.where(take_B, others.include_B, groups.include_B),
        own_B=np.where(take_B, others.own_B, groups.own_B),
        credit_from_B=credit_from_B,
    )


def joined_metrics(rounds: Sequence[Round], final: Rollout) -> dict[str, float]:
    """The metrics of all rescues as those of one: counts and costs are added up, shares formed
    anew. Beside them how many prompts were rolled out, and how many of their groups told nothing
    before and after the rescue, and are left in the end (those of the last round)."""
    total: dict[str, float] = collections.defaultdict(float)
    for done in rounds:
        for name, value in done.rescued.metrics.items():
            total[name] += value
    failed = sum(float(np.sum(done.before.failed_B)) for done in rounds)
    asked = [len(done.rescued.located.rows.rows_R) for done in rounds]
    errors = [float(np.sum(done.rescued.located.has_error_R)) for done in rounds]
    found = sum(errors)
    prompts = sum(int(np.sum(done.fresh_P)) for done in rounds)
    written = prompts * rounds[0].before.group
    owner_BT = to_host(final.owner_BT)
    by_teacher = float(np.sum(owner_BT == Owner.TEACHER))
    shares = {
        "scope/failed_share": failed / written,
        "scope/located_share": found / max(sum(asked), 1),
        "scope/accepted_share": total["scope/accepted"] / max(total["scope/selected"], 1),
        "scope/teacher_token_share": by_teacher / max(int(np.sum(owner_BT >= Owner.POLICY)), 1),
    }
    # With the policy's own repairs first, rows without a teacher's step are accepted too.
    taught = "scope/teacher_accepted" if "scope/teacher_accepted" in total else "scope/accepted"
    weights = {
        "scope/first_error_position": errors,
        "scope/step_logp_taken": _counts(rounds, taught),
        "scope/step_logp_accepted": _counts(rounds, "scope/candidates_accepted"),
    }
    for name in weights.keys() & total.keys():
        means = [done.rescued.metrics.get(name, 0.0) for done in rounds]
        total[name] = float(np.average(means, weights=weights[name]))
    silent = [done.fresh_P & silent_groups(done.before) for done in rounds]
    return dict(total) | {
        **shares,
        "resample/prompts": float(prompts),
        "resample/zero_groups_before_rescue": float(np.sum(silent)),
        "resample/zero_groups_after_rescue": float(sum(np.sum(r.silent_P) for r in rounds)),
        "resample/zero_groups_left": float(np.sum(rounds[-1].silent_P)),
    }


def _counts(rounds: Sequence[Round], name: str) -> list[float]:
    return [done.rescued.metrics.get(name, 0.0) for done in rounds]


def _fresh_groups(
    actors: Actors,
    policy: rollout.Generator,
    config: TrainConfig,
    progress: Progress,
    step: Step,
    fresh_P: np.ndarray,
    number: int,
) -> Groups:
    """Judged rollouts of the next prompts, in the places where `fresh_P`; copies of a prompt, with
    finished rows, in the others. Row ids are those of batch `number`."""
    P, M = len(fresh_P), config.rollout.group
    drawn, ids = draw(actors, config, progress, int(np.sum(fresh_P)))
    turn_P = np.maximum(np.cumsum(fresh_P) - 1, 0)
    prompts = [ids[turn] for turn in turn_P]
    batch = rollout.from_prompts(prompts, M, config.rollout.length, first_row=number * P * M)
    batch = batch.replace(finished_B=put_rows(np.repeat(~fresh_P, M)))
    problems = [drawn[turn] for turn in turn_P for _ in range(M)]
    return roll_out(actors, policy, config, batch, problems, step)


def compile_ahead(rows: Rollout) -> None:
    """Run the program that puts groups into others' places, on final rows like these."""
    B = len(rows.length_B)
    select_rows(jnp.asarray(np.zeros(B, bool)), rows, rows)
