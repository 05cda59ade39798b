"""What the backward pass computes again, chosen so that what fits is kept.

The bytes that an update needs beside what is resident are foretold from shapes, by counting what
JAX keeps of the layers for the backward pass (nothing is compiled), the gradients, and what stands
at the loss. docs/memory.md says how near that comes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from scope_jax.devices.current import current_mesh
from scope_jax.devices.mesh import AXES, GATHERED, partition_spec
from scope_jax.models import LoraSpec, ModelConfig, abstract, attention, lora_table
from scope_jax.models.decoder import completion_states, with_kernel
from scope_jax.models.heads import LOGITS_BUDGET, chunk_size
from scope_jax.models.weights import Weight, weight_table

Remat = Literal["none", "dots", "layer"]
# In the order in which they are tried: from the fastest to the smallest.
REMATS: tuple[Remat, ...] = ("none", "dots", "layer")
# A foretold peak may fill this share of a device's memory.
FILLED = 0.9
# Float32 arrays of the size of a chunk's logits that are there at once, forward and backward.
LOGITS = 2
# Arrays with a number for each token of an update, about.
ARRAYS = 8
# Bytes of a layer's activations, as multiples of what `none` keeps of it, that are there while it
# is gone through backwards: what was computed again, and its gradients.
BACKWARD = {"none": 0.5, "dots": 1.25, "layer": 1.25}


@dataclasses.dataclass(frozen=True)
class UpdateShape:
    """The rows of one pass of an update, on all devices: `prompts` of `width` positions, each with
    rows / prompts completions of `tokens` positions. passes: of each of its `buckets`."""

    prompts: int
    width: int
    rows: int
    tokens: int
    passes: int = 1
    buckets: int = 1


@dataclasses.dataclass(frozen=True)
class Used:
    """How the update uses its model. sizes: of the mesh's axes. dtype: that weights are used in,
    kept: that they are kept in. lora: what is trained; None: all weights."""

    sizes: tuple[tuple[str, int], ...]
    dtype: str
    kept: str
    lora: LoraSpec | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is computed again. needs: bytes of a device at the update's peak, of each that was
    looked at; limit: bytes that it has (None: not known)."""

    remat: Remat
    needs: tuple[tuple[Remat, float], ...]
    limit: float | None

    def line(self) -> str:
        """What a run says of it."""
        if self.limit is None:
            return f"remat: {self.remat} (how much memory the device has is not known)"
        needs, total = dict(self.needs), self.limit / 1e9
        text = f"needs {needs[self.remat] / 1e9:.1f} of {total:.1f} GB"
        larger = [name for name in REMATS if name in needs and name != self.remat]
        if larger:
            text += "; " + ", ".join(
                f"{name} would need {needs[name] / 1e9:.1f}" for name in larger
            )
        if not fits(needs[self.remat], self.limit):
            text += "; raise training.micro_batches or mesh.fsdp"
        return f"remat: {self.remat} ({text})"


def fits(needed: float, limit: float) -> bool:
    """Whether a foretold peak leaves the margin that it may be off by."""
    return needed <= FILLED * limit


def choose(
    config: ModelConfig,
    shapes: Sequence[UpdateShape],
    used: Used,
    resident: float,
    limit: float | None,
    remats: Sequence[Remat] = REMATS,
) -> Choice:
    """The first of `remats` with which the largest of the updates fits. resident: bytes of one
    device that are there before an update begins: weights, moments, other models. limit: bytes of
    a device, None where they are not known."""

    config = with_kernel(config)

    def needed(remat: Remat) -> float:
        return resident + max(
            temporaries(config, remat, shape, used) + batch_bytes(shape, used) for shape in shapes
        )

    return first_that_fits(needed, limit, remats)


def first_that_fits(
    needed: Callable[[Remat], float], limit: float | None, remats: Sequence[Remat] = REMATS
) -> Choice:
    """The first of `remats` whose bytes fit `limit`, and the last where none does; the first where
    the limit is not known."""
    needs: list[tuple[Remat, float]] = []
    for remat in remats if limit is not None else ():
        needs.append((remat, needed(remat)))
        if fits(needs[-1][1], limit or 0.0):
            break
    return Choice(needs[-1][0] if needs else remats[0], tuple(needs), limit)


def batch_bytes(shape: UpdateShape, used: Used) -> float:
    """Bytes of one device of the rows of a whole update: tokens, weights, advantages, log-probs."""
    rows = shape.rows * shape.passes * shape.buckets
    return ARRAYS * 4.0 * rows * shape.tokens / parts(("batch",), (rows,), dict(used.sizes))


def temporaries(config: ModelConfig, remat: Remat, shape: UpdateShape, used: Used) -> float:
    """Bytes of one device that an update of these rows needs beside its arguments."""
    sizes, dtype = dict(used.sizes), jnp.dtype(used.dtype)
    # Decided with the model's windows, which `on_one_device` leaves out: a kernel keeps no scores.
    kernel = attention.choose(config, dtype).kernel
    here = on_one_device(dataclasses.replace(config, attention=kernel), shape, sizes)
    layers = kept(dataclasses.replace(here.model, remat=remat), here.shape, dtype.name)
    one = dataclasses.replace(here.model, num_layers=1, remat="none")
    layer = kept(one, here.shape, dtype.name)
    return (
        layers
        + BACKWARD[remat] * layer
        + at_the_loss(config, shape, sizes)
        + of_weights(config, remat, shape, used)
    )


