"""Seats that rows wait for: who sits down where, and what is written, by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import PLAIN, SAMPLE, TOKENIZER, bigram, text

from scope_jax.models.cache import Cache, in_form
from scope_jax.rollout import Generator, from_prompts
from scope_jax.rollout.decoding import DecodeState, Seats, Written
from scope_jax.rollout.refill import _batch_sizes, _crowded, _halve, _Queue
from scope_jax.types import Rollout

# ---- whole rows: a writer that counts up to 9 and ends

STARTS = "9182736450"  # the last character of each prompt
WRITTEN = ["123456789"[int(c) :] + "#" for c in STARTS]


@functools.cache
def counted(
    seats: int | None, scan: bool = False, shared: int = 1, limited: bool = False
) -> Rollout:
    """Rows written on so many seats; `limited`: a row has room for 3 tokens behind its prompt."""
    writer = bigram("0123456789#")
    writer = Generator(writer.params, dataclasses.replace(PLAIN, scan_layers=scan))
    rows = from_prompts([TOKENIZER.encode("+" + c) for c in STARTS], shared, 16)
    limit = rows.prompt_length_B + 3 if limited else None
    sampling = dataclasses.replace(SAMPLE, seats=seats)
    key = jax.random.key(1)
    return writer.extend(rows, key, sampling, shared_prefix=shared, limit_B=limit)


@pytest.mark.parametrize(("seats", "scan"), [(1, False), (3, False), (3, True), (8, False)])
def test_every_row_gets_a_seat_and_is_written_to_its_end(seats, scan):
    rows = counted(seats, scan)
    assert [text(rows, b) for b in range(10)] == WRITTEN
    assert rows.finished_B.all() and rows.row_id_B.tolist() == list(range(10))
    # This writer is certain of each token.
    np.testing.assert_allclose(rows.logp_BT, 0, atol=1e-6)


def test_a_row_at_its_limit_gives_up_its_seat():
    rows = counted(3, limited=True)
    assert [text(rows, b) for b in range(10)] == [row[:3] for row in WRITTEN]
    assert rows.finished_B.tolist() == [len(row) <= 3 for row in WRITTEN]


def test_rows_of_a_group_find_the_prefix_that_they_share():
    rows = counted(3, shared=2)
    assert [text(rows, b) for b in range(20)] == [row for row in WRITTEN for _ in range(2)]


# ---- the queue


def seats_of(row: list[int], token: list[int], stop: list[int], on: list[bool]) -> Seats:
    integers = (jnp.array(x, jnp.int32) for x in (row, token, stop))
    return Seats(*integers, jnp.array(on))


def state_of(seats: Seats, cache: Cache) -> DecodeState:
    nothing = jnp.zeros((6, 4))
    return DecodeState(
        Written(nothing.astype(jnp.int32), nothing, jnp.zeros(6, jnp.int32), jnp.zeros(6, bool)),
        seats,
        cache,
    )


def stacked(rows: int, positions: int, first: float = 0.0) -> Cache:
    """One layer, one head, two numbers: each row's keys hold its number (from `first`), values ten
    times that."""
    number = jnp.arange(rows) + first
    keys = jnp.broadcast_to(number[None, :, None, None, None], (1, rows, 1, positions, 2))
    return Cache(keys, 10 * keys)


def queue(prefixes: Cache, shared: int) -> _Queue:
    """Six rows, of which the first and the fourth have nothing to do; each row's token is its
    number and 10, its stop state its number and 20."""
    numbers = list(range(6))
    on = [False, True, True, False, True, True]
    first = seats_of(numbers, [n + 10 for n in numbers], [n + 20 for n in numbers], on)
    return _Queue(
        order_B=jnp.argsort(~first.on_R, stable=True),
        total=jnp.sum(first.on_R),
        first=first,
        prefixes=prefixes,
        shared=shared,
        width=3,
    )


@pytest.mark.parametrize("unrolled", [False, True])
def test_rows_sit_down_in_order_with_their_prefixes(unrolled):
    prefixes, cache = stacked(3, 3, first=1), stacked(4, 5, first=-4)
    if unrolled:
        prefixes, cache = in_form("transposed", prefixes), in_form("transposed", cache)
    seats = seats_of([9, 9, 9, 9], [1, 1, 1, 1], [2, 2, 2, 2], [False, True, False, True])
    state, taken = queue(prefixes, shared=2).seat(state_of(seats, cache), jnp.int32(0))
    # The first two rows that go on are 1 and 2; they take the free seats 0 and 2.
    assert state.seats.row_R.tolist() == [1, 9, 2, 9] and int(taken) == 2
    assert state.seats.token_R.tolist() == [11, 1, 12, 1]
    assert state.seats.stop_state_R.tolist() == [21, 2, 22, 2]
    assert state.seats.on_R.all()
    # Row 1 has the prefix of rows 0 and 1, row 2 that of rows 2 and 3; what lies behind a prefix,
    # and what is in the other seats, stays.
    values = state.cache.v[0][:, 0, :, 0]
    assert values.tolist() == [
        [10, 10, 10, -40, -40],
        [-30] * 5,
        [20, 20, 20, -20, -20],
        [-10] * 5,
    ]
    keys = state.cache.k[0][:, 0, 0, :] if unrolled else state.cache.k[0][:, 0, :, 0]
    assert (10 * keys).tolist() == values.tolist()


def test_a_seat_that_nobody_waits_for_stays_empty():
    seats = seats_of([1, 2, 9, 9], [1, 1, 1, 1], [2, 2, 2, 2], [False, True, False, False])
    state, taken = queue(stacked(6, 3), 1).seat(state_of(seats, stacked(4, 5)), jnp.int32(3))
    assert int(taken) == 4  # all that have work to do
    assert state.seats.row_R.tolist() == [5, 2, 9, 9]
    assert state.seats.on_R.tolist() == [True, True, False, False]
    again, taken = queue(stacked(6, 3), 1).seat(state, taken)
    assert int(taken) == 4 and again.seats.on_R.tolist() == [True, True, False, False]


# ---- fewer seats for the last rows


@pytest.mark.parametrize(
    ("seats", "parts", "sizes"),
    [
        (16, 1, [16, 8, 4]),
        (64, 1, [64, 32, 16]),  # halved twice at most
        (8, 1, [8, 4]),  # 2 would be too few
        (6, 1, [6]),
        (36, 1, [36, 18, 9]),
        (34, 1, [34, 17]),
        (16, 2, [16, 8]),  # 4 on each device
        (32, 8, [32]),
        (64, 8, [64, 32]),
    ],
)
def test_sizes_of_the_batch(seats, parts, sizes):
    assert _batch_sizes(seats, parts) == sizes


def test_a_batch_is_crowded_where_one_device_is():
    on = jnp.array([True, True, True, False, False, False, True, False])
    assert [bool(_crowded(on, seats, 1)) for seats in (3, 4, 5)] == [True, False, False]
    # Two devices: three of four seats are taken on the first.
    assert [bool(_crowded(on, seats, 2)) for seats in (4, 6)] == [True, False]
    assert not _crowded(jnp.zeros(4, bool), 0, 1)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize(
    ("parts", "kept"),
    [(1, [1, 3, 6, 0]), (2, [1, 3, 6, 4])],  # each device keeps two of its own
)
def test_halving_keeps_the_rows_that_go_on_and_their_keys(unrolled, parts, kept):
    on = np.isin(np.arange(8), [1, 3, 6])
    cache = stacked(8, 5)
    seats = seats_of([10 + n for n in range(8)], list(range(8)), [0] * 8, on.tolist())
    state = _halve(state_of(seats, in_form("transposed", cache) if unrolled else cache), 4, parts)
    assert state.seats.row_R.tolist() == [10 + n for n in kept]
    assert state.seats.token_R.tolist() == kept
    assert state.seats.on_R.tolist() == [n in (1, 3, 6) for n in kept]
    assert state.cache.positions == 5
    keys = state.cache.k[0]
    assert keys[:, 0, 0, 0].tolist() == kept and len(keys) == 4
    assert (state.cache.v[0] == 10 * (jnp.swapaxes(keys, 2, 3) if unrolled else keys)).all()
