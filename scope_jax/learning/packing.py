"""Rollouts as batches of updates: each prompt once, completions beside it, rows of like length
together."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import constrain, row_devices, to_host
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import coarse_width, fine_width
from scope_jax.types import Rollout


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
    those of shape [B, T] at the completions' positions as [B, C], 0 past a row's end; others as
    they are. W and C are the longest, rounded up by `fine_width`, or `coarse_width` if `coarse`. P
    is B / group, or more where a micro-batch, or a device's part of it, is less than a group.

    Raises ValueError where the rows cannot be split into `micro_batches`.
    """
    B = rollout.tokens_BT.shape[0]
    if B % micro_batches:
        raise ValueError(
            f"{B} rows cannot be split into {micro_batches} micro-batches; choose a divisor of {B}"
        )
    longest = jnp.stack(
        [jnp.max(rollout.prompt_length_B), jnp.max(rollout.length_B - rollout.prompt_length_B)]
    )
    width = coarse_width if coarse else fine_width
    W, C = (width(int(n)) for n in to_host(longest))
    return _pack(rollout, arrays, rows_together(B // micro_batches, group), W, C)


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


def length_order(rollout: Rollout, group: int, parts: int) -> tuple[np.ndarray, int]:
    """(int[parts, B / parts], group of each part): the row numbers of `parts` parts of similar
    length, the shortest first.

    Either whole groups stay together (ordered by their longest completion), with the prompt once
    for all of a group; or rows are ordered one by one, and the group of a part is 1, with the
    prompt once for each row: whichever packs (`coarse`) into fewer positions. Raises ValueError
    where the groups cannot be divided like this.
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
        """(positions when packed, order) where `unit` consecutive rows stay together."""
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
