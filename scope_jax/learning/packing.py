"""Rollouts as batches of updates: each prompt once, completions beside it, rows of like length
together."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import constrain, row_devices, to_host
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import fine_width
from scope_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class PackSizes:
    """Widths that packed rows may have, ascending: each is a program of its own."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def pack(
    rollout: Rollout,
    arrays: dict[str, jax.Array],
    group: int,
    micro_batches: int = 1,
    sizes: PackSizes | None = None,
) -> dict[str, jax.Array]:
    """The batch of an update, from a rollout whose `group` consecutive rows share their prompt:
    each prompt once, and beside it the completions alone, so that the update spends nothing on
    repeated prompts and on padding between.

    Returns `prompt` int32[P, W], `prompt_length` [P], `completion` int32[B, C], and `arrays`:
    those of shape [B, T] at the completions' positions as [B, C], 0 past a row's end; others as
    they are. W and C are the first of `sizes` that hold the longest; without them, the longest
    rounded up by `fine_width`. P is B / group, or more where a micro-batch, or a device's part of
    it, is less than a group.

    Raises ValueError where the rows cannot be split into `micro_batches`.
    """
    B = rollout.tokens_BT.shape[0]
    if B % micro_batches:
        raise ValueError(
            f"{B} rows cannot be split into {micro_batches} micro-batches; choose a divisor of {B}"
        )
    prompt, length = to_host((rollout.prompt_length_B, rollout.length_B))
    W = _holding(int(prompt.max()), () if sizes is None else sizes.prompt)
    C = _holding(int((length - prompt).max()), () if sizes is None else sizes.completion)
    return _pack(rollout, arrays, rows_together(B // micro_batches, group), W, C)


def _holding(longest: int, sizes: tuple[int, ...]) -> int:
    return next((size for size in sizes if size >= longest), fine_width(longest))


def rows_together(rows: int, group: int) -> int:
    """Consecutive rows with one prompt for all of them, in a micro-batch of `rows` rows: a group,
    or what a micro-batch or a device's part of it holds of one."""
    return math.gcd(group, rows, max(rows // row_devices(), 1))


@functools.partial(program, static_argnums=(2, 3, 4))
def _pack(
    rollout: Rollout, arrays: dict[str, jax.Array], together: int, W: int, C: int
) -> dict[str, jax.Array]:
    B, T = rollout.tokens_BT.shape
    position_BC = rollout.prompt_length_B[:, None] + jnp.arange(C)[None]
    written_BC = position_BC < rollout.length_B[:, None]

    def completion(x_BT: jax.Array) -> jax.Array:
        taken = jnp.take_along_axis(x_BT, jnp.minimum(position_BC, T - 1), axis=1)
        return constrain(jnp.where(written_BC, taken, jnp.zeros_like(taken)), "batch", None)

    prompt = jnp.pad(rollout.tokens_BT[::together, :W], ((0, 0), (0, max(W - T, 0))))
    packed = {
        "prompt": constrain(prompt, "batch", None),
        "prompt_length": constrain(rollout.prompt_length_B[::together], "batch"),
        "completion": completion(rollout.tokens_BT),
    }
    return packed | {name: completion(x) if x.shape == (B, T) else x for name, x in arrays.items()}


def length_order(rollout: Rollout, together: int, parts: int) -> np.ndarray:
    """int[parts, B / parts]: the row numbers of `parts` parts of similar length, the shortest
    first; `together` consecutive rows stay together, ordered by their longest completion. Raises
    ValueError where the rows cannot be divided like this."""
    units = rollout.tokens_BT.shape[0] // together
    if units % parts:
        raise ValueError(
            f"{units} groups cannot be divided into {parts} parts of like length; choose a divisor"
            f" of {units}"
        )
    length, prompt = (np.asarray(x) for x in to_host((rollout.length_B, rollout.prompt_length_B)))
    order = np.argsort((length - prompt).reshape(-1, together).max(axis=1), kind="stable")
    return (order[:, None] * together + np.arange(together)[None]).reshape(parts, -1)


@program
def unpack(rollout: Rollout, x_BC: jax.Array) -> jax.Array:
    """`pack` of a [B, T] array undone: 0 outside the written tokens."""
    T = rollout.tokens_BT.shape[1]
    column_BT = jnp.arange(T)[None] - rollout.prompt_length_B[:, None]
    written = (column_BT >= 0) & (jnp.arange(T)[None] < rollout.length_B[:, None])
    taken = jnp.take_along_axis(x_BC, jnp.clip(column_BT, 0, x_BC.shape[1] - 1), axis=1)
    return jnp.where(written, taken, 0.0)


def split_rows(x: jax.Array, units: int, parts: int) -> jax.Array:
    """[units M, ...] as [parts, rows of a part, ...]: part i holds unit i, i + parts, ... with the
    M rows of each, so that each device works on its own rows in every part."""
    out = jnp.swapaxes(x.reshape(units // parts, parts, -1, *x.shape[1:]), 0, 1)
    out = out.reshape(parts, -1, *x.shape[1:])
    return constrain(out, None, "batch", *(None,) * (x.ndim - 1))
