"""Shapes in few sizes: each new shape is one more program to compile, so that sizes which follow
from the data are rounded here, each in the way that fits its use."""

# Widths are multiples of this: what a vector register or a tile of memory holds at the least.
WIDTH_STEP = 8


def round_up(count: int, step: int = WIDTH_STEP) -> int:
    """The next multiple of `step`."""
    return -(-count // step) * step


def fine_width(longest: int) -> int:
    """Positions for rows of up to `longest` tokens that are packed anew for each update: the next
    multiple of 8, at least 8. Rows of one run are of similar length, so that few sizes occur."""
    return max(round_up(longest), WIDTH_STEP)


def coarse_width(longest: int) -> int:
    """Positions for rows of any length: 8, 16, 24, 32, ..., 64, 80, 96, 112, 128, 160, ... Four
    sizes for each doubling, with at most a quarter of padding. For several batches of one step,
    whose lengths differ widely."""
    step = max(WIDTH_STEP, 1 << max((longest - 1).bit_length() - 3, 0))
    return max(round_up(longest, step), WIDTH_STEP)


def half_or_all(longest: int, most: int) -> int:
    """Positions for rows whose length is another in every step, at most `most`: half of that where
    it holds `longest`, else all. Two sizes, so that both can be compiled before a run begins; one
    where they would hardly differ."""
    half = round_up(-(-most // 2))
    return half if longest <= half <= most - WIDTH_STEP else most


def doubling_width(longest: int, most: int) -> int:
    """Positions for rows of unlike lengths, `most` for nearly all of them: a quarter, half or all
    of `most`, then its double and so on."""
    width = max(round_up(-(-most // 4)), WIDTH_STEP)
    while width < longest:
        width *= 2
    return width


def cache_positions(width: int, new_tokens: int, buffer: int) -> int:
    """Positions of a cache for prefixes of `width` and `new_tokens` more, in rows of `buffer`: the
    next multiple of 8, which is how the arrays are tiled, but no more than the rows have."""
    return min(buffer, round_up(min(width + new_tokens, buffer)))


def part_size(rows: int, at_once: int | None, shared: int = 1) -> int:
    """Rows of each of the equal parts in which `rows` rows are worked off: the largest divisor of
    `rows` up to `at_once` that is a multiple of `shared`; all where `at_once` is None, and
    `shared` where there is none. Equal parts share their programs."""
    if at_once is None:
        return rows
    sizes = [size for size in range(shared, min(at_once, rows) + 1, shared) if rows % size == 0]
    return max(sizes, default=shared)


def message_bytes(length: int) -> int:
    """Bytes of the array that carries a text between processes: a power of two, at least 64. Each
    size is a collective of its own to compile."""
    return max(1 << (length - 1).bit_length(), 64)
