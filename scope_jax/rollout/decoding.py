"""Decoding inside one compiled program: its static description, its state, and one step of it.

Axis letters, beside those of the project: R seats, the rows that are decoded at once (R = B, seat r
holding row r, unless seats are refilled).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp

from scope_jax.devices.mesh import parts, row_parts
from scope_jax.devices.shapes import cache_positions, round_up
from scope_jax.models.attention import Blocks
from scope_jax.models.cache import Cache, FormName
from scope_jax.models.config import ModelConfig
from scope_jax.models.decoder import decode_step
from scope_jax.models.weights import Params
from scope_jax.rollout.sampling import SampleSpec, sample
from scope_jax.types import Rollout

# A cache of more than two blocks is read by blocks of this many positions.
BLOCK = 256
# Seats of a device are divided into lanes, each read as far as its longest row goes: at most so
# many, with so many bytes of keys and values in a lane's block (less would be overhead).
LANES, LANE_BYTES = 16, 2 << 20


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """Everything that one program is compiled for, beside the model and the rows' shapes."""

    temperature: float
    top_p: float
    top_k: int | None
    max_new_tokens: int
    end_ids: tuple[int, ...]  # in order, each once
    cache: Literal["auto", "int8"]
    width: int  # positions of the prefill
    positions: int  # of a row in the cache
    form: FormName  # of the cache
    block: int | None  # positions that are read at once; None: all of them
    merged: bool  # projections of the same input are one product
    shared_prefix: int  # consecutive rows with the same prefix, which is prefilled once
    seats: int  # R


def decode_spec(
    sampling: SampleSpec,
    *,
    rows: int,
    buffer: int,
    longest: int,
    shared_prefix: int,
    form: FormName = "stacked",
    on_gpu: bool = False,
) -> DecodeSpec:
    """The spec for `rows` rows of `buffer` positions, with at most `longest` tokens in each at the
    start. form: from `decode_form`. on_gpu: projections of the same input are merged, and the cache
    is not read by blocks, as each trip of such a loop would wait for the host."""
    width = min(round_up(longest), buffer)
    positions = cache_positions(width, sampling.max_new_tokens, buffer)
    by_blocks = not on_gpu and positions > 2 * BLOCK
    return DecodeSpec(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        end_ids=tuple(sorted({int(token) for token in sampling.end_ids})),
        cache=sampling.cache,
        width=width,
        positions=round_up(positions, BLOCK) if by_blocks else positions,
        form=form,
        block=BLOCK if by_blocks else None,
        merged=on_gpu,
        shared_prefix=shared_prefix,
        seats=rows if sampling.seats is None else min(sampling.seats, rows),
    )


@flax.struct.dataclass
class Request:
    """The arrays of one call: rows, and how each of them is continued."""

    rollout: Rollout
    key: jax.Array  # random key of the call
    stream: jax.Array  # int32[]; folded into the key
    owner: jax.Array  # int8[]; who writes the new tokens
    limit_B: jax.Array  # int32; a row never grows longer
    stop: jax.Array | None  # int32[states, V]; a row pauses in the last state


@flax.struct.dataclass
class Written:
    """The rows so far."""

    tokens_BT: jax.Array  # int32
    logp_BT: jax.Array  # float32
    length_B: jax.Array  # int32
    finished_B: jax.Array  # bool; an end token was written


@flax.struct.dataclass
class Seats:
    """The rows that are being decoded."""

    row_R: jax.Array | None  # int32; which row sits here; None: row r in seat r
    token_R: jax.Array  # int32; the row's last token, which the model has not been fed yet
    stop_state_R: jax.Array  # int32; state of the stop table after that token
    on_R: jax.Array  # bool; the row goes on

    def take(self, x_B: jax.Array) -> jax.Array:
        """The values of the rows that sit here."""
        return x_B if self.row_R is None else x_B[self.row_R]


