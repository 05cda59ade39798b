"""What a model says of the tokens of a step's rows: the policy before its updates, the reference,
the teacher of an on-policy distillation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import learning, models, teachers
from scope_jax.configuration import TrainConfig
from scope_jax.devices.current import current_mesh
from scope_jax.devices.mesh import to_device_memory, to_host, to_mesh
from scope_jax.devices.programs import program
from scope_jax.training.widths import bucketed_together, buckets_and_passes, pack_sizes
from scope_jax.types import Rollout


def written_logprobs(
    config: TrainConfig, model: models.ModelConfig, params: models.Params, rows: Rollout, group: int
) -> jax.Array:
    """float32[B, T]: log-probs of the written tokens of `rows`, `group` consecutive ones behind
    each prompt, at the temperature of the rollouts; 0 elsewhere. In the buckets and passes of the
    updates."""
    training, sizes = config.training, pack_sizes(config)
    groups = rows.tokens_BT.shape[0] // group
    micro_batches = training.micro_batches * training.mini_batches
    buckets, passes = buckets_and_passes(groups, group, training.length_buckets, micro_batches)
    run = learning.make_logprobs(
        model, temperature=config.rollout.temperature, micro_batches=passes
    )
    if buckets == 1:
        return run(params, rows, group, sizes)
    together = bucketed_together(config, group)
    order = learning.length_order(rows, together, buckets)
    parts = [run(params, _take(rows, jnp.asarray(index)), together, sizes) for index in order]
    return _in_order(parts, np.argsort(order.ravel()))


def teacher_logprobs(
    teacher: teachers.Teacher | None, config: TrainConfig, rows: Rollout, group: int
) -> tuple[jax.Array, dict[str, float]]:
    """(`written_logprobs` of a teacher that is a model on the mesh, metrics), whoever wrote the
    tokens. Its weights may lie on a mesh of their own, or in host memory. All processes call it.

    Metrics: `cost/distill_tokens`, the tokens that it read, each prompt once."""
    assert isinstance(teacher, teachers.ModelTeacher) and teacher.generator is not None
    generator, home = teacher.generator, current_mesh()
    params, where = to_device_memory(generator.params), generator.mesh
    if where is None or home is None or where == home:
        logp_BT = written_logprobs(config, generator.config, params, rows, group)
    else:
        with jax.set_mesh(where):
            there = to_mesh(rows, where)
            logp_BT = written_logprobs(config, generator.config, params, there, group)
        logp_BT = to_mesh(logp_BT, home)
    prompt_B, length_B = to_host((rows.prompt_length_B, rows.length_B))
    read = int(np.sum(prompt_B[::group])) + int(np.sum(length_B - prompt_B))
    return logp_BT, {"cost/distill_tokens": float(read)}


@program
def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


@program
def _in_order(parts: list[jax.Array], order: jax.Array) -> jax.Array:
    return jnp.concatenate(parts)[order]
