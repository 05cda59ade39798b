"""The rows of one training step: problems drawn, rollouts written, verdicts, and the teacher's
demonstrations among them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scope_jax import learning, rollout, tasks, teachers
from scope_jax.config import demonstration_spec
from scope_jax.data import Problems
from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import to_host
from scope_jax.report import SampleGroup, group_metrics
from scope_jax.text import encode_prompts
from scope_jax.training.actors import Actors
from scope_jax.types import Rollout

_take_rows = jax.jit(rollout.take_rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Judged rows in whole groups of `group` consecutive ones.

    reward_B: 1 right, 0 wrong, NaN where there is no verdict. include_B: rows that count in the
    group mean and in the update. own_B: rows that the policy wrote (the others are
    demonstrations). problems: one per row.
    """

    rollout: Rollout
    group: int
    problems: list[tasks.Problem]
    reward_B: np.ndarray
    include_B: np.ndarray
    own_B: np.ndarray
    metrics: dict[str, float]


@dataclasses.dataclass
class Cursor:
    """Where the run stands in its problems: `position` counts those consumed, `dropped` ones (too
    long) included."""

    position: int = 0
    dropped: int = 0


def next_problems(
    source: Problems,
    tokenizer: Any,
    *,
    seed: int,
    position: int,
    count: int,
    max_tokens: int,
    chat: bool,
    domain: tasks.Domain | None = None,
) -> tuple[list[tasks.Problem], list[list[int]], int, int]:
    """(problems, their prompt ids, new position, dropped): the next `count` problems whose prompts
    fit. `position` counts the problems consumed so far, dropped ones included; the order is a pure
    function of seed and position. `domain` says how a problem is shown."""
    shown = (lambda problem: problem.prompt) if domain is None else domain.policy_prompt
    system = None if domain is None else domain.system

    def encode(own: Sequence[tasks.Problem]) -> list[list[int] | None]:
        fitting, gone = encode_prompts(
            tokenizer, [shown(p) for p in own], max_length=max_tokens, chat=chat, system=system
        )
        left = iter(fitting)
        return [None if n in set(gone) else next(left) for n in range(len(own))]

    problems: list[tasks.Problem] = []
    ids: list[list[int]] = []
    dropped = 0
    while len(problems) < count:
        need = count - len(problems)
        drawn = source.draw(seed, position, need)
        position += need
        encoded = by_share(encode, drawn)
        problems += [p for p, row in zip(drawn, encoded, strict=True) if row is not None]
        ids += [row for row in encoded if row is not None]
        dropped += sum(row is None for row in encoded)
        if dropped > 10 * count + len(source):
            raise ValueError(
                f"{source.name}: no prompt fits into rollout.prompt_tokens = {max_tokens}; raise it"
            )
    return problems, ids, position, dropped


def draw(
    actors: Actors, config: ConfigDict, cursor: Cursor, count: int
) -> tuple[list[tasks.Problem], list[list[int]]]:
    """`next_problems` of the run; moves the cursor."""
    problems, ids, cursor.position, gone = next_problems(
        actors.task.train,
        actors.tokenizer,
        seed=config.seed,
        position=cursor.position,
        count=count,
        max_tokens=config.rollout.prompt_tokens,
        chat=config.rollout.chat,
        domain=actors.task.domain,
    )
    cursor.dropped += gone
    return problems, ids


def collect_rollouts(
    actors: Actors,
    policy: rollout.Generator,
    config: ConfigDict,
    sampling: rollout.SampleSpec,
    key: jax.Array,
    cursor: Cursor,
    timer: Callable[[str], Any],
) -> Groups:
    """One step's rollouts with their verdicts: an unfinished row is wrong, a row that could not be
    judged has reward NaN.

    With `rollout.resample` further batches of prompts are rolled out, so many at the most, until
    `rollout.prompts` groups with two different rewards are found (DAPO, arXiv 2503.14476, section
    3.2); groups of one reward fill up what is missing then. The metrics speak of all rollouts,
    those that were left out included.
    """
    P, M = config.rollout.prompts, config.rollout.group - config.demonstrations.per_group
    parts: list[Rollout] = []
    problems: list[tasks.Problem] = []
    written: list[list[int]] = []
    text: list[str] = []
    rewards: list[np.ndarray] = []
    finished: list[np.ndarray] = []
    for attempt in range(1 + config.rollout.resample):
        drawn, ids = draw(actors, config, cursor, P)
        with timer("rollout"):
            batch = rollout.from_prompts(
                ids,
                M,
                config.rollout.prompt_tokens + config.rollout.new_tokens,
                first_row=attempt * P * M,
            )
            batch = policy.extend(
                batch,
                key,
                dataclasses.replace(sampling, seats=config.rollout.slots or None),
                shared_prefix=M,
            )
            own = rollout.completion_ids(batch)
        with timer("verify"):
            words = rollout.texts(own, actors.tokenizer)
            rows = [p for p in drawn for _ in range(M)]
            ended = to_host(batch.finished_B)
            rewards.append(judge(actors.task.domain, rows, words, ended))
            finished.append(ended)
        parts.append(batch)
        problems += rows
        written += own
        text += words
        reward = np.concatenate(rewards)
        telling = np.flatnonzero(~learning.zero_groups(reward, M))
        if len(telling) >= P:
            break
    metrics = rollout_metrics(
        np.concatenate(finished), reward, written, text, problems, M, actors.task.domain
    )
    metrics |= {
        "rollout/batches": float(len(parts)),
        "cost/rollout_tokens": float(sum(len(x) for x in written)),
    }
    batch = parts[0]
    if len(parts) > 1:
        others = [g for g in range(len(parts) * P) if g not in set(telling.tolist())]
        chosen = np.array(sorted([*telling[:P], *others[len(others) - max(P - len(telling), 0) :]]))
        index = (chosen[:, None] * M + np.arange(M)).reshape(-1)
        batch = _take_rows(
            jax.tree.map(lambda *x: jnp.concatenate(x), *parts),
            jnp.asarray(index),
            jnp.ones(len(index), bool),
        )
        problems, reward = [problems[b] for b in index], reward[index]
    return Groups(
        batch, M, problems, reward, ~np.isnan(reward), np.ones(len(reward), bool), metrics
    )