@dataclasses.dataclass(frozen=True)
class Local:
    """What one device has of a model and of rows."""

    model: ModelConfig
    shape: UpdateShape


def on_one_device(config: ModelConfig, shape: UpdateShape, sizes: Mapping[str, int]) -> Local:
    """The part of the heads, the feed-forward and the rows that one device works on. Local layers
    count as layers that see everything."""
    heads, kv, ffn, expert_size = (
        size // parts((axis,), (size,), sizes)
        for axis, size in (
            ("heads", config.num_heads),
            ("kv_heads", config.num_kv_heads),
            ("mlp", config.ffn_size),
            ("mlp", config.expert_size),
        )
    )
    kv = kv if heads % kv == 0 else config.num_kv_heads
    heads = heads if heads % kv == 0 else config.num_heads
    model = dataclasses.replace(
        config,
        num_heads=heads,
        num_kv_heads=kv,
        ffn_size=ffn,
        expert_size=expert_size,
        # Embedding and head are counted apart.
        vocab_size=8,
        window=0,
        local_layers=(),
        unrotated_layers=(),
        scan_layers=True,
        query_pre_attn_scalar=config.query_pre_attn_scalar,
    )
    prompts = shape.prompts // parts(("batch",), (shape.prompts,), sizes)
    together = shape.rows // shape.prompts
    return Local(model, dataclasses.replace(shape, prompts=prompts, rows=prompts * together))


def parts(
    axes: Sequence[str | None],
    extents: Sequence[int],
    sizes: Mapping[str, int],
    drop: tuple[str, ...] = (),
) -> int:
    """In how many parts an array with logical `axes` lies on a mesh of these sizes, without those
    in `drop`."""
    spec = partition_spec(axes, extents, dict(sizes), drop)
    names = [
        name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ())
    ]
    return math.prod(sizes[name] for name in names)


def kept(config: ModelConfig, shape: UpdateShape, dtype: str) -> float:
    """Bytes that JAX keeps of the layers for the backward pass, without the weights themselves, on
    a device of the kind of the mesh that is set."""
    mesh = current_mesh()
    return _kept(config, shape, dtype, jax.devices()[0] if mesh is None else mesh.devices.flat[0])


@functools.lru_cache(maxsize=256)
def _kept(config: ModelConfig, shape: UpdateShape, dtype: str, device: Any) -> float:

    def residuals(params: Any, prompt: Any, length: Any, completion: Any) -> list[Any]:
        _, pull = jax.vjp(
            lambda p: completion_states(p, config, prompt, length, completion)[0], params
        )
        given = {id(x) for x in jax.tree.leaves(params)}
        return [x for x in jax.tree.leaves(pull) if id(x) not in given]

    def ints(*extents: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(extents, jnp.int32)

    # On a mesh of one device nothing is laid out anew, which would count as kept.
    with jax.set_mesh(Mesh(np.array([[[device]]]), AXES, axis_types=(AxisType.Auto,) * 3)):
        found = jax.eval_shape(
            residuals,
            abstract(config, dtype),
            ints(shape.prompts, shape.width),
            ints(shape.prompts),
            ints(shape.rows, shape.tokens),
        )
    return float(sum(math.prod(x.shape) * x.dtype.itemsize for x in found))


def at_the_loss(config: ModelConfig, shape: UpdateShape, sizes: Mapping[str, int]) -> float:
    """Bytes of logits, and of the hidden states that they come from with their gradients."""
    together = shape.rows // shape.prompts
    positions = together * shape.tokens
    split = parts(("loss_batch", None, "vocab"), (shape.prompts, 1, config.vocab_size), sizes)
    budget = config.logits_at_once or LOGITS_BUDGET
    chunk = chunk_size(shape.prompts, positions, config.vocab_size, split, budget)
    logits = 4.0 * shape.prompts * chunk * config.vocab_size / split
    rows = shape.prompts / parts(("batch",), (shape.prompts,), sizes)
    return LOGITS * logits + 3 * 4.0 * rows * positions * config.hidden_size


def of_weights(config: ModelConfig, remat: Remat, shape: UpdateShape, used: Used) -> float:
    """Bytes of gradients and of copies of weights."""
    sizes, item = dict(used.sizes), jnp.dtype(used.dtype).itemsize
    table = weight_table(config)
    layers = {path: w for path, w in table.items() if path.startswith("layers/")}

    def size(
        table: Mapping[str, Weight],
        item: int,
        sizes: Mapping[str, int],
        drop: tuple[str, ...] = (),
    ) -> float:
        held = (math.prod(w.shape) / parts(w.axes, w.shape, sizes, drop) for w in table.values())
        return float(sum(item * numbers for numbers in held))

    trained = table if used.lora is None else lora_table(config, used.lora)
    found = size(trained, 4, sizes)
    if shape.passes * shape.buckets > 1:  # the gradient as it comes, beside the sum
        found += size(trained, item, sizes)
    if used.lora is None and used.dtype != used.kept:
        found += size(layers, item, sizes)
    if any(sizes.get(axis, 1) > 1 for axis in GATHERED):
        # Gathered: all layers, which are kept for the backward pass; or one and the next, and
        # the gradient of one.
        gathered = size(layers, item, sizes, GATHERED)
        found += gathered if remat == "none" else 3 * gathered / config.num_layers
    return found
