"""Rescue: the failed rollouts of a batch, located, selected, corrected by the teacher, continued,
verified, placed.

    failures --segment, score--> first error --select--> cut --teacher--> corrected step --policy--> tail
             --verify--> accepted --place--> final group

Every stage works on the failures only, packed into a few fixed batch sizes. A row at which the PRM
or the teacher fails stays the ordinary failed rollout it was, and is counted.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.correction.locate import LOCALISERS, Located, Search, locate
from scope_jax.correction.monte_carlo import locate_first_error
from scope_jax.correction.select import SelectSpec, select
from scope_jax.devices.mesh import to_host
from scope_jax.devices.shapes import row_count
from scope_jax.prm.model import ProcessRewardModel
from scope_jax.rollout import Generator, SampleSpec, completion_ids, completion_texts, texts
from scope_jax.rollout.rows import cut, place_rows, take_rows
from scope_jax.tasks import Domain, Problem, verdicts
from scope_jax.teachers.kinds import Ask, Corrected, Job, ModelTeacher, Teacher, failure_counts
from scope_jax.teachers.replies import gives_answer_away
from scope_jax.text import split_steps
from scope_jax.types import Owner, Rollout

_cut_rows, _take_rows, _place_rows = jax.jit(cut), jax.jit(take_rows), jax.jit(place_rows)
TAILS = ("policy", "teacher", "none")
ACCEPT = ("verified", "unverified")
PLACE = ("replace_parent", "replace_random_failure", "append")
# Streams of random numbers: 0 is the rollout, 1 the teacher's step, 2 + i the i-th try of a tail.
TAIL_STREAM = 2


@dataclasses.dataclass(frozen=True)
class CorrectionSpec:
    """Switches of the correction; see docs/method.md. `threshold`: a step whose score is below it
    is an error. `continuations`: of the localiser `monte_carlo`, per prefix that it tries.
    `noise`: see `locate`. `step_tokens`: the longest step a teacher may write.
    `teacher_temperature`: 0 is greedy. `rows`: how many rows a model goes on with at a time, at
    the most (0: all); what is written does not depend on it."""

    localiser: str = "prm"
    threshold: float = 0.5
    continuations: int = 4
    noise: float = 0.0
    select: SelectSpec = dataclasses.field(default_factory=SelectSpec)
    step_tokens: int = 64
    teacher_temperature: float = 0.0
    tail: str = "policy"
    tails: int = 1
    accept: str = "verified"
    place: str = "replace_parent"
    rows: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("localiser", self.localiser, LOCALISERS),
            ("tail", self.tail, TAILS),
            ("accept", self.accept, ACCEPT),
            ("place", self.place, PLACE),
        ):
            if value not in known:
                raise ValueError(
                    f"correction.{name} = {value!r} is unknown; one of {', '.join(known)}"
                )
        if not 0 < self.threshold < 1 or min(self.step_tokens, self.tails, self.continuations) < 1:
            raise ValueError(
                "correction: threshold must lie in (0, 1), step_tokens, tails and continuations be"
                " at least 1"
            )
        if self.rows < 0:
            raise ValueError(f"correction.rows = {self.rows} must be at least 1, or 0 for all")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"correction.noise = {self.noise} must be a probability")
        if self.tail == "none" and self.accept == "verified":
            raise ValueError(
                "correction: tail 'none' leaves rows without an answer to verify; set accept to"
                " 'unverified'"
            )
        if self.tail != "none" and self.accept == "unverified":
            raise ValueError(
                "correction: accept 'unverified' is for tail 'none'; a row with a tail is verified"
            )


@dataclasses.dataclass
class Rescue:
    """The final groups of `group` consecutive rows each (more than before where repaired rows were
    appended; a place that was not taken holds the prompt alone). `include_B`: rows that count in
    the group mean (an unverified row does not). `gallery`: what happened to each attempted row,
    for the samples and the report."""

    rollout: Rollout
    group: int
    reward_B: np.ndarray
    include_B: np.ndarray
    metrics: dict[str, float]
    gallery: list[dict[str, Any]]


def rescue(
    rollout: Rollout,
    reward_B: np.ndarray,
    problems: Sequence[Problem],
    *,
    group: int,
    spec: CorrectionSpec,
    sample_spec: SampleSpec,
    key: jax.Array,
    domain: Domain,
    tokenizer: Any,
    policy: Generator,
    teacher: Teacher | Generator,
    prm: ProcessRewardModel | None,
    seed: int = 0,
    timer: Callable[[str], Any] = lambda phase: contextlib.nullcontext(),
    keep_gallery: bool = True,
) -> Rescue:
    """Correct failures of `rollout` (rows of a group consecutive; `problems` and `reward_B` one
    per row; reward NaN where the verifier could not judge).

    `sample_spec` is the policy's; tails use it too and never grow a row past prompt +
    `max_new_tokens`. `key` is the step's key, the one the rollout was made with. `seed` drives
    random selection, and teachers that do not draw by `key`. `teacher`: a `Generator` stands for a
    `ModelTeacher` that continues the rows. `timer("prm")`, `timer("correct")` and
    `timer("verify")` are entered around those phases. Without `keep_gallery` the gallery comes
    back empty.
    """
    if isinstance(teacher, Generator):
        teacher = ModelTeacher(teacher)
    failed_B = reward_B == 0
    metrics: dict[str, float] = {"scope/failed_share": float(np.mean(failed_B))}
    search: Search | None = None
    if spec.localiser == "monte_carlo":
        search = _continuation_search(
            rollout, problems, spec, sample_spec, key, domain, tokenizer, policy
        )
    with timer("prm"):
        located = locate(
            rollout,
            failed_B,
            problems,
            localiser=spec.localiser,
            threshold=spec.threshold,
            domain=domain,
            tokenizer=tokenizer,
            prm=prm,
            search=search,
            noise=spec.noise,
            seed=seed,
        )
    chosen_R, more = _choose(rollout, located, failed_B, group, spec, seed)
    metrics |= located.metrics | more
    attempted = located.rows_R[chosen_R]
    final, final_reward, final_group = rollout, reward_B.copy(), group
    if spec.place == "append":
        final, final_reward, final_group = _with_free_rows(
            rollout, reward_B, group, spec.select.most(group)
        )
    if len(attempted) == 0:
        return Rescue(
            final, final_group, final_reward, ~np.isnan(final_reward), _finish(metrics, final), []
        )

    with timer("correct"):
        size = row_count(len(attempted), reward_B.size // group * spec.select.most(group))
        index, valid = _pad(attempted, size)
        prompt_length, row_length, row_id = to_host(
            (rollout.prompt_length_B, rollout.length_B, rollout.row_id_B)
        )
        kept = np.ones(size, np.int32)
        asks = []
        for number, r in enumerate(chosen_R):
            b, error, steps = int(attempted[number]), int(located.error_R[r]), located.steps[r]
            kept[number] = prompt_length[b] + (located.ends[r][error - 1] if error else 0)
            last = error == len(steps) - 1
            asks.append(Ask(problems[b], tuple(steps[:error]), steps[error], last, int(row_id[b])))
        kept = np.where(valid, kept, row_length[index])
        rows = _cut_rows(
            _take_rows(rollout, jnp.asarray(index), jnp.asarray(valid)), jnp.asarray(kept)
        )
        limit = np.minimum(
            prompt_length[index] + sample_spec.max_new_tokens, rows.tokens_BT.shape[1]
        )
        job = Job(
            rows,
            asks,
            kept,
            limit,
            spec.step_tokens,
            spec.teacher_temperature,
            sample_spec.end_ids,
            key,
            seed,
            domain,
            tokenizer,
            policy,
            spec.rows,
        )
        written_steps = teacher.correct(job)
        corrected = written_steps.rollout
        usable, written, refused = _check_steps(written_steps, job, prompt_length[index])
    metrics |= refused
    targets = _targets(attempted, failed_B, group, spec, seed)

    mixed, accepted, tries, tail_tokens = corrected, np.zeros(size, bool), 0, 0
    attempted_problems = [problems[int(b)] for b in index]
    if spec.tail == "none":
        accepted = usable.copy()
    for attempt in range(0 if spec.tail == "none" else spec.tails):
        open_rows = usable & ~accepted
        if not open_rows.any():
            break
        tries += 1
        with timer("correct"):
            generator = policy if spec.tail == "policy" else teacher.generator
            if generator is None:
                raise ValueError(
                    "correction.tail 'teacher' needs a teacher that is a model on the mesh; use"
                    " tail 'policy'"
                )
            owner = Owner.POLICY if spec.tail == "policy" else Owner.TEACHER
            waiting = corrected.replace(finished_B=corrected.finished_B | ~jnp.asarray(open_rows))
            tail = generator.extend(
                waiting,
                key,
                sample_spec,
                owner=owner,
                stream=TAIL_STREAM + attempt,
                limit_B=jnp.asarray(limit),
                at_once=spec.rows,
            )
        tail_tokens += int(jnp.sum(tail.length_B - corrected.length_B))
        with timer("verify"):
            ended = to_host(tail.finished_B)
            judged_as = verdicts(domain, attempted_problems, completion_texts(tail, tokenizer))
            passed = np.array([v is True for v in judged_as]) & ended & open_rows
        # The last try stands in for rows that no try saved: the report shows what became of them.
        mixed = _select_rows(jnp.asarray(open_rows), tail, mixed)
        accepted |= passed

    final = _place_rows(final, jnp.asarray(_pad(targets, size)[0]), mixed, jnp.asarray(accepted))
    include_B = ~np.isnan(final_reward)
    taken = targets[accepted[: len(targets)]]
    if spec.tail == "none":
        include_B[taken] = False
    else:
        final_reward[taken], include_B[taken] = 1.0, True
    metrics |= {
        "cost/teacher_tokens": (
            float(jnp.sum(corrected.length_B - rows.length_B))
            + (tail_tokens if spec.tail == "teacher" else 0)
        ),
        "cost/tail_tokens": float(tail_tokens) if spec.tail == "policy" else 0.0,
    }
    metrics["scope/accepted"] = float(np.sum(accepted))
    metrics["scope/accepted_share"] = float(np.sum(accepted)) / len(attempted)
    metrics["scope/tail_tries"] = float(tries)
    gallery: list[dict[str, Any]] = []
    if keep_gallery:
        gallery = _gallery(
            located,
            chosen_R,
            problems,
            attempted,
            usable,
            accepted,
            written,
            mixed,
            kept,
            prompt_length[index],
            spec,
            domain,
            tokenizer,
        )
    return Rescue(final, final_group, final_reward, include_B, _finish(metrics, final), gallery)


def _continuation_search(
    rollout: Rollout,
    problems: Sequence[Problem],
    spec: CorrectionSpec,
    sample_spec: SampleSpec,
    key: jax.Array,
    domain: Domain,
    tokenizer: Any,
    policy: Generator,
) -> Search:
    def search(rows_R: np.ndarray, ends: Sequence[Sequence[int]]) -> tuple[np.ndarray, int]:
        found = locate_first_error(
            rollout,
            rows_R,
            ends,
            problems,
            continuations=spec.continuations,
            policy=policy,
            sample_spec=sample_spec,
            key=key,
            domain=domain,
            tokenizer=tokenizer,
        )
        return found.error_R, found.tokens

    return search


def _with_free_rows(
    rollout: Rollout, reward_B: np.ndarray, group: int, free: int
) -> tuple[Rollout, np.ndarray, int]:
    """(rows, rewards, group size) with `free` rows more at the end of each group: the prompt
    alone, reward NaN."""
    P = reward_B.size // group
    rows = np.arange(P * group).reshape(P, group)
    index = np.concatenate([rows, np.repeat(rows[:, :1], free, axis=1)], axis=1).reshape(-1)
    is_free = np.tile(np.arange(group + free) >= group, P)
    reward = np.where(is_free, np.nan, reward_B[index]).astype(reward_B.dtype)
    return _widen(rollout, jnp.asarray(index), jnp.asarray(is_free)), reward, group + free


@jax.jit
def _widen(rollout: Rollout, index: jax.Array, is_free: jax.Array) -> Rollout:
    rows = take_rows(rollout, index, ~is_free)
    rows = cut(rows, jnp.where(is_free, rows.prompt_length_B, rows.length_B))
    ids = jnp.where(
        is_free,
        rollout.row_id_B.shape[0] + jnp.arange(index.shape[0], dtype=jnp.int32),
        rows.row_id_B,
    )
    return rows.replace(finished_B=rows.finished_B | is_free, row_id_B=ids)


def _choose(
    rollout: Rollout,
    located: Located,
    failed_B: np.ndarray,
    group: int,
    spec: CorrectionSpec,
    seed: int,
) -> tuple[np.ndarray, dict[str, float]]:
    """(positions in `located` to attempt, counters)."""
    R = len(located.rows_R)
    finished_B = to_host(rollout.finished_B)
    found = located.found_R
    eligible = found & (located.error_R >= spec.select.good_steps) & finished_B[located.rows_R]
    eligible_B, quality_B = np.zeros(failed_B.size, bool), np.zeros(failed_B.size)
    eligible_B[located.rows_R], quality_B[located.rows_R] = eligible, located.quality_R
    chosen = select(eligible_B, quality_B, failed_B, group, spec.select, seed)
    position = {int(b): r for r, b in enumerate(located.rows_R)}
    counters = {
        "scope/located_share": float(np.mean(found)) if R else 0.0,
        "scope/cut_off": float(np.sum(~finished_B[located.rows_R])),
        "scope/no_good_step": float(np.sum(found & (located.error_R == 0))),
        "scope/eligible": float(np.sum(eligible)),
        "scope/selected": float(len(chosen)),
    }
    if found.any():
        share = [located.error_R[r] / len(located.steps[r]) for r in np.flatnonzero(found)]
        counters["scope/first_error_position"] = float(np.mean(share))
    return np.array([position[int(b)] for b in chosen], np.int64), counters


def _check_steps(
    written: Corrected, job: Job, prompt_length: np.ndarray
) -> tuple[np.ndarray, list[str], dict[str, float]]:
    """(rows whose teacher step can be used, the steps' texts, counters of refusals)."""
    finished = to_host(written.rollout.finished_B)
    ids = completion_ids(written.rollout)
    steps = texts(
        [row[job.kept_B[n] - prompt_length[n] :] for n, row in enumerate(ids)], job.tokenizer
    )[: len(job.asks)]
    usable = np.zeros(len(job.kept_B), bool)
    leaks = sum(reason == "leak" for reason in written.failed)
    incomplete = 0
    for number, (ask, text, reason) in enumerate(zip(job.asks, steps, written.failed, strict=True)):
        if reason is not None:
            continue
        told = job.domain.answer_marker(text) or (
            written.shows_answer and gives_answer_away(text, ask.problem.answer)
        )
        # Where steps end in several ways the teacher has seen to it that this one does.
        ends = finished[number] or bool(job.domain.boundary) or job.domain.separator in text
        if not ends or not text.strip():
            incomplete += 1
        elif told and not ask.last:
            leaks += 1
        else:
            usable[number] = True
    counters = {
        "scope/leaks": float(leaks),
        "scope/incomplete_steps": float(incomplete),
        "scope/corrected": float(usable.sum()),
    }
    return usable, steps, counters | failure_counts(written.failed) | written.metrics


def _targets(
    attempted: np.ndarray, failed_B: np.ndarray, group: int, spec: CorrectionSpec, seed: int
) -> np.ndarray:
    """Which row of the final groups each repaired trajectory is put in."""
    if spec.place == "replace_parent":
        return attempted
    if spec.place == "append":
        groups = attempted // group
        turn = np.array([np.sum(groups[:number] == g) for number, g in enumerate(groups)], np.int64)
        return groups * (group + spec.select.most(group)) + group + turn
    rng = np.random.default_rng([seed, 1])
    targets = np.empty_like(attempted)
    for start in np.unique(attempted // group) * group:
        members = np.flatnonzero(attempted // group == start // group)
        failures = start + np.flatnonzero(failed_B[start : start + group])
        targets[members] = rng.permutation(failures)[: len(members)]
    return targets


def _gallery(
    located: Located,
    chosen_R: np.ndarray,
    problems: Sequence[Problem],
    attempted: np.ndarray,
    usable: np.ndarray,
    accepted: np.ndarray,
    written: list[str],
    mixed: Rollout,
    kept: np.ndarray,
    prompt_length: np.ndarray,
    spec: CorrectionSpec,
    domain: Domain,
    tokenizer: Any,
) -> list[dict[str, Any]]:
    final = texts(
        [row[max(kept[n] - prompt_length[n], 0) :] for n, row in enumerate(completion_ids(mixed))],
        tokenizer,
    )
    items = []
    for number, r in enumerate(chosen_R):
        problem, steps, error = (
            problems[attempted[number]],
            located.steps[r],
            int(located.error_R[r]),
        )
        oracle = domain.check_steps(problem, steps)
        shown = []
        for j, step in enumerate(steps):
            status = "kept" if j < error else "wrong" if j == error else "discarded"
            score = float(located.score_RJ[r, j]) if located.valid_RJ[r, j] else None
            correct = None if oracle is None else bool(oracle[j])
            shown.append(
                {
                    "text": step,
                    "score": score,
                    "owner": "policy",
                    "status": status,
                    "correct": correct,
                }
            )
        if usable[number]:
            shown.append(
                {
                    "text": written[number],
                    "score": None,
                    "owner": "teacher",
                    "status": "corrected",
                    "correct": None,
                }
            )
            owner = "teacher" if spec.tail == "teacher" else "policy"
            tail = final[number][len(written[number]) :]
            for text in split_steps(tail, domain.divider):
                if text.strip():
                    shown.append(
                        {
                            "text": text,
                            "score": None,
                            "owner": owner,
                            "status": "tail",
                            "correct": None,
                        }
                    )
        items.append(
            {
                "prompt": problem.prompt,
                "answer": problem.answer,
                "steps": shown,
                "first_error": error,
                "threshold": spec.threshold,
                "verdict_before": False,
                "verdict_after": bool(accepted[number]) if spec.tail != "none" else None,
            }
        )
    return items


def _finish(metrics: dict[str, float], rollout: Rollout) -> dict[str, float]:
    owner = to_host(rollout.owner_BT)
    written = int(np.sum(owner >= Owner.POLICY))
    metrics["scope/teacher_token_share"] = float(np.sum(owner == Owner.TEACHER)) / max(written, 1)
    for name in (
        "accepted",
        "accepted_share",
        "corrected",
        "leaks",
        "incomplete_steps",
        "teacher_failed",
    ):
        metrics.setdefault(f"scope/{name}", 0.0)
    for name in ("teacher_tokens", "tail_tokens"):
        metrics.setdefault(f"cost/{name}", 0.0)
    return metrics


@jax.jit
def _select_rows(use_R: jax.Array, rows: Rollout, others: Rollout) -> Rollout:
    """Row r of `rows` where `use_R[r]`, of `others` elsewhere."""
    return jax.tree.map(
        lambda a, b: jnp.where(use_R.reshape((-1,) + (1,) * (a.ndim - 1)), a, b), rows, others
    )


def _pad(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    valid = np.arange(size) < len(rows)
    index = np.zeros(size, np.int32)
    index[: len(rows)] = rows
    return index, valid
