"""Roundings of shapes, by hand."""

import pytest

from scope_jax.devices.shapes import (
    cache_positions,
    coarse_width,
    fine_width,
    part_size,
    prefill_width,
    row_count,
)


def test_coarse_widths():
    cases = {0: 8, 1: 8, 8: 8, 9: 16, 63: 64, 64: 64, 65: 80, 80: 80, 81: 96, 128: 128, 129: 160}
    cases |= {1000: 1024, 1025: 1280, 2900: 3072, 3000: 3072, 4096: 4096}
    assert {longest: coarse_width(longest) for longest in cases} == cases
    assert len({coarse_width(longest) for longest in range(1, 4097)}) == 32
    assert all(n <= coarse_width(n) <= max(1.25 * n + 8, 8) for n in range(1, 4097))


def test_fine_widths():
    assert [fine_width(n) for n in (0, 1, 8, 9, 100)] == [8, 8, 8, 16, 104]


@pytest.mark.parametrize("buffer", (24, 100, 640, 2176, 8192))
def test_few_prefill_widths(buffer: int):
    found = [prefill_width(n, buffer) for n in range(1, buffer + 1)]
    assert all(n <= width <= buffer for n, width in enumerate(found, 1))
    assert len(set(found)) <= 9


def test_positions_of_a_cache():
    assert cache_positions(16, 10, 100) == 32  # 26 positions, tiled by 8
    assert cache_positions(90, 30, 100) == 100  # no more than the rows have


def test_rows_in_quarters():
    assert [row_count(n, 64) for n in (0, 1, 16, 17, 33, 49, 64)] == [16, 16, 16, 32, 48, 64, 64]
    assert [row_count(n, 3) for n in (0, 1, 2, 3)] == [1, 1, 2, 3]


def test_sizes_of_parts():
    """(rows, at once, rows that share a prompt) -> rows of a part."""
    cases = {
        (64, None, 1): 64,
        (64, 100, 1): 64,
        (64, 16, 1): 16,
        (72, 64, 1): 36,
        (48, 20, 8): 16,
        (48, 4, 8): 8,
        (7, 4, 1): 1,
    }
    assert {case: part_size(*case) for case in cases} == cases
