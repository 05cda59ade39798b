"""Rollouts: prefill once per shared prefix, then one jitted loop that continues every row from
where it stands.

Each slot of the decode batch holds one row and has a cursor of its own. With as many slots as rows
nothing else happens; with fewer, a finished slot is given the next waiting row (its prefix's keys
and values are copied in), inside the same jitted program. A row's tokens depend on its own tokens,
its row id, the key and the stream only.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scope_jax.devices.mesh import constrain, current_mesh, put_rows, row_parts
from scope_jax.models.cache import (
    Cache,
    decode_cache,
    empty_cache,
    lay,
    map_arrays,
    stored,
    unstack_cache,
)
from scope_jax.models.config import ModelConfig
from scope_jax.models.decoder import decode_layers, decode_step, prefill, unroll_layers
from scope_jax.models.weights import Params, decode_layout
from scope_jax.rollout.sampling import SampleSpec, row_keys, sample
from scope_jax.types import Owner, Rollout

# Seats of one device that a batch whose rows have ended is not made smaller than.
SMALLEST_BATCH = 4


def from_prompts(
    prompts: Sequence[Sequence[int]], group: int, max_length: int, first_row: int = 0
) -> Rollout:
    """Rows of PROMPT tokens, each prompt `group` times in a row, in buffers of `max_length` slots.
    Row ids count up from `first_row`.

    Raises ValueError for an empty prompt or one that does not leave a free slot.
    """
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_length:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; 1 to {max_length - 1} fit a buffer of"
                f" {max_length}; drop it before"
            )
    length = np.repeat(np.array([len(p) for p in prompts], np.int32), group)
    tokens = np.zeros((len(length), max_length), np.int32)
    for row in range(len(length)):
        tokens[row, : length[row]] = prompts[row // group]
    inside = np.arange(max_length)[None] < length[:, None]
    arrays = dict(
        tokens_BT=tokens,
        owner_BT=np.where(inside, np.int8(Owner.PROMPT), np.int8(Owner.PAD)),
        logp_BT=np.zeros(tokens.shape, np.float32),
        length_B=length,
        prompt_length_B=length.copy(),
        finished_B=np.zeros(len(length), bool),
        row_id_B=np.arange(first_row, first_row + len(length), dtype=np.int32),
    )
    return Rollout(**put_rows(arrays))


def check_heads(config: ModelConfig, mesh: Mesh | None) -> None:
    """Raise ValueError where the tensor axis of a mesh does not divide the kv heads: every device
    would hold the whole cache, and they would exchange it."""
    if mesh is not None and config.num_kv_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh.tensor = {mesh.shape['tensor']} does not divide the {config.num_kv_heads} kv"
            f" heads of a model that writes; use a divisor of {config.num_kv_heads}, and split"
            " weights further with mesh.fsdp"
        )


def generate(
    params: Params,
    config: ModelConfig,
    rollout: Rollout,
    key: jax.Array,
    spec: SampleSpec,
    *,
    shared_prefix: int = 1,
    owner: Owner = Owner.POLICY,
    stream: int = 0,
    slots: int | None = None,
    limit_B: jax.Array | None = None,
    unrolled: bool | None = None,
) -> Rollout:
    """Continue every unfinished row until an end token, the stop table, `spec.max_new_tokens` or
    the buffer's end.

    shared_prefix: so many consecutive rows hold the same tokens and are prefilled once. owner: who
    is said to have written the new tokens. stream: separates the random numbers of several calls
    with one key. slots: rows decoded at once (default all); finished slots are refilled with
    waiting rows. limit_B: int32[B], a row's length never passes it. unrolled: form of the layer
    loop (default: unrolled on CPU, where reading a layer out of stacked arrays copies it; scanned
    elsewhere). The result does not depend on the last three.
    """
    if config.head != "lm":
        raise ValueError(
            f"this checkpoint has head {config.head!r} and cannot write text; an 'lm' head is"
            " needed"
        )
    check_heads(config, current_mesh())
    B, T = rollout.tokens_BT.shape
    if B % shared_prefix:
        raise ValueError(f"{B} rows are not a multiple of shared_prefix {shared_prefix}")
    slots = B if slots is None else min(slots, B)
    width = _bucket(int(jnp.max(rollout.length_B)), T)
    if unrolled is None:
        unrolled = unroll_layers()
    stop = None if spec.stop is None else jnp.asarray(spec.stop)
    limit = (
        jnp.full((B,), T, jnp.int32)
        if limit_B is None
        else jnp.minimum(limit_B, T).astype(jnp.int32)
    )
    ends = tuple(sorted({int(e) for e in spec.end_ids}))
    static = (
        spec.temperature,
        spec.top_p,
        spec.top_k,
        spec.max_new_tokens,
        ends,
        width,
        shared_prefix,
        slots,
        unrolled,
        spec.cache,
    )
    params = decode_layout(config, params, current_mesh())
    return _generate(
        params, rollout, key, jnp.int32(stream), jnp.int8(owner), limit, stop, config, static
    )


@functools.partial(jax.jit, static_argnames=("config", "static"), donate_argnames=())
def _generate(
    params: Params,
    rollout: Rollout,
    key: jax.Array,
    stream: jax.Array,
    owner: jax.Array,
    limit_B: jax.Array,
    stop: jax.Array | None,
    config: ModelConfig,
    static: tuple[Any, ...],
) -> Rollout:
    temperature, top_p, top_k, max_new, ends, width, shared, slots, unrolled, kind = static
    B, T = rollout.tokens_BT.shape
    key_B = row_keys(key, stream, rollout.row_id_B)
    draw = functools.partial(sample, temperature=temperature, top_p=top_p, top_k=top_k)
    start_B = rollout.length_B
    limit_B = jnp.minimum(limit_B, start_B + max_new)

    prefix_PW = constrain(rollout.tokens_BT[::shared, :width], "batch", None)
    first_PV, prefix = prefill(params, config, prefix_PW, start_B[::shared], unrolled=unrolled)
    prefix = stored(prefix.k, prefix.v, kind == "int8")
    token_B, logp_B = draw(
        jnp.repeat(first_PV, shared, axis=0) if shared > 1 else first_PV, key_B, start_B
    )
    open_B = ~rollout.finished_B & (start_B < limit_B)

    def after(
        token: jax.Array, state: jax.Array, length: jax.Array, limit: jax.Array
    ) -> tuple[jax.Array, ...]:
        """(ended, stop state, goes on) once `token` has been written and the row holds `length`
        tokens."""
        ended = functools.reduce(
            jnp.logical_or, [token == e for e in ends], jnp.zeros(token.shape, bool)
        )
        if stop is None:
            return ended, state, ~ended & (length < limit)
        state = stop[state, token]
        return ended, state, ~ended & (length < limit) & (state != stop.shape[0] - 1)

    zero_B = jnp.zeros((B,), jnp.int32)
    ended_B, state_B, goes_B = after(token_B, zero_B, start_B + 1, limit_B)
    at = jnp.arange(T)[None] == start_B[:, None]
    first = at & open_B[:, None]
    written = {
        "tokens": jnp.where(first, token_B[:, None], rollout.tokens_BT),
        "logp": jnp.where(first, logp_B[:, None], rollout.logp_BT),
        "length": start_B + open_B,
        "finished": rollout.finished_B | (ended_B & open_B),
    }
    waiting_B = goes_B & open_B
    cache_slots = min(T, -(-min(width + max_new, T) // 8) * 8)
    layers = decode_layers(params, config, unrolled)

    if slots == B:
        cache = decode_cache(prefix, shared, cache_slots, unrolled)
        seat = {"token": token_B, "state": state_B, "on": waiting_B}
        written, *_ = jax.lax.while_loop(
            lambda c: jnp.any(c[1]["on"]),
            lambda c: _advance(
                c[0], c[1], c[2], None, key_B, limit_B, params, layers, config, draw, after
            ),
            (written, seat, cache),
        )
    else:
        written = _decode_with_refill(
            written, token_B, state_B, waiting_B, prefix, shared, cache_slots, slots, unrolled,
            key_B, limit_B, params, layers, config, draw, after,
        )  # fmt: skip
    new = (jnp.arange(T)[None] >= start_B[:, None]) & (
        jnp.arange(T)[None] < written["length"][:, None]
    )
    return rollout.replace(
        tokens_BT=written["tokens"],
        logp_BT=written["logp"],
        owner_BT=jnp.where(new, owner, rollout.owner_BT),
        length_B=written["length"],
        finished_B=written["finished"],
    )


def _advance(
    written, seat, cache: Cache, row_S, key_B, limit_B, params, layers, config, draw, after
):  # type: ignore[no-untyped-def]
    """One token for every seat that is on. `row_S` says which row sits where (None: row = seat)."""
    pick = (lambda x: x) if row_S is None else (lambda x: x[row_S])
    length = pick(written["length"])
    logits, cache = decode_step(params, layers, config, cache, seat["token"], length - 1)
    token, logp = draw(logits, pick(key_B), length)
    on = seat["on"]
    ended, state, goes = after(token, seat["state"], length + 1, pick(limit_B))
    B, T = written["tokens"].shape
    if row_S is None:
        # Over rows by vmap, so that the partitioner sees that no row touches another.
        put = jax.vmap(lambda x, value, column: x.at[column].set(value, mode="drop"))
        column = jnp.where(on, length, T)
        written = {
            "tokens": put(written["tokens"], token, column),
            "logp": put(written["logp"], logp, column),
            "length": length + on,
            "finished": written["finished"] | (ended & on),
        }
    else:
        row = jnp.where(on, row_S, B)
        written = {
            "tokens": written["tokens"].at[row, length].set(token, mode="drop"),
            "logp": written["logp"].at[row, length].set(logp, mode="drop"),
            "length": written["length"].at[row].add(1, mode="drop"),
            "finished": (
                written["finished"].at[jnp.where(ended & on, row_S, B)].set(True, mode="drop")
            ),
        }
    seat = {
        "token": jnp.where(on, token, seat["token"]),
        "state": jnp.where(on, state, seat["state"]),
        "on": on & goes,
    }
    return written, seat, cache


def _decode_with_refill(
    written, token_B, state_B, waiting_B, prefix: Cache, shared, cache_slots, slots, unrolled,
    key_B, limit_B, params, layers, config, draw, after,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Decode B rows on `slots` seats. Seats are refilled once an eighth of them is free, so that
    the copy of prefix keys and values is paid once for several rows. When no row waits any more
    and half of the seats are empty, the batch is halved, twice at the most: each size is one more
    copy of the loop to compile."""
    B = token_B.shape[0]
    parts = row_parts(slots)
    sizes = [
        slots // n
        for n in (1, 2, 4)
        if slots % (n * parts) == 0 and (n == 1 or slots // (n * parts) >= SMALLEST_BATCH)
    ]
    batch = max(slots // 8, 1)
    # Rows in the order they will sit down: those with work to do first.
    order = jnp.argsort(~waiting_B, stable=True)
    total = jnp.sum(waiting_B)
    width = prefix.k.shape[3]
    prefixes = unstack_cache(prefix) if unrolled else prefix

    def refill(state):  # type: ignore[no-untyped-def]
        row_S, seat, cache, taken = state
        free = ~seat["on"]
        turn = taken + jnp.cumsum(free) - 1
        sits = free & (turn < total)
        row_S = jnp.where(sits, order[jnp.minimum(turn, B - 1)], row_S)
        seat = {
            "token": jnp.where(sits, token_B[row_S], seat["token"]),
            "state": jnp.where(sits, state_B[row_S], seat["state"]),
            "on": seat["on"] | sits,
        }

        def seated(c: jax.Array, p: jax.Array, *, rows: int, slots: int) -> jax.Array:
            """`c` with the prefix of its row in every seat that was taken; its axes `rows` and
            `slots`."""
            fresh = jnp.take(p, row_S // shared, axis=rows)
            mask = jnp.expand_dims(sits, tuple(a for a in range(c.ndim) if a != rows))
            begin = jax.lax.slice_in_dim(c, 0, width, axis=slots)
            return jax.lax.dynamic_update_slice_in_dim(
                c, jnp.where(mask, fresh, begin), 0, axis=slots
            )

        cache = map_arrays(seated, cache, prefixes)
        return row_S, seat, cache, jnp.minimum(taken + jnp.sum(free), total)

    def crowded(on_S: jax.Array, seats: int) -> jax.Array:
        """Whether the rows that are on need more than `seats` seats; each device counts its own."""
        return jnp.max(jnp.sum(on_S.reshape(parts, -1), axis=1)) > seats // parts

    def decode(written, row_S, seat, cache, goes_on):  # type: ignore[no-untyped-def]
        step = lambda c: _advance(
            c[0], c[1], c[2], row_S, key_B, limit_B, params, layers, config, draw, after
        )
        return jax.lax.while_loop(
            lambda c: jnp.any(c[1]["on"]) & goes_on(c[1]["on"]), step, (written, seat, cache)
        )

    def turn_on(carry):  # type: ignore[no-untyped-def]
        written, (row_S, seat, cache, taken) = carry
        row_S, seat, cache, taken = refill((row_S, seat, cache, taken))
        full_enough = lambda on: jnp.where(
            taken < total, jnp.sum(~on) < batch, crowded(on, drained)
        )
        written, seat, cache = decode(written, row_S, seat, cache, full_enough)
        return written, (row_S, seat, cache, taken)

    cache = empty_cache(prefix, slots, cache_slots, unrolled)
    nobody = jnp.zeros((slots,), jnp.int32)
    seat = {"token": nobody, "state": nobody, "on": jnp.zeros((slots,), bool)}
    drained = sizes[1] if len(sizes) > 1 else 0
    written, (row_S, seat, cache, _) = jax.lax.while_loop(
        lambda c: (c[1][3] < total) | crowded(c[1][1]["on"], drained),
        turn_on,
        (written, (nobody, seat, cache, jnp.int32(0))),
    )
    for size, smaller in itertools.pairwise([*sizes[1:], 0]):
        # Rows that are on first. Each device moves only its own rows.
        order = jnp.argsort(~seat["on"].reshape(parts, -1), axis=1, stable=True)[:, : size // parts]
        row_S, seat = jax.tree.map(lambda x, order=order: _keep_seats(x, order, 0), (row_S, seat))
        cache = map_arrays(lambda c, rows, slots, order=order: _keep_seats(c, order, rows), cache)
        written, seat, cache = decode(
            written, row_S, seat, cache, lambda on, smaller=smaller: crowded(on, smaller)
        )
    return written


def _keep_seats(x: jax.Array, order_PS: jax.Array, axis: int) -> jax.Array:
    """The seats of `x` (its dimension `axis`) named by `order_PS`: row p numbers seats within the
    p-th of P equal parts."""
    parts = order_PS.shape[0]
    split = x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
    taken = jax.vmap(
        lambda part, order: jnp.take(part, order, axis=axis), in_axes=(axis, 0), out_axes=axis
    )(split, order_PS)
    taken = taken.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return lay(taken, axis) if x.ndim - axis > 1 else constrain(taken, "batch")


def _bucket(length: int, buffer: int) -> int:
    """Prefill width: `length` rounded up so that few different programs are compiled."""
    step = max(16, 1 << max(buffer // 8 - 1, 0).bit_length())
    return min(-(-length // step) * step, buffer)
