"""The rows of one training step: problems drawn, rollouts written and judged, demonstrations."""

import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import learning, rollout, tasks, teachers
from scope_jax.configuration import Luffy, Scope, TrainConfig
from scope_jax.correction import Groups, Scene
from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import put_rows, to_host
from scope_jax.devices.programs import program
from scope_jax.report import SampleGroup, group_metrics
from scope_jax.rewards import Judged, Rows, by_reason
from scope_jax.run import PhaseTimer
from scope_jax.text import encode_in_place
from scope_jax.training.actors import Actors
from scope_jax.training.figures import StepFigures
from scope_jax.training.samples import Samples
from scope_jax.types import Rollout

_take_rows, _place_rows = program(rollout.take_rows), program(rollout.place_rows)


@dataclasses.dataclass
class Progress:
    """Where a run stands, beside what is learned."""

    position: int = 0  # problems consumed, those that were dropped included
    dropped: int = 0  # of these: prompts that were too long
    # Prompts whose group failed altogether, until a supervised step on them (ReLIFT).
    waiting: list[tasks.Problem] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        waiting = [dataclasses.asdict(problem) for problem in self.waiting]
        return {"position": self.position, "dropped": self.dropped, "waiting": waiting}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `to_json` made."""
        self.position, self.dropped = saved["position"], saved["dropped"]
        self.waiting = [tasks.Problem(**problem) for problem in saved.get("waiting", ())]


@dataclasses.dataclass
class Written:
    """What the policy wrote by itself in a step, judged: every batch of it, whole groups."""

    judged: list[Judged] = dataclasses.field(default_factory=list)  # per batch
    ids: list[list[int]] = dataclasses.field(default_factory=list)  # per row, as all below
    texts: list[str] = dataclasses.field(default_factory=list)
    problems: list[tasks.Problem] = dataclasses.field(default_factory=list)
    finished: list[bool] = dataclasses.field(default_factory=list)

    def add(
        self,
        judged: Judged,
        ids: list[list[int]],
        texts: list[str],
        problems: list[tasks.Problem],
        finished: np.ndarray,
    ) -> None:
        """One batch more."""
        self.judged.append(judged)
        self.ids += ids
        self.texts += texts
        self.problems += problems
        self.finished += finished.tolist()

    def metrics(self, group: int, actors: Actors) -> dict[str, float]:
        """Figures of all batches together, in groups of `group` rows."""
        every, domain = Judged.joined(self.judged), actors.task.domain
        metrics = rollout_metrics(
            np.array(self.finished), every, self.ids, self.texts, self.problems, group, domain
        )
        if not actors.reward.spec.is_default:
            metrics |= every.metrics()
        metrics["rollout/batches"] = float(len(self.judged))
        metrics["cost/rollout_tokens"] = float(sum(len(x) for x in self.ids))
        return metrics


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """What every stage of a step works with."""

    number: int
    key: jax.Array  # of random draws on the devices
    seed: int  # of random draws on the host
    timer: PhaseTimer
    samples: Samples = dataclasses.field(default_factory=Samples)
    figures: StepFigures = dataclasses.field(default_factory=StepFigures)
    written: Written = dataclasses.field(default_factory=Written)


def scene_of(actors: Actors, policy: rollout.Generator, config: TrainConfig, step: Step) -> Scene:
    """What the correction and the credit of a step are played in."""
    sampling = config.rollout.sampling(actors.config.end_ids)
    return Scene(
        actors.task.domain,
        rollout.Policy(policy, actors.tokenizer, sampling),
        step.key,
        teacher=actors.teacher,
        localiser=actors.localiser,
        seed=step.seed,
        timer=step.timer,
        reward=actors.reward,
        self_tries=config.teacher.self_tries or 0,
    )


def draw(
    actors: Actors, config: TrainConfig, progress: Progress, count: int
) -> tuple[list[tasks.Problem], list[list[int]]]:
    """(problems, their prompt ids): the next `count` problems whose prompts fit; moves `progress`.

    The order is a pure function of seed and position. Raises ValueError where no prompt fits.
    """
    source, limit = actors.task.train, config.rollout.prompt_tokens

    def encode(drawn: Sequence[tasks.Problem]) -> list[list[int] | None]:
        return encoded_or_none(actors, config, drawn)

    problems: list[tasks.Problem] = []
    ids: list[list[int]] = []
    dropped = 0
    while len(problems) < count:
        need = count - len(problems)
        drawn = source.draw(config.seed, progress.position, need)
        progress.position += need
        encoded = by_share(encode, drawn)
        problems += [p for p, row in zip(drawn, encoded, strict=True) if row is not None]
        ids += [row for row in encoded if row is not None]
        dropped += sum(row is None for row in encoded)
        if dropped > 10 * count + len(source):
            raise ValueError(
                f"{source.name}: no prompt fits into rollout.prompt_tokens = {limit}; raise it"
            )
    progress.dropped += dropped
    return problems, ids


def encoded_or_none(
    actors: Actors, config: TrainConfig, problems: Sequence[tasks.Problem]
) -> list[list[int] | None]:
    """Prompt ids of each problem as the policy is shown it; None where they are too long."""
    domain = actors.task.domain
    return encode_in_place(
        actors.tokenizer,
        [domain.policy_prompt(problem) for problem in problems],
        max_length=config.rollout.prompt_tokens,
        chat=config.rollout.chat,
        system=domain.system,
    )


def collect_rollouts(
    actors: Actors,
    policy: rollout.Generator,
    config: TrainConfig,
    progress: Progress,
    step: Step,
) -> Groups:
    """One step's rollouts with their rewards and verdicts (`scope_jax.rewards`): an unfinished row
    is wrong, a row that could not be judged has reward NaN.

    With `method.resample`, up to that many further batches of prompts are rolled out until
    `rollout.prompts` groups with two different rewards are found (DAPO, arXiv 2503.14476, section
    3.2); groups of one reward fill up what is missing then. (Of SCOPE this is one batch: whom it
    can rescue is not set aside before, see `training/resample.py`.) The metrics speak of all
    rollouts, those that were left out included.
    """
    P, M = config.rollout.prompts, rows_of_prompt(config)
    more = 0 if isinstance(config.method, Scope) else config.resample
    parts: list[Groups] = []
    for attempt in range(1 + more):
        drawn, ids = draw(actors, config, progress, P)
        first_row = attempt * P * M
        batch = rollout.from_prompts(ids, M, config.rollout.length, first_row=first_row)
        rows = [problem for problem in drawn for _ in range(M)]
        parts.append(roll_out(actors, policy, config, batch, rows, step))
        reward = np.concatenate([part.reward_B for part in parts])
        informative = np.flatnonzero(~learning.zero_groups(reward, M))
        if len(informative) >= P:
            break
    metrics = step.written.metrics(M, actors)
    if len(parts) == 1:
        return dataclasses.replace(parts[0], metrics=metrics)
    index = _kept_rows(informative, P, len(parts) * P, M)
    right = np.concatenate([part.right_B for part in parts])[index]
    problems = [problem for part in parts for problem in part.problems]
    reward, own_B = reward[index], np.ones(len(index), bool)
    kept, problems = rows_of([part.rollout for part in parts], index), [problems[b] for b in index]
    return Groups(kept, M, problems, reward, right, ~np.isnan(reward), own_B, metrics)


def rows_of_prompt(config: TrainConfig) -> int:
    """How many rows the policy writes for each prompt."""
    shown = config.method.per_group if isinstance(config.method, Luffy) else 0
    return config.rollout.group - shown


def roll_out(
    actors: Actors,
    policy: rollout.Generator,
    config: TrainConfig,
    batch: Rollout,
    problems: list[tasks.Problem],
    step: Step,
) -> Groups:
    """The prompts of `batch` (one of `problems` for each row) continued by the policy and judged.
    Rows that come finished only fill the batch up: nothing is written to them, their reward is NaN.
    What was written is added to `step.written`; the groups have no metrics."""
    M, open_B = rows_of_prompt(config), ~to_host(batch.finished_B)
    sampling = rollout_sampling(actors, config)
    with step.timer("rollout"):
        start = time.perf_counter()
        batch = policy.extend(batch, step.key, sampling, shared_prefix=M)
        jax.block_until_ready(batch)
        seconds = time.perf_counter() - start
        step.figures.rolled_out(policy, sampling, batch, M, seconds)
        own = rollout.completion_ids(batch)
    with step.timer("verify"):
        rows = np.flatnonzero(open_B)
        ids, asked = [own[b] for b in rows], [problems[b] for b in rows]
        words, ended = rollout.texts(ids, actors.tokenizer), to_host(batch.finished_B)[rows]
        judged = actors.reward.judge(Rows(actors.task.domain, asked, words, ids, ended))
    step.written.add(judged, ids, words, asked, ended)
    reward, right = np.full(len(open_B), np.nan, np.float32), np.zeros(len(open_B), bool)
    reward[rows], right[rows] = judged.reward_B, judged.right_B
    everyone = np.ones(len(open_B), bool)
    return Groups(batch, M, problems, reward, right, ~np.isnan(reward), everyone, {})


def rollout_sampling(actors: Actors, config: TrainConfig) -> rollout.SampleSpec:
    """How the policy answers a prompt."""
    return dataclasses.replace(
        config.rollout.sampling(actors.config.end_ids),
        seats=config.rollout.seats,
        prefix_tokens=config.rollout.prompt_tokens,
    )


def rows_of(parts: Sequence[Rollout], index: np.ndarray) -> Rollout:
    """A batch of B rows out of several of B rows: those of these numbers (int[B], counted through
    all parts), under the ids that they have. One program, however many parts there are."""
    B = len(index)
    number_B = np.arange(B)
    batch, ids = parts[0], to_host([part.row_id_B for part in parts])
    for number, part in enumerate(parts):
        here = index // B == number
        # Row r of the part goes to the place target[r], if any asks for it.
        target, used = np.zeros(B, np.int32), np.zeros(B, bool)
        target[index[here] % B], used[index[here] % B] = number_B[here], True
        batch = _place_rows(batch, jnp.asarray(target), part, jnp.asarray(used))
    return batch.replace(row_id_B=put_rows(np.concatenate(ids)[index]))


def _kept_rows(informative: np.ndarray, P: int, groups: int, M: int) -> np.ndarray:
    """The rows of P of all groups: those with two rewards first, the last of the others."""
    others = [g for g in range(groups) if g not in set(informative.tolist())]
    filler = others[len(others) - max(P - len(informative), 0) :]
    chosen = np.array(sorted([*informative[:P], *filler]))
    return (chosen[:, None] * M + np.arange(M)).reshape(-1)


def collect_demonstrations(
    actors: Actors,
    config: TrainConfig,
    problems: Sequence[tasks.Problem],
    step: Step,
    first_row: int = 0,
) -> Groups:
    """The teacher's demonstrations, one row for each problem, with their verdicts. Rows without a
    demonstration, and with `demonstrations.verified` those that are not accepted, are not included
    and hold the prompt alone."""
    spec, domain = config.demonstrations, actors.task.domain
    assert actors.teacher is not None
    with step.timer("demonstrate"):
        ids = [row for row in encoded_or_none(actors, config, problems) if row is not None]
        if len(ids) < len(problems):  # of prompts that waited while the setting was another one
            raise ValueError(
                f"{len(problems) - len(ids)} of the prompts that wait for a demonstration do not"
                f" fit into rollout.prompt_tokens = {config.rollout.prompt_tokens}; they did when"
                " the run collected them: set it back"
            )
        rows = rollout.from_prompts(ids, 1, config.rollout.length, first_row=first_row)
        job = demonstration_job(actors, config, problems, rows, step)
        demonstrated = actors.teacher.demonstrate(job)
        jax.block_until_ready(demonstrated.rollout)
    with step.timer("verify"):
        given = np.array([reason is None for reason in demonstrated.failed])
        written = rollout.completion_ids(demonstrated.rollout)
        texts = rollout.texts(written, actors.tokenizer)
        judged = actors.reward.judge(Rows(domain, problems, texts, written, given))
    reward, right_B = np.where(given, judged.reward_B, np.float32(np.nan)), judged.right_B
    include = given & (right_B if spec.verified else ~np.isnan(reward))
    right = float(np.mean(right_B[given])) if given.any() else 0.0
    metrics = demonstrated.metrics | {
        "demonstrations/right_share": right,
        "demonstrations/used": float(include.sum()),
        **by_reason("demonstrations/unscored", judged.reasons),
    }
    rows = teachers.without(demonstrated.rollout, jnp.asarray(~include))
    own_B = np.zeros(len(reward), bool)
    return Groups(rows, 1, list(problems), reward, right_B, include, own_B, metrics)


def summed_demonstrations(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of several lots of demonstrations as those of one: counts and costs are added up,
    the share of right ones is that of all that were given."""
    total: dict[str, float] = collections.defaultdict(float)
    for metrics in parts:
        for name, value in metrics.items():
            total[name] += value
    share = "demonstrations/right_share"
    given = [m["demonstrations/asked"] - m["demonstrations/failed"] for m in parts]
    if share in total:
        right = sum(m[share] * count for m, count in zip(parts, given, strict=True))
        total[share] = right / max(sum(given), 1.0)
    return dict(total)


