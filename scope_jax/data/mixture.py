"""Problems from several sources, each with its weight, in an order that is a pure function of seed
and position.

The sources take turns by a fixed schedule: after n problems, each has given its weight's share of
n, rounded up or down. So the mixture of any stretch of training is the one asked for, and
`position` is all that a resumed run needs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from scope_jax.data.problems import Problems, epoch_order
from scope_jax.tasks.domain import Problem

# Longest schedule, in turns; weights that need a longer one are rounded.
_LONGEST = 10_000


@dataclasses.dataclass(frozen=True)
class Mixture(Problems):
    """Sources one after another as a sequence, mixed by weight in `draw`. Made by `mix`."""

    sizes: tuple[int, ...] = ()  # problems of each source
    turns: tuple[int, ...] = ()  # of each source in one round of the schedule

    def draw(self, seed: int, position: int, count: int) -> list[Problem]:
        """The `count` problems that come after the first `position`."""
        sources, items = mixture_indices(seed, position, count, self.sizes, self.turns)
        starts = np.cumsum((0, *self.sizes[:-1]))
        return self.take(starts[sources] + items)


def mix(sources: dict[str, Problems], weights: dict[str, float]) -> Problems:
    """One set of training problems from named sources: the source itself where it is alone, else a
    mixture whose ids are "name/id". The order of the names does not matter."""
    names = sorted(sources)
    if len(names) == 1:
        return sources[names[0]]
    parts = [sources[name] for name in names]
    sizes = tuple(len(part) for part in parts)
    ends = np.cumsum(sizes)

    def get(index: int) -> Problem:
        part = int(np.searchsorted(ends, index, side="right"))
        problem = parts[part][index - int(ends[part]) + sizes[part]]
        return dataclasses.replace(problem, id=f"{names[part]}/{problem.id}")

    skipped = sum(part.skipped for part in parts)
    return Mixture(
        " + ".join(names),
        int(ends[-1]),
        get,
        skipped,
        sizes,
        turns_of([weights[name] for name in names]),
    )


def turns_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights, as small as possible: (0.5, 0.25, 0.25) -> (2, 1,
    1). Exact unless their sum would pass 10,000; then rounded to that sum, at least 1 each."""
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    whole = math.lcm(*(share.denominator for share in shares))
    if whole <= _LONGEST:
        return tuple(int(share * whole) for share in shares)
    turns = [max(1, int(share * _LONGEST)) for share in shares]
    by_remainder = sorted(range(len(turns)), key=lambda i: (turns[i] - shares[i] * _LONGEST, i))
    for i in by_remainder[: max(0, _LONGEST - sum(turns))]:
        turns[i] += 1
    return tuple(turns)


def mixture_indices(
    seed: int,
    position: int,
    count: int,
    sizes: Sequence[int],
    turns: Sequence[int],
    order_of: Callable[..., np.ndarray] = epoch_order,
) -> tuple[np.ndarray, np.ndarray]:
    """(source int64[count], item int64[count]) of the problems that follow the first `position`.

    Each source has epochs of its own, each in an order that is a pure function of (seed, source,
    epoch) and does not depend on the other sources: `order_of(seed, epoch, size, stream=source)`.
    """
    if min(sizes) < 1 or position < 0 or count < 0:
        raise ValueError(
            f"mixture_indices: position {position}, count {count}, sizes {tuple(sizes)}: expected"
            " no empty source"
        )
    order, before = _schedule(tuple(turns))
    rounds, places = np.divmod(np.arange(position, position + count, dtype=np.int64), len(order))
    sources = order[places]
    used = rounds * np.asarray(turns, np.int64)[sources] + before[places, sources]
    items = np.empty(count, np.int64)
    for source in np.unique(sources):
        here = np.flatnonzero(sources == source)
        epochs, offsets = np.divmod(used[here], sizes[source])
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            whole = order_of(seed, int(epoch), sizes[source], stream=int(source))
            items[here[chosen]] = whole[offsets[chosen]]
    return sources, items


@functools.lru_cache(maxsize=8)
def _schedule(turns: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(source of each turn of a round int64[N], turns that each source has had before it int64[N,
    sources]).

    The k-th turn of a source with share w has the window [floor((k-1)/w), ceil(k/w)). Earliest
    deadline first meets all windows (the shares add up to 1), so no source is ever a whole turn
    ahead of its share or behind it.
    """
    total = sum(turns)
    order = np.empty(total, np.int64)
    before = np.zeros((total, len(turns)), np.int64)
    had = [0] * len(turns)
    for turn in range(total):
        before[turn] = had
        open_now = [
            i for i, share in enumerate(turns) if had[i] < share and had[i] * total // share <= turn
        ]
        chosen = min(open_now, key=lambda i: (-(-(had[i] + 1) * total // turns[i]), i))
        order[turn] = chosen
        had[chosen] += 1
    order.flags.writeable = before.flags.writeable = False
    return order, before
