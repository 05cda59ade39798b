"""What a prefix of a solution is worth, by continuing it: Monte Carlo estimates in the manner of
Math-Shepherd (arXiv 2312.08935), and the search for the first step after which the policy never
succeeds.

No process reward model is needed, only a verifier and tokens: the number of tokens generated is
part of every answer.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import streams
from scope_jax.correction.records import Scene
from scope_jax.correction.steps import StepRows, pad_rows
from scope_jax.devices.mesh import to_host
from scope_jax.devices.programs import program
from scope_jax.rewards import Rows
from scope_jax.rollout import completion_ids, texts
from scope_jax.rollout.rows import cut
from scope_jax.tasks import Problem
from scope_jax.types import Rollout

# probe(rows, prefix): for each of `rows`, whether the policy ever succeeds after its first
# prefix[n] steps.
Probe = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class FirstErrors:
    """What the search found, and what it took."""

    error_R: np.ndarray  # int: the first wrong step of each row, from 0
    probes: int  # prefixes that were continued
    tokens: int  # that were generated


def successes(
    rollout: Rollout,
    problems: Sequence[Problem],
    rows_R: np.ndarray,
    length_R: np.ndarray,
    scene: Scene,
    *,
    continuations: int,
    stream: int = streams.MONTE_CARLO,
) -> tuple[np.ndarray, int]:
    """(int[R]: how many of `continuations` samples of the policy are accepted, tokens
    generated): rows `rows_R` of `rollout`, each at most once, cut to `length_R` tokens, prompt
    included, and continued.

    `problems`: one per row of the rollout. A continuation that does not end, within the policy's
    `max_new_tokens` of the prompt and the row's buffer, and one that cannot be judged are no
    success. A row that is not cut and has ended is judged as it is. At most as many continuations
    are decoded at once as the rollout has rows, or as one prefix has. The answer for a row depends
    on its tokens and id, key and stream alone: give each prefix of a row a stream of its own.
    Raises ValueError where `continuations` is less than 1.
    """
    if continuations < 1:
        raise ValueError(f"continuations = {continuations} must be at least 1")
    policy = scene.policy
    most = prefixes_at_once(rollout, continuations)
    won, tokens = np.zeros(len(rows_R), np.int64), 0
    for start in range(0, len(rows_R), most):
        part = slice(start, start + most)
        rows = np.asarray(rows_R[part], np.int32)
        batch, spent = _continued(rollout, rows, length_R[part], scene, continuations, stream)
        tokens += spent
        ended = to_host(batch.finished_B)[: len(rows) * continuations]
        judged = np.flatnonzero(ended)
        every = completion_ids(batch)
        ids = [every[n] for n in judged]
        asked = [problems[int(rows[n // continuations])] for n in judged]
        finished = np.ones(len(judged), bool)
        right = np.zeros(len(ended), np.int64)
        right[judged] = scene.reward.accepts(
            Rows(scene.domain, asked, texts(ids, policy.tokenizer), ids, finished)
        )
        won[part] = right.reshape(len(rows), continuations).sum(axis=1)
    return won, tokens


def locate_first_error(rows: StepRows, scene: Scene, continuations: int) -> FirstErrors:
    """The first wrong step of each of these failed rows, of one step or more: the step after which
    none of `continuations` samples of the policy succeeds, though one did before it (or it is the
    first).

    A binary search: log2 of the number of steps rounds, each one batch of continuations.
    """
    prompt_length = to_host(rows.rollout.prompt_length_B)
    spent = {"probes": 0, "tokens": 0, "rounds": 0}

    def probe(asked: np.ndarray, prefix: np.ndarray) -> np.ndarray:
        ends = [rows.ends[r][j - 1] for r, j in zip(asked, prefix, strict=True)]
        length = prompt_length[rows.rows_R[asked]] + np.array(ends, np.int32)
        won, tokens = successes(
            rows.rollout,
            rows.problems,
            rows.rows_R[asked],
            length,
            scene,
            continuations=continuations,
            stream=streams.MONTE_CARLO + spent["rounds"],
        )
        spent["probes"] += len(asked)
        spent["tokens"] += tokens
        spent["rounds"] += 1
        return won > 0

    error = search_first_error(rows.count_R, probe)
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


def prefixes_at_once(rollout: Rollout, continuations: int) -> int:
    """Prefixes that are continued together: no more rows than the rollout has."""
    return max(rollout.length_B.shape[0] // continuations, 1)


def compile_ahead(rollout: Rollout, scene: Scene, continuations: int) -> None:
    """Run the program of `successes` for rows like these; nothing is continued."""
    nobody = np.zeros(0, np.int32)
    _continued(rollout, nobody, nobody, scene, continuations, streams.MONTE_CARLO)


def _continued(
    rollout: Rollout,
    rows: np.ndarray,
    length: np.ndarray,
    scene: Scene,
    continuations: int,
    stream: int,
) -> tuple[Rollout, int]:
    """(each of these rows cut and continued as many times; tokens that were generated). The batch
    always has room for `prefixes_at_once`."""
    size, policy = prefixes_at_once(rollout, continuations), scene.policy
    batch = _cut_copies(
        rollout,
        jnp.asarray(pad_rows(rows, size)),
        jnp.asarray(pad_rows(length, size)),
        jnp.asarray(np.arange(size) < len(rows)),
        jnp.asarray(np.arange(continuations, dtype=np.int32)),
    )
    before, prompt_length = to_host((batch.length_B, batch.prompt_length_B))
    batch = policy.generator.extend(
        batch,
        scene.key,
        policy.sampling,
        shared_prefix=continuations,
        stream=stream,
        limit_B=jnp.asarray(prompt_length + policy.sampling.max_new_tokens),
    )
    return batch, int(np.sum(to_host(batch.length_B) - before))


@program
def _cut_copies(
    rollout: Rollout, index_R: jax.Array, length_R: jax.Array, valid_R: jax.Array, copy_K: jax.Array
) -> Rollout:
    """Rows `index_R` cut to `length_R`, each once per copy under row ids of its own. Rows that are
    not valid are finished, so that nothing is written to them."""
    K = copy_K.shape[0]
    index, valid = jnp.repeat(index_R, K), jnp.repeat(valid_R, K)
    rows = jax.tree.map(lambda x: x[index], rollout)
    rows = cut(rows, jnp.maximum(jnp.repeat(length_R, K), rows.prompt_length_B))
    ids = rows.row_id_B * K + jnp.tile(copy_K, index_R.shape[0])
    return rows.replace(finished_B=rows.finished_B | ~valid, row_id_B=ids)