@flax.struct.dataclass
class DecodeState:
    """What a step of the loop changes."""

    written: Written
    seats: Seats
    cache: Cache  # keys and values of the rows that sit, R rows


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """What every step of the loop uses. Made inside the program, of traced arrays."""

    params: Params
    layers: Any  # from `decode_layers`
    config: ModelConfig
    spec: DecodeSpec
    key_B: jax.Array  # random key of each row
    limit_B: jax.Array  # int32; as in Request, and no more than max_new_tokens from the start
    stop: jax.Array | None

    def draw(
        self, logits_RV: jax.Array, key_R: jax.Array, length_R: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(token, its log-prob) for rows of these lengths."""
        spec = self.spec
        return sample(logits_RV, key_R, length_R, spec.temperature, spec.top_p, spec.top_k)

    def after(
        self, token: jax.Array, stop_state: jax.Array, length: jax.Array, limit: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(ended, stop state, goes on) once `token` is written as token number `length`."""
        ended = functools.reduce(
            jnp.logical_or,
            [token == end for end in self.spec.end_ids],
            jnp.zeros(token.shape, bool),
        )
        if self.stop is None:
            return ended, stop_state, ~ended & (length < limit)
        stop_state = self.stop[stop_state, token]
        stopped = stop_state == self.stop.shape[0] - 1
        return ended, stop_state, ~ended & (length < limit) & ~stopped

    def blocks(self, seats: int) -> Blocks | None:
        """How the cache of `seats` seats is read."""
        if self.spec.block is None:
            return None
        config, devices = self.config, row_parts(seats)
        own, heads = seats // devices, config.num_kv_heads
        heads //= parts(("kv_heads",), (heads,))
        size = 1 if self.spec.cache == "int8" else self.params["final_norm"].dtype.itemsize
        row = 2 * self.spec.block * heads * config.head_size * size
        lanes = [n for n in range(1, LANES + 1) if own % n == 0 and own // n * row >= LANE_BYTES]
        return Blocks(self.spec.block, max(lanes, default=1), devices)

    def step(self, state: DecodeState) -> DecodeState:
        """One token for every seat that is on."""
        written, seats = state.written, state.seats
        length = seats.take(written.length_B)
        logits, cache = decode_step(
            self.params,
            self.layers,
            self.config,
            state.cache,
            seats.token_R,
            length - 1,
            seats.on_R,
            self.blocks(seats.on_R.shape[0]),
        )
        token, logp = self.draw(logits, seats.take(self.key_B), length)
        ended, stop_state, goes_on = self.after(
            token, seats.stop_state_R, length + 1, seats.take(self.limit_B)
        )
        written = _write(written, seats, length, token, logp, ended)
        seats = Seats(
            row_R=seats.row_R,
            token_R=jnp.where(seats.on_R, token, seats.token_R),
            stop_state_R=jnp.where(seats.on_R, stop_state, seats.stop_state_R),
            on_R=seats.on_R & goes_on,
        )
        return DecodeState(written, seats, cache)

    def run(
        self, state: DecodeState, goes_on: Callable[[jax.Array], jax.Array] | None = None
    ) -> DecodeState:
        """Steps while any seat is on and `goes_on(on_R)`."""

        def condition(state: DecodeState) -> jax.Array:
            on_R = state.seats.on_R
            return jnp.any(on_R) if goes_on is None else jnp.any(on_R) & goes_on(on_R)

        return jax.lax.while_loop(condition, self.step, state)


def _write(
    written: Written,
    seats: Seats,
    length: jax.Array,
    token: jax.Array,
    logp: jax.Array,
    ended: jax.Array,
) -> Written:
    """The rows with one more token in each seat that is on."""
    B, T = written.tokens_BT.shape
    on = seats.on_R
    if seats.row_R is None:
        # Over rows by vmap, so that the partitioner sees that no row touches another.
        put = jax.vmap(lambda row, value, at: row.at[at].set(value, mode="drop"))
        at = jnp.where(on, length, T)
        return Written(
            tokens_BT=put(written.tokens_BT, token, at),
            logp_BT=put(written.logp_BT, logp, at),
            length_B=length + on,
            finished_B=written.finished_B | (ended & on),
        )
    row = jnp.where(on, seats.row_R, B)
    finished = jnp.where(ended & on, seats.row_R, B)
    return Written(
        tokens_BT=written.tokens_BT.at[row, length].set(token, mode="drop"),
        logp_BT=written.logp_BT.at[row, length].set(logp, mode="drop"),
        length_B=written.length_B.at[row].add(1, mode="drop"),
        finished_B=written.finished_B.at[finished].set(True, mode="drop"),
    )
