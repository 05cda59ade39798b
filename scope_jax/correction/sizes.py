"""Batches of a few fixed sizes, so that few programs are compiled."""

import numpy as np


def bucket(count: int, most: int) -> int:
    """`count` rounded up to a quarter, half, three quarters or all of `most`."""
    quarter = max(-(-most // 4), 1)
    return max(-(-count // quarter) * quarter, quarter)


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """int32[size]: row numbers, filled up with row 0."""
    index = np.zeros(size, np.int32)
    index[: len(rows)] = rows
    return index