def collect_demonstrations(
    actors: Actors,
    config: ConfigDict,
    sampling: rollout.SampleSpec,
    problems: Sequence[tasks.Problem],
    key: jax.Array,
    seed: int,
    timer: Callable[[str], Any],
    first_row: int = 0,
) -> Groups:
    """The teacher's demonstrations, one row for each problem, with their verdicts. Rows without a
    demonstration, and with `demonstrations.verified` those that the verifier does not accept, are
    not included and hold the prompt alone."""
    spec = demonstration_spec(config)
    assert actors.teacher is not None
    with timer("demonstrate"):
        shown = [actors.task.domain.policy_prompt(problem) for problem in problems]
        ids, dropped = encode_prompts(
            actors.tokenizer,
            shown,
            max_length=config.rollout.prompt_tokens,
            chat=config.rollout.chat,
            system=actors.task.domain.system,
        )
        assert not dropped  # the same prompts were rolled out
        found = teachers.demonstrate(
            actors.teacher,
            problems,
            ids,
            max_length=config.rollout.prompt_tokens + config.rollout.new_tokens,
            first_row=first_row,
            sample_spec=sampling,
            temperature=spec.temperature,
            key=key,
            seed=seed,
            domain=actors.task.domain,
            tokenizer=actors.tokenizer,
            prompt_tokens=config.teacher.prompt_tokens,
        )
    with timer("verify"):
        there = np.array([reason is None for reason in found.failed])
        reward = judge(
            actors.task.domain,
            problems,
            rollout.completion_texts(found.rollout, actors.tokenizer),
            there,
        )
    reward[~there] = np.nan
    include = there & ((reward == 1) if spec.verified else ~np.isnan(reward))
    metrics = found.metrics | {
        "demonstrations/right_share": float(np.mean(reward[there] == 1)) if there.any() else 0.0,
        "demonstrations/used": float(include.sum()),
    }
    own = np.zeros(len(reward), bool)
    rows = teachers.without(found.rollout, jnp.asarray(~include))
    return Groups(rows, 1, list(problems), reward, include, own, metrics)


def with_demonstrations(own: Groups, shown: Groups) -> Groups:
    """Groups of rollouts with the demonstrations of the same prompts (d for each, consecutive) at
    the end of each group."""
    P, M = len(own.reward_B) // own.group, own.group
    d = len(shown.reward_B) // P
    index = np.concatenate(
        [np.arange(P * M).reshape(P, M), P * M + np.arange(P * d).reshape(P, d)], axis=1
    ).reshape(-1)
    both = lambda a, b: np.concatenate([a, b])[index]
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
        both(own.include_B, shown.include_B),
        both(own.own_B, shown.own_B),
        own.metrics | shown.metrics,
    )


def judge(
    domain: tasks.Domain,
    problems: Sequence[tasks.Problem],
    texts: Sequence[str],
    finished_B: np.ndarray,
) -> np.ndarray:
    """float32[B]: 1 right, 0 wrong or unfinished, NaN where the verifier could not say; an
    infinite verdict says nothing either."""
    verdicts = tasks.verdicts(domain, problems, texts)
    reward = np.array(
        [np.nan if verdict is None else float(verdict) for verdict in verdicts], np.float32
    )
    reward[~np.isfinite(reward)] = np.nan
    reward[~finished_B] = 0.0
    return reward


def rollout_metrics(
    finished: np.ndarray,
    reward: np.ndarray,
    written: list[list[int]],
    text: list[str],
    problems: list[tasks.Problem],
    group: int,
    domain: tasks.Domain,
) -> dict[str, float]:
    """What the policy wrote by itself, before any correction: reward, lengths, diversity, groups
    without an advantage."""
    judged = ~np.isnan(reward)
    length = np.array([len(x) for x in written])
    answers, paths = tasks.answers_and_paths(domain, problems, text, (reward == 1).tolist())
    groups = []
    for start in range(0, len(reward), group):
        part = slice(start, start + group)
        groups.append(
            SampleGroup(
                tokens=written[part],
                answers=answers[part],
                correct=(reward[part] == 1).tolist(),
                paths=paths[part],
                texts=text[part],
            )
        )
    return {
        "reward/mean": float(np.mean(reward[judged])) if judged.any() else 0.0,
        "reward/unscored": float(np.sum(~judged)),
        "advantage/zero_group_share": float(learning.zero_group_share(reward, group)),
        "completion/length_mean": float(np.mean(length)),
        "completion/truncated_share": float(np.mean(~finished)),
        **group_metrics(groups, extract=domain.equations),
    }
