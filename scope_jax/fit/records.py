"""What a plan of a run's programs is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from scope_jax import models
from scope_jax.fit.lint import Facts
from scope_jax.models.costs import Work


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """One compiled program. lower: gives what can be compiled; called with `mesh` set. uses: names
    of `held` that are its arguments. gone: names that are not alive meanwhile. runs: how often it
    runs in a step. rows: what its memory grows with."""

    name: str
    mesh: Mesh
    lower: Callable[[], Any]
    work: Work
    uses: frozenset[str]
    gone: frozenset[str] = frozenset()
    runs: float = 1.0
    rows: int = 0
    aliased: bool = False  # whether it is to write its result over its arguments
    facts: Facts = dataclasses.field(default_factory=Facts)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """held: bytes of one device that stay between programs, by name. notes: what was taken for
    granted."""

    held: dict[str, float]
    programs: list[Planned]
    notes: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """A model that writes tokens, in shapes."""

    config: models.ModelConfig
    weights: models.Params  # laid out for decoding
    mesh: Mesh
    uses: frozenset[str]  # names of `Plan.held` that are its arguments


@dataclasses.dataclass(frozen=True)
class RowCounts:
    """The rows of one call of `rollout.generate`."""

    count: int
    buffer: int  # positions of a row
    longest: int  # tokens of the longest row at the start
    shared: int = 1  # consecutive rows with the same prefix
