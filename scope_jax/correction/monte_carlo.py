"""What a prefix of a solution is worth, by continuing it: Monte Carlo estimates in the manner of
Math-Shepherd (arXiv 2312.08935), and the search for the first step after which the policy never
succeeds.

No process reward model is needed, only a verifier and tokens: the number of tokens generated is
part of every answer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import to_host
from scope_jax.devices.shapes import row_count
from scope_jax.rollout import Generator, SampleSpec, completion_texts
from scope_jax.rollout.rows import cut
from scope_jax.tasks import Domain, Problem, verdicts
from scope_jax.types import Rollout

# Streams of random numbers from here on are continuations of prefixes; see `rescue.TAIL_STREAM`
# for those below.
MONTE_CARLO_STREAM = 1 << 20

# probe(rows, prefix): for each of `rows`, whether the policy ever succeeds after its first
# prefix[n] steps.
Probe = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class FirstErrors:
    """error_R: int, the first wrong step of each row, from 0. probes: prefixes that were
    continued. tokens: what that took."""

    error_R: np.ndarray
    probes: int
    tokens: int


def successes(
    rollout: Rollout,
    rows_R: np.ndarray,
    length_R: np.ndarray,
    problems: Sequence[Problem],
    *,
    continuations: int,
    policy: Generator,
    sample_spec: SampleSpec,
    key: jax.Array,
    domain: Domain,
    tokenizer: Any,
    stream: int = MONTE_CARLO_STREAM,
) -> tuple[np.ndarray, int]:
    """(int[R]: how many of `continuations` samples of the policy end in the right answer, tokens
    generated): rows `rows_R` of `rollout`, each at most once, cut to `length_R` tokens, prompt
    included, and continued.

    `problems`: one per row of the rollout. A continuation that does not end, within
    `sample_spec.max_new_tokens` of the prompt and the row's buffer, and one that cannot be judged
    are no success. A row that is not cut and has ended is judged as it is. No more continuations
    are decoded at once than the rollout has rows, or than one prefix has. The answer for a row
    depends on its tokens and id, key and stream alone: give each prefix of a row a stream of its
    own. Raises ValueError where `continuations` is less than 1.
    """
    if continuations < 1:
        raise ValueError(f"continuations = {continuations} must be at least 1")
    B = rollout.length_B.shape[0]
    most = max(B // continuations, 1)
    won, tokens = np.zeros(len(rows_R), np.int64), 0
    for start in range(0, len(rows_R), most):
        rows = np.asarray(rows_R[start : start + most], np.int32)
        size, pad = row_count(len(rows), most), (0, most)
        index = np.pad(rows, pad)[:size]
        length = np.pad(np.asarray(length_R[start : start + most], np.int32), pad)[:size]
        batch = _prefixes(rollout, index, length, np.arange(size) < len(rows), continuations)
        before = batch.length_B
        batch = policy.extend(
            batch,
            key,
            sample_spec,
            shared_prefix=continuations,
            stream=stream,
            limit_B=batch.prompt_length_B + sample_spec.max_new_tokens,
        )
        tokens += int(jnp.sum(batch.length_B - before))
        ended = to_host(batch.finished_B)[: len(rows) * continuations]
        text = completion_texts(batch, tokenizer)
        judged = np.flatnonzero(ended)
        judged_as = verdicts(
            domain,
            [problems[int(rows[n // continuations])] for n in judged],
            [text[n] for n in judged],
        )
        right = np.zeros(len(ended), np.int64)
        right[judged] = [verdict is True for verdict in judged_as]
        won[start : start + most] = right.reshape(len(rows), continuations).sum(axis=1)
    return won, tokens


def locate_first_error(
    rollout: Rollout,
    rows_R: np.ndarray,
    ends: Sequence[Sequence[int]],
    problems: Sequence[Problem],
    *,
    continuations: int,
    policy: Generator,
    sample_spec: SampleSpec,
    key: jax.Array,
    domain: Domain,
    tokenizer: Any,
    stream: int = MONTE_CARLO_STREAM,
) -> FirstErrors:
    """The first wrong step of each of the failed rows `rows_R`: the step after which none of
    `continuations` samples of the policy succeeds, though one did before it (or it is the first).
    `ends`: exclusive ends of the steps of each row, one at least, counted in tokens after the
    prompt. The other arguments are those of `successes`.

    A binary search: log2 of the number of steps rounds, each one batch of continuations.
    """
    prompt_length = to_host(rollout.prompt_length_B)
    spent = {"probes": 0, "tokens": 0, "rounds": 0}

    def probe(rows: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        chosen = np.asarray(rows_R)[rows]
        length = prompt_length[chosen] + np.array(
            [ends[r][j - 1] for r, j in zip(rows, prefix, strict=True)], np.int32
        )
        won, tokens = successes(
            rollout,
            chosen,
            length,
            problems,
            continuations=continuations,
            policy=policy,
            sample_spec=sample_spec,
            key=key,
            domain=domain,
            tokenizer=tokenizer,
            stream=stream + spent["rounds"],
        )
        spent["probes"] += len(rows)
        spent["tokens"] += tokens
        spent["rounds"] += 1
        return won > 0

    error = search_first_error(np.array([len(row) for row in ends], np.int64), probe)
    return FirstErrors(error, spent["probes"], spent["tokens"])


def search_first_error(steps_R: np.ndarray, probe: Probe) -> np.ndarray:
    """int64[R]: the step, from 0, by which success is lost, in rows of `steps_R` steps (1 at
    least) that fail as a whole.

    The empty prefix counts as good and the whole row as lost, without a probe; between a prefix
    that is good and a longer one that is lost, the middle is probed, for all rows together, until
    they are neighbours. Where success is lost for good at one step, that is the step; an estimate
    that comes and goes leads to one of the steps by which it goes. Raises ValueError for a row
    without steps.
    """
    steps = np.asarray(steps_R, np.int64)
    if (steps < 1).any():
        raise ValueError(f"row {int(np.argmax(steps < 1))} has no step; leave such rows out")
    good, lost = np.zeros_like(steps), steps.copy()
    while (waiting := np.flatnonzero(lost - good > 1)).size:
        middle = (good[waiting] + lost[waiting]) // 2
        alive = np.asarray(probe(waiting, middle), bool)
        good[waiting] = np.where(alive, middle, good[waiting])
        lost[waiting] = np.where(alive, lost[waiting], middle)
    return lost - 1


def _prefixes(
    rollout: Rollout, index_R: np.ndarray, length_R: np.ndarray, valid_R: np.ndarray, copies: int
) -> Rollout:
    """Rows `index_R` cut to `length_R`, each `copies` times in a row under row ids of its own.
    Rows that are not valid hold their prompt and are finished, so that nothing is written to them.
    """
    return _cut_copies(
        rollout,
        jnp.asarray(index_R),
        jnp.asarray(length_R),
        jnp.asarray(valid_R),
        jnp.arange(copies, dtype=jnp.int32),
    )


@jax.jit
def _cut_copies(
    rollout: Rollout, index_R: jax.Array, length_R: jax.Array, valid_R: jax.Array, copy_K: jax.Array
) -> Rollout:
    K = copy_K.shape[0]
    index, valid = jnp.repeat(index_R, K), jnp.repeat(valid_R, K)
    rows = jax.tree.map(lambda x: x[index], rollout)
    rows = cut(rows, jnp.maximum(jnp.repeat(length_R, K), rows.prompt_length_B))
    ids = rows.row_id_B * K + jnp.tile(copy_K, index_R.shape[0])
    return rows.replace(finished_B=rows.finished_B | ~valid, row_id_B=ids)
