"""Sequences of problems, and the order in which they are used."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import overload

import numpy as np

from scope_jax.tasks.domain import Problem


@dataclasses.dataclass(frozen=True)
class Problems(Sequence[Problem]):
    """A sequence of problems, each read when it is asked for."""

    name: str  # where they come from
    size: int
    get: Callable[[int], Problem]
    skipped: int = 0  # malformed lines that were left out

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self.get(i) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"{self.name}: index {index} of {self.size} problems")
        return self.get(int(index) % self.size)

    def take(self, indices: Iterable[int]) -> list[Problem]:
        """The problems at these indices, in this order."""
        return [self[int(index)] for index in indices]

    def draw(self, seed: int, position: int, count: int) -> list[Problem]:
        """The `count` problems that follow the first `position` in training; see
        `batch_indices`."""
        return self.take(batch_indices(seed, position, count, self.size))

    @classmethod
    def from_list(
        cls, problems: Sequence[Problem], name: str = "list", skipped: int = 0
    ) -> "Problems":
        """Problems that are in memory already."""
        return Problems(name, len(problems), tuple(problems).__getitem__, skipped)


class Distinct:
    """Problems collected one by one, each id once: results are kept by id, so two problems with one
    id would be taken for the same."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.repeats = 0
        self._seen: dict[str, tuple[Problem, str]] = {}

    def add(self, problem: Problem, place: str) -> bool:
        """Whether the problem is a new one; one that is equal in id, prompt and answer to one
        before it is counted in `repeats`. `place`: where it stands, for the message. Raises
        ValueError for another problem under the same id."""
        first, where = self._seen.setdefault(problem.id, (problem, place))
        if first is problem:
            self.found.append(problem)
            return True
        if (first.prompt, first.answer) != (problem.prompt, problem.answer):
            raise ValueError(
                f"{place}: id {problem.id!r} is that of another problem at {where}: expected one"
                " problem per id"
            )
        self.repeats += 1
        return False

    def say_repeats(self, path: str) -> None:
        """A warning with the count, where rows were left out."""
        if self.repeats:
            warnings.warn(
                f"{path}: rows that repeat an earlier one in id, prompt and answer, left out:"
                f" {self.repeats}; problems left: {len(self.found)}",
                stacklevel=3,
            )


def batch_indices(seed: int, position: int, batch: int, size: int) -> np.ndarray:
    """int64[batch]: indices of the problems that follow the first `position` ones.

    Each epoch visits all `size` problems once, in an order that is a pure function of (seed,
    epoch); a batch may cross into the next epoch. `position` is all that a resumed run needs. The
    order never changes, on any host.
    """
    if size < 1 or batch < 0 or position < 0:
        raise ValueError(
            f"batch_indices: position {position}, batch {batch}, size {size}: expected size of at"
            " least 1"
        )
    positions = np.arange(position, position + batch, dtype=np.int64)
    epochs, places = np.divmod(positions, size)
    result = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = epoch_order(seed, int(epoch), size)[places[here]]
    return result


@functools.lru_cache(maxsize=16)
def epoch_order(seed: int, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """int64[size], read-only: the order of an epoch. `stream` tells apart the sources of a
    mixture."""
    # Sorting raw bits, because numpy may change Generator.permutation between releases, but not
    # the bits.
    bits = np.random.Philox(
        np.random.SeedSequence([seed, epoch, stream] if stream else [seed, epoch])
    )
    order = np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order
