"""Sequences of problems, and the order in which they are used."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from scope_jax.tasks.domain import Problem


@dataclasses.dataclass(frozen=True)
class Problems(Sequence[Problem]):
    """A sequence of problems, read by index when asked for.

    `skipped` counts malformed lines left out when it was read; `name` says where it came from.
    """

    name: str
    size: int
    get: Callable[[int], Problem]
    skipped: int = 0

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.get(i) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"{self.name}: index {index} of {self.size} problems")
        return self.get(int(index) % self.size)

    def take(self, indices: Iterable[int]) -> list[Problem]:
        """The problems at these indices, in this order."""
        return [self[int(index)] for index in indices]

    def draw(self, seed: int, position: int, count: int) -> list[Problem]:
        """The `count` problems that come next in training when `position` have been used before;
        see `batch_indices`."""
        return self.take(batch_indices(seed, position, count, self.size))

    @classmethod
    def from_list(
        cls, problems: Sequence[Problem], name: str = "list", skipped: int = 0
    ) -> "Problems":
        """Problems that are in memory already."""
        return Problems(name, len(problems), tuple(problems).__getitem__, skipped)

    @classmethod
    def from_tfds(
        cls,
        directory: str | pathlib.Path,
        split: str = "train",
        fields: Mapping[str, str] | None = None,
    ) -> "Problems":
        """A split of a prepared TFDS data set in array_record format, such as
        `data_dir/signed_terms/<config>/1.0.0`.

        `fields` names the data set's features for "id", "prompt", "answer" and "solution" where
        they differ; a data set without an id gets "split-index". TensorFlow is not used. Raises
        FileNotFoundError and ValueError.
        """
        from scope_jax.data.sources import tfds_problems

        return tfds_problems(directory, split, fields)

    @classmethod
    def from_file(cls, path: str | pathlib.Path, **settings: Any) -> "Problems":
        """Problems from one file, such as a .jsonl (one object a line) or a .parquet file;
        `settings` are those of `tasks.Source` (`fields`, `where`, `answer_from`, `max_malformed`,
        ...), errors those of `tasks.read_source`."""
        from scope_jax.data.sources import Source, read_source

        return read_source(Source(path=str(path), **settings))


def batch_indices(seed: int, position: int, batch: int, size: int) -> np.ndarray:
    """int64[batch]: which problems come next when `position` problems have been used before.

    Each epoch goes once through all `size` problems in an order that is a pure function of (seed,
    epoch); a batch may lie across the boundary of two epochs. To resume, remember `position` only.
    The same on every host and for ever.
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
