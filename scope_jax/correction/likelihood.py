"""First errors by the teacher's likelihood: a step that it would hardly have written is wrong."""

import contextlib
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from scope_jax import models
from scope_jax.correction.records import Scene
from scope_jax.correction.steps import StepRows
from scope_jax.devices.mesh import constrain, current_mesh, put_rows, to_device_memory, to_host
from scope_jax.devices.programs import program
from scope_jax.prm.model import batch_width, score_batches
from scope_jax.rollout import Generator
from scope_jax.teachers import ModelTeacher
from scope_jax.types import Rollout

# About how many padded tokens go through the teacher together at most; bounds its memory.
TOKENS_AT_ONCE = 1 << 16


def step_probabilities(rows: StepRows, scene: Scene) -> tuple[list[list[float]], int]:
    """(for each row, the geometric mean over each step's tokens of the teacher's p(token | all
    before it) at temperature 1; tokens read). The mean, so that long steps are not worse than short
    ones. One forward pass over the rows that have steps.

    Raises ValueError where the teacher is no model that reads the policy's tokens."""
    generator = reader_of(scene)
    tokens_BT, prompt_B, length_B = to_host(
        (rows.rollout.tokens_BT, rows.rollout.prompt_length_B, rows.rollout.length_B)
    )
    asked = [r for r, steps in enumerate(rows.steps) if steps]
    asked.sort(key=lambda r: -int(length_B[rows.rows_R[r]]))
    index = np.array([rows.rows_R[r] for r in asked], int)
    logp = _logprobs(generator, tokens_BT[index], length_B[index], *tokens_BT.shape)
    found: list[list[float]] = [[] for _ in rows.steps]
    for r, b, line in zip(asked, index.tolist(), logp, strict=True):
        ends = [int(prompt_B[b]) + end for end in (0, *rows.ends[r])]
        found[r] = [
            float(np.exp(np.mean(line[begin:end], dtype=np.float64)))
            for begin, end in itertools.pairwise(ends)
        ]
    return found, int(length_B[index].sum())


def compile_ahead(rollout: Rollout, scene: Scene) -> None:
    """Run the teacher's programs for rows like these."""
    generator, (rows, buffer) = reader_of(scene), rollout.tokens_BT.shape
    width_of = batch_width(buffer, buffer)
    for longest in sorted({width_of(buffer // 4), width_of(buffer // 2), buffer}):
        line = np.zeros((1, buffer), np.int32)
        _logprobs(generator, line, np.array([longest]), rows, buffer)


def reader_of(scene: Scene) -> Generator:
    """Whose likelihood it is. Raises ValueError where the teacher cannot read the policy's
    tokens."""
    teacher = scene.teacher
    if not isinstance(teacher, ModelTeacher) or teacher.tokenizer is not None:
        raise ValueError(
            "localiser 'likelihood' asks the teacher for the probability of the policy's tokens: it"
            " needs a teacher that is a model here with the policy's tokenizer; use localiser 'prm'"
        )
    return teacher.generator or scene.policy.generator


def _logprobs(
    generator: Generator, tokens_RT: np.ndarray, length_R: np.ndarray, rows: int, buffer: int
) -> Sequence[np.ndarray]:
    """For each of R rows, the longest first, float32[its batch's width]: entry t is log p(token t |
    tokens before t). Batches as of a process reward model that reads `rows` rows at most."""
    params, mesh = to_device_memory(generator.params), generator.mesh or current_mesh()
    lengths = length_R.tolist()
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        config = models.with_kernel(generator.config)
        batches = []
        # All are on their way before the first is waited for.
        for part, (count, width) in score_batches(
            lengths, rows, TOKENS_AT_ONCE, batch_width(buffer, buffer)
        ):
            tokens = np.zeros((count, width), np.int32)
            given = tokens_RT[part, :width]
            tokens[: len(given)] = given
            batches.append((len(given), likelihood_program(params, config, put_rows(tokens))))
        return [line for count, out in batches for line in to_host(out)[:count]]


@functools.partial(program, static_argnames=("config",))
def likelihood_program(
    params: models.Params, config: models.ModelConfig, tokens_BT: jax.Array
) -> jax.Array:
    """float32[B, T]: log-probs of the tokens, on every device, so that each host can read all."""
    return constrain(models.token_logprobs(params, config, tokens_BT)[0], None, None)