def demonstration_job(
    actors: Actors,
    config: TrainConfig,
    problems: Sequence[tasks.Problem],
    rows: Rollout,
    step: Step,
) -> teachers.DemonstrationJob:
    """What a teacher is asked for demonstrations of `problems`; `rows` hold their prompts."""
    sampling = config.rollout.sampling(actors.config.end_ids)
    return teachers.DemonstrationJob(
        problems=problems,
        rows=rows,
        tokenizer=actors.tokenizer,
        sampling=dataclasses.replace(sampling, prefix_tokens=config.rollout.prompt_tokens),
        domain=actors.task.domain,
        temperature=config.demonstrations.temperature,
        key=step.key,
        seed=step.seed,
        vocab_size=actors.config.vocab_size,
    )


def with_demonstrations(own: Groups, shown: Groups) -> Groups:
    """Groups of rollouts with the demonstrations of the same prompts (d for each, consecutive) at
    the end of each group."""
    P, M = len(own.reward_B) // own.group, own.group
    d = len(shown.reward_B) // P
    index = np.concatenate(
        [np.arange(P * M).reshape(P, M), P * M + np.arange(P * d).reshape(P, d)], axis=1
    ).reshape(-1)

    def both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b])[index]

    rows = _take_rows(
        jax.tree.map(lambda a, b: jnp.concatenate([a, b]), own.rollout, shown.rollout),
        jnp.asarray(index),
        jnp.ones(len(index), bool),
    )
    problems = [*own.problems, *shown.problems]
    return Groups(
        rows,
        M + d,
        [problems[b] for b in index],
        both(own.reward_B, shown.reward_B),
        both(own.right_B, shown.right_B),
        both(own.include_B, shown.include_B),
        both(own.own_B, shown.own_B),
        own.metrics | shown.metrics,
    )


def rollout_metrics(
    finished: np.ndarray,
    rows: Judged,
    written: list[list[int]],
    text: list[str],
    problems: list[tasks.Problem],
    group: int,
    domain: tasks.Domain,
) -> dict[str, float]:
    """What the policy wrote by itself, before any correction: reward, lengths, diversity, groups
    without an advantage."""
    reward, right = rows.reward_B, rows.right_B.tolist()
    judged = ~np.isnan(reward)
    length = np.array([len(x) for x in written])
    answers, paths = tasks.answers_and_paths(domain, problems, text, right)
    groups = []
    for start in range(0, len(reward), group):
        part = slice(start, start + group)
        groups.append(
            SampleGroup(
                tokens=written[part],
                answers=answers[part],
                correct=right[part],
                paths=paths[part],
                texts=text[part],
            )
        )
    return {
        "reward/mean": float(np.mean(reward[judged])) if judged.any() else 0.0,
        "reward/unscored": float(np.sum(~judged)),
        "advantage/zero_group_share": float(np.mean(learning.zero_groups(reward, group))),
        "completion/length_mean": float(np.mean(length)),
        "completion/truncated_share": float(np.mean(~finished)),
        **group_metrics(groups, extract=domain.equations),
    }
