"""Decoding with seats that change hands: one whose row has ended is given the next waiting row, and
where a long cache is read by blocks, seats are put in the order of their rows' lengths; all in one
compiled program."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import constrain, row_parts
from scope_jax.models.cache import (
    Cache,
    decode_cache,
    empty_cache,
    in_form,
    laid_out,
    map_arrays,
)
from scope_jax.rollout.decoding import Decoder, DecodeState, Seats, Written

# Smallest decode batch per device.
SMALLEST_BATCH = 4


def decode_with_refill(
    decoder: Decoder, written: Written, first: Seats, prefixes: Cache
) -> Written:
    """Decode all rows on `decoder.spec.seats` seats. `first`: every row after its first token, as
    if each had a seat. `prefixes`: their keys and values, stacked.

    Seats are refilled once an eighth of them is free, so that the copy of prefix keys and values is
    paid once for several rows; where the cache is read by blocks, they are then put in the order of
    their lengths, so that a lane holds like ones. When no row waits any more and half of the seats
    are empty, the batch of refilled seats is halved, at most twice: each size is one more copy of
    the loop to compile.
    """
    spec = decoder.spec
    parts = row_parts(spec.seats)
    sorts, everyone = spec.block is not None, spec.seats == first.on_R.shape[0]
    # With a seat for each row, ended ones cost next to nothing where the cache is read by blocks,
    # and half of the cache beside all of it would be more memory than the rows were given.
    sizes = [spec.seats] if everyone else _batch_sizes(spec.seats, parts)
    smaller = sizes[1] if len(sizes) > 1 else 0
    few = max(spec.seats // 8, 1)
    queue = _Queue(
        # Rows with work to do first.
        order_B=jnp.argsort(~first.on_R, stable=True),
        total=jnp.sum(first.on_R),
        first=first,
        prefixes=in_form(spec.form, prefixes),
        shared=spec.shared_prefix,
        width=spec.width,
    )

    def refill_and_decode(carry: tuple[DecodeState, jax.Array]) -> tuple[DecodeState, jax.Array]:
        state, taken = carry if everyone else queue.seat(*carry)
        if sorts:
            state = _in_order(state, parts)
        free = jnp.sum(~state.seats.on_R)

        def full_enough(on_R: jax.Array) -> jax.Array:
            rest = _crowded(on_R, smaller, parts)
            if sorts:
                rest = rest & (jnp.sum(~on_R) - free < few)
            return jnp.where(taken < queue.total, jnp.sum(~on_R) < few, rest)

        return decoder.run(state, full_enough), taken

    def rows_wait(carry: tuple[DecodeState, jax.Array]) -> jax.Array:
        state, taken = carry
        return (taken < queue.total) | _crowded(state.seats.on_R, smaller, parts)

    number = jnp.arange(spec.seats, dtype=jnp.int32)
    if everyone:
        cache = decode_cache(spec.form, prefixes, spec.shared_prefix, spec.positions)
        state, taken = (
            DecodeState(written, dataclasses.replace(first, row_R=number), cache),
            queue.total,
        )
    else:
        nobody = jnp.zeros_like(number)
        seats = Seats(nobody, nobody, nobody, jnp.zeros((spec.seats,), bool))
        cache = empty_cache(spec.form, prefixes, spec.seats, spec.positions)
        state, taken = DecodeState(written, seats, cache), jnp.int32(0)
    state, _ = jax.lax.while_loop(rows_wait, refill_and_decode, (state, taken))
    for size, next_size in itertools.pairwise([*sizes[1:], 0]):

        def needed(on_R: jax.Array, next_size: int = next_size) -> jax.Array:
            return _crowded(on_R, next_size, parts)

        state = decoder.run(_halve(state, size, parts), needed)
    return state.written


@dataclasses.dataclass(frozen=True, eq=False)
class _Queue:
    """The rows, in the order in which they sit down."""

    order_B: jax.Array  # int32; row numbers
    total: jax.Array  # int32[]; how many of them have work to do
    first: Seats  # every row after its first token
    prefixes: Cache  # in the form of the decode cache
    shared: int  # consecutive rows with the same prefix
    width: int  # positions of a prefix

    def seat(self, state: DecodeState, taken: jax.Array) -> tuple[DecodeState, jax.Array]:
        """Rows number `taken` and following in the free seats: (state, number of the next row)."""
        old = state.seats
        assert old.row_R is not None
        free_R = ~old.on_R
        turn_R = taken + jnp.cumsum(free_R) - 1
        new_R = free_R & (turn_R < self.total)
        last = self.order_B.shape[0] - 1
        row_R = jnp.where(new_R, self.order_B[jnp.minimum(turn_R, last)], old.row_R)
        seats = Seats(
            row_R=row_R,
            token_R=jnp.where(new_R, self.first.token_R[row_R], old.token_R),
            stop_state_R=jnp.where(new_R, self.first.stop_state_R[row_R], old.stop_state_R),
            on_R=old.on_R | new_R,
        )

        def with_prefixes(c: jax.Array, p: jax.Array, rows: int, positions: int) -> jax.Array:
            """An array of the cache, with the prefix of its row in every seat that was taken."""
            prefix = jnp.take(p, row_R // self.shared, axis=rows)
            mask = jnp.expand_dims(new_R, tuple(a for a in range(c.ndim) if a != rows))
            begin = jax.lax.slice_in_dim(c, 0, self.width, axis=positions)
            return jax.lax.dynamic_update_slice_in_dim(
                c, jnp.where(mask, prefix, begin), 0, axis=positions
            )

        cache = map_arrays(with_prefixes, state.cache, self.prefixes)
        taken = jnp.minimum(taken + jnp.sum(free_R), self.total)
        return DecodeState(state.written, seats, cache), taken


def _batch_sizes(seats: int, parts: int) -> list[int]:
    """All seats, half and a quarter of them, as far as each of `parts` devices has equally many and
    not too few."""
    return [
        seats // n
        for n in (1, 2, 4)
        if seats % (n * parts) == 0 and (n == 1 or seats // (n * parts) >= SMALLEST_BATCH)
    ]


def _crowded(on_R: jax.Array, seats: int, parts: int) -> jax.Array:
    """Whether the rows that are on need more than `seats` seats; each device counts its own."""
    return jnp.max(jnp.sum(on_R.reshape(parts, -1), axis=1)) > seats // parts


def _halve(state: DecodeState, size: int, parts: int) -> DecodeState:
    """The state with `size` seats left, those that are on first. Each device moves only its own."""
    on_PR = state.seats.on_R.reshape(parts, -1)
    return _move(state, jnp.argsort(~on_PR, axis=1, stable=True)[:, : size // parts])


def _in_order(state: DecodeState, parts: int) -> DecodeState:
    """The state with seats in the order of their rows' lengths, those that are off last. Each
    device moves only its own."""
    seats = state.seats
    length = jnp.where(seats.on_R, seats.take(state.written.length_B), jnp.iinfo(jnp.int32).max)
    return _move(state, jnp.argsort(length.reshape(parts, -1), axis=1, stable=True))


def _move(state: DecodeState, order_PR: jax.Array) -> DecodeState:
    """The seats named by `order_PR`, see `_keep_seats`."""
    seats = jax.tree.map(lambda x: constrain(_keep_seats(x, order_PR, 0), "batch"), state.seats)
    stacked = not state.cache.axes.apart

    def move(c: jax.Array, rows: int, positions: int) -> jax.Array:
        if not stacked:
            return _keep_seats(c, order_PR, rows)
        if order_PR.size < c.shape[rows]:
            return jax.lax.map(lambda layer: _keep_seats(layer, order_PR, rows - 1), c)
        # Layer by layer and in place: a second cache beside the first may be more than there is
        # room for.
        return jax.lax.fori_loop(
            0, len(c), lambda n, c: c.at[n].set(_keep_seats(c[n], order_PR, rows - 1)), c
        )

    return DecodeState(state.written, seats, laid_out(map_arrays(move, state.cache)))


def _keep_seats(x: jax.Array, order_PR: jax.Array, axis: int) -> jax.Array:
    """The seats of `x` (its dimension `axis`) named by `order_PR`: row p numbers seats within the
    p-th of P equal parts."""
    parts = order_PR.shape[0]
    split = x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
    kept = jax.vmap(
        lambda part, order: jnp.take(part, order, axis=axis), in_axes=(axis, 0), out_axes=axis
    )(split, order_PR)
    return kept.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
