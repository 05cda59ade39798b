"""`training.remat` auto: the updates of a run as shapes, and what of them is computed again on its
devices. The trainer and `fit` ask the same."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from scope_jax.configuration import Relift, TrainConfig
from scope_jax.devices.current import platform
from scope_jax.devices.mesh import SMALL_MODEL
from scope_jax.learning.packing import PackSizes, rows_together
from scope_jax.learning.recompute import REMATS, Choice, Remat, UpdateShape, Used, choose
from scope_jax.models import ModelConfig
from scope_jax.models.weights import count_weights
from scope_jax.training.widths import buckets_and_passes, pack_sizes


def update_shape(
    config: TrainConfig, mesh: Mesh, groups: int, group: int, micro_batches: int
) -> UpdateShape:
    """A pass of an update of `groups` groups of `group` rows, at the largest widths."""
    sizes: PackSizes = pack_sizes(config)
    buckets, passes = buckets_and_passes(
        groups, group, config.training.length_buckets, micro_batches
    )
    rows = groups // buckets * group // passes
    with jax.set_mesh(mesh):
        together = rows_together(rows, group)
    prompt, completion = sizes.prompt[-1], sizes.completion[-1]
    return UpdateShape(rows // together, prompt, rows, completion, passes, buckets)


def update_shapes(config: TrainConfig, mesh: Mesh) -> list[UpdateShape]:
    """Those of all updates of a run: of rollouts, and of demonstrations."""
    training, method, prompts = config.training, config.method, config.rollout.prompts
    micro, parts, shapes = training.micro_batches, training.mini_batches, []
    if config.sft.steps < config.steps:
        shapes.append(update_shape(config, mesh, prompts // parts, config.rows_per_group, micro))
    if config.sft.steps:
        rows = (config.sft.prompts or prompts) // parts
        shapes.append(update_shape(config, mesh, rows, 1, micro))
    if isinstance(method, Relift):
        shapes.append(update_shape(config, mesh, method.buffer, 1, micro))
    return shapes


def chosen_remat(
    config: TrainConfig, model: ModelConfig, mesh: Mesh, resident: float, limit: float | None
) -> Choice:
    """What a run of `config` computes again where `training.remat` is auto. resident: bytes of one
    device that are there during an update: weights, moments, other models. limit: bytes of a
    device, None where they are not known."""
    training = config.training
    used = Used(
        sizes=tuple(mesh.shape.items()),
        dtype=config.dtype,
        kept="float32" if training.master_weights == "float32" else config.dtype,
        lora=config.lora.spec,
    )
    shapes: Sequence[UpdateShape] = update_shapes(config, mesh)
    with jax.set_mesh(mesh):
        remats = remats_of(platform(), count_weights(model))
        return choose(model, shapes, used, resident, limit, remats)


def remats_of(kind: str, weights: int) -> tuple[Remat, ...]:
    """What is tried on devices of a kind, the fastest first. A CPU writes and reads what is
    kept of a large model no faster than it computes it again (docs/memory.md)."""
    return ("layer",) if kind == "cpu" and weights > SMALL_MODEL else REMATS
