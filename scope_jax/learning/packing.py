"""Rollouts as batches of updates: each prompt once, completions beside it, rows of like length
together."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import RULES, constrain, current_mesh, to_host
from scope_jax.types import Rollout

# Widths are rounded up to a multiple of this.
STEP = 8


def pack(
    rollout: Rollout,
    arrays: dict[str, jax.Array],
    group: int,
    micro_batches: int = 1,
    *,
    coarse: bool = False,
) -> dict[str, jax.Array]:
    """The batch of an update, from a rollout whose `group` consecutive rows share their prompt:
    each prompt once, and beside it the completions alone, so that the update spends nothing on
    repeated prompts and on padding between.

    Returns `prompt` int32[P, W], `prompt_length` [P], `completion` int32[B, C], and `arrays`:
    those of shape [B, T] at the completions' slots as [B, C], 0 past a row's end; others as they
    are. W and C are the longest rounded up to a multiple of 8, or to the few sizes of
    `coarse_width`, so that few shapes occur. P is B / group, or more where a micro-batch, or a
    device's part of it, is less than a group.

    Raises ValueError where the rows cannot be split into `micro_batches`.
    """
    B = rollout.tokens_BT.shape[0]
    if B % micro_batches:
        raise ValueError(
            f"{B} rows cannot be split into {micro_batches} micro-batches; choose a divisor of {B}"
        )
    mesh = current_mesh()
    devices = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])
    together = math.gcd(group, B // micro_batches, max(B // micro_batches // devices, 1))
    longest = jnp.stack(
        [jnp.max(rollout.prompt_length_B), jnp.max(rollout.length_B - rollout.prompt_length_B)]
    )
    width = coarse_width if coarse else lambda n: max(-(-n // STEP) * STEP, STEP)
    W, C = (width(int(n)) for n in to_host(longest))
    return _pack(rollout, arrays, together, W, C)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _pack(
    rollout: Rollout, arrays: dict[str, jax.Array], together: int, W: int, C: int
) -> dict[str, jax.Array]:
    B, T = rollout.tokens_BT.shape
    slot_BC = rollout.prompt_length_B[:, None] + jnp.arange(C)[None]
    written_BC = slot_BC < rollout.length_B[:, None]

    def completion(x_BT: jax.Array) -> jax.Array:
        taken = jnp.take_along_axis(x_BT, jnp.minimum(slot_BC, T - 1), axis=1)
        return constrain(jnp.where(written_BC, taken, jnp.zeros_like(taken)), "batch", None)

    prompt = jnp.pad(rollout.tokens_BT[::together, :W], ((0, 0), (0, max(W - T, 0))))
    packed = {
        "prompt": constrain(prompt, "batch", None),
        "prompt_length": constrain(rollout.prompt_length_B[::together], "batch"),
        "completion": completion(rollout.tokens_BT),
    }
    return packed | {name: completion(x) if x.shape == (B, T) else x for name, x in arrays.items()}


def coarse_width(n: int) -> int:
    """`n` rounded up to 8, 16, 24, 32, ..., 64, 80, 96, 112, 128, 160, ...: four sizes from each
    power of two to the next."""
    step = max(STEP, 1 << max((n - 1).bit_length() - 3, 0))
    return max(-(-n // step) * step, STEP)


def length_order(rollout: Rollout, group: int, parts: int) -> tuple[np.ndarray, int]:
    """(int[parts, B / parts], group of each part): the row numbers of `parts` parts of like
    length, the shortest first.

    Either whole groups stay together (and go by their longest completion), with the prompt once
    for all of a group; or rows go by themselves, and the group of a part is 1, with the prompt
    once for each row: whichever packs (`coarse`) into fewer slots. Raises ValueError where the
    groups cannot be divided so.
    """
    B = rollout.tokens_BT.shape[0]
    if B // group % parts:
        raise ValueError(
            f"{B // group} groups cannot be divided into {parts} parts of like length; choose a"
            f" divisor of {B // group}"
        )
    length, prompt = (np.asarray(x) for x in to_host((rollout.length_B, rollout.prompt_length_B)))
    written = length - prompt

    def arrange(unit: int) -> tuple[int, np.ndarray]:
        """(slots when packed, order) where `unit` consecutive rows stay together."""
        order = np.argsort(written.reshape(-1, unit).max(axis=1), kind="stable")
        rows = (order[:, None] * unit + np.arange(unit)[None]).reshape(parts, -1)
        widths = [
            (coarse_width(int(prompt[index].max())), coarse_width(int(written[index].max())))
            for index in rows
        ]
        return sum(len(rows[0]) // unit * W + len(rows[0]) * C for W, C in widths), rows

    found = {unit: arrange(unit) for unit in dict.fromkeys((group, 1))}
    unit = min(found, key=lambda unit: found[unit][0])
    return found[unit][1], unit


@jax.jit
def unpack(rollout: Rollout, x_BC: jax.Array) -> jax.Array:
    """`pack` of a [B, T] array undone: 0 outside the written tokens."""
    T = rollout.tokens_BT.shape[1]
    slot_BT = jnp.arange(T)[None] - rollout.prompt_length_B[:, None]
    written = (slot_BT >= 0) & (jnp.arange(T)[None] < rollout.length_B[:, None])
    taken = jnp.take_along_axis(x_BC, jnp.clip(slot_BT, 0, x_BC.shape[1] - 1), axis=1)
    return jnp.where(written, taken, 0.0)


def split_rows(x: jax.Array, units: int, parts: int) -> jax.Array:
    """[units M, ...] as [parts, rows of a part, ...]: part i holds unit i, i + parts, ... with the
    M rows of each, so that each device works on its own rows in every part."""
    out = jnp.swapaxes(x.reshape(units // parts, parts, -1, *x.shape[1:]), 0, 1)
    out = out.reshape(parts, -1, *x.shape[1:])
    return constrain(out, None, "batch", *(None,) * (x.ndim - 1))
