"""The table of random streams: its numbers are those of all runs so far, and no two collide."""

import itertools

import numpy as np

from scope_jax import streams
from scope_jax.streams import Host, host_rng, request_seed, round_seed, step_seed


def test_the_numbers_of_the_table():
    assert (streams.ROLLOUT, streams.TEACHER, streams.TAIL) == (0, 1, 2)
    assert (streams.DEMONSTRATION, streams.MONTE_CARLO, streams.ORDER) == (2**19, 2**20, 2**21)
    assert (streams.SELF, streams.CANDIDATE) == (2**22, 2**23)
    assert streams.LORA == 2**31 - 1
    assert [int(stream) for stream in Host] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_streams_of_a_step_do_not_overlap():
    attempts, rounds = 2**19 - 2, 2**20
    parts = [
        range(streams.ROLLOUT, streams.ROLLOUT + 1),
        range(streams.TEACHER, streams.TEACHER + 1),
        range(streams.TAIL, streams.TAIL + attempts),
        range(streams.DEMONSTRATION, streams.DEMONSTRATION + 1),
        range(streams.MONTE_CARLO, streams.MONTE_CARLO + rounds),
        range(streams.ORDER, streams.ORDER + 1),
        range(streams.SELF, streams.SELF + attempts),
        range(streams.CANDIDATE, streams.CANDIDATE + attempts),
    ]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(parts))


def test_host_streams_are_seeds_with_their_number():
    want = np.random.default_rng([9, 4, 17]).random(3)
    np.testing.assert_array_equal(host_rng(9, Host.PROGRAM_SOLUTION, 17).random(3), want)
    np.testing.assert_array_equal(
        host_rng(9, Host.NOISE).random(3), np.random.default_rng([9, 3]).random(3)
    )
    assert step_seed(3, 5) == int(np.random.SeedSequence([3, 5]).generate_state(1)[0])
    wanted = int(np.random.default_rng([9, 9, 2]).integers(2**32))
    assert round_seed(9, 2) == wanted and len({9, *(round_seed(9, n) for n in range(1, 4))}) == 4
    assert request_seed(3, Host.ENDPOINT_SOLUTION, 2) == int(
        np.random.SeedSequence([3, 5, 2]).generate_state(1)[0] >> 1
    )
    assert 0 <= request_seed(3, 1) < 2**31
