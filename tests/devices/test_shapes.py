"""Roundings of shapes, by hand."""

import pytest

from scope_jax.devices.shapes import (
    cache_positions,
    coarse_width,
    doubling_width,
    fine_width,
    half_or_all,
    part_size,
)


def test_coarse_widths():
    cases = {0: 8, 1: 8, 8: 8, 9: 16, 63: 64, 64: 64, 65: 80, 80: 80, 81: 96, 128: 128, 129: 160}
    cases |= {1000: 1024, 1025: 1280, 2900: 3072, 3000: 3072, 4096: 4096}
    assert {longest: coarse_width(longest) for longest in cases} == cases
    assert len({coarse_width(longest) for longest in range(1, 4097)}) == 32
    assert all(n <= coarse_width(n) <= max(1.25 * n + 8, 8) for n in range(1, 4097))


def test_fine_widths():
    assert [fine_width(n) for n in (0, 1, 8, 9, 100)] == [8, 8, 8, 16, 104]


@pytest.mark.parametrize("most", (1, 8, 17, 24, 100, 640, 2176, 8192))
def test_half_or_all(most: int):
    found = [half_or_all(n, most) for n in range(1, most + 1)]
    assert all(n <= width <= most for n, width in enumerate(found, 1))
    assert len(set(found)) <= 2 and found[-1] == most
    assert [half_or_all(n, 100) for n in (0, 50, 56, 57, 100)] == [56, 56, 56, 100, 100]


def test_doubling_widths():
    cases = {0: 32, 1: 32, 32: 32, 33: 64, 64: 64, 65: 128, 128: 128, 129: 256, 1000: 1024}
    assert {longest: doubling_width(longest, 128) for longest in cases} == cases
    assert [doubling_width(n, 10) for n in (1, 9, 17)] == [8, 16, 32]


def test_positions_of_a_cache():
    assert cache_positions(16, 10, 100) == 32  # 26 positions, tiled by 8
    assert cache_positions(90, 30, 100) == 100  # no more than the rows have


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
