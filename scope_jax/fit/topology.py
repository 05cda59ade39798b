"""Machines that programs can be compiled for without having one: TPU slices and hosts of GPUs."""

import dataclasses
import re
from typing import Any, Protocol

from scope_jax.devices.chips import Chip
from scope_jax.fit import gpu, tpu

GIB = 1 << 30


class Kind(Protocol):
    """What is asked about a kind of device. `shape`: the numbers behind the colon."""

    @property
    def chip(self) -> Chip:
        """The published peaks of one device."""

    @property
    def limit(self) -> float:
        """Bytes that a program and what else is resident may take on one device."""

    @property
    def limit_is(self) -> str:
        """Who says so."""

    @property
    def examples(self) -> tuple[str, ...]:
        """Some shapes, for messages."""

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError (one line) for a shape that is none of this kind."""

    def count(self, shape: tuple[int, ...]) -> int:
        """Number of devices."""
        raise NotImplementedError

    def axis_rate(self, shape: tuple[int, ...]) -> float:
        """Bytes per second that a device receives in a collective along one axis of the mesh."""
        raise NotImplementedError

    def devices(self, name: str, shape: tuple[int, ...]) -> list[Any]:
        """The devices, to compile for. Raises ValueError (one line) where the compiler is not
        installed or refuses."""
        raise NotImplementedError


KINDS: dict[str, Kind] = {**tpu.KINDS, **gpu.KINDS}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine: `kind:AxB[xC]` for a TPU slice, `kind:N` or `kind:HxN` for hosts with GPUs."""

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        return KINDS[self.kind].chip

    @property
    def limit(self) -> float:
        """Bytes that a program and what else is resident may take on one device."""
        return KINDS[self.kind].limit

    @property
    def limit_is(self) -> str:
        return KINDS[self.kind].limit_is

    @property
    def devices(self) -> int:
        return KINDS[self.kind].count(self.shape)

    @property
    def axis_rate(self) -> float:
        """Bytes per second that a device receives in a collective along one axis."""
        return KINDS[self.kind].axis_rate(self.shape)

    @property
    def on_gpu(self) -> bool:
        return self.kind in gpu.KINDS


def parse_topology(name: str) -> Topology:
    """Topology of `kind:AxB[xC]` or `kind:N`. Raises ValueError (one line, with what is known) for
    any other text."""
    known = "; ".join(f"{kind}:{', '.join(found.examples)}" for kind, found in KINDS.items())
    kind, _, sides = name.strip().lower().partition(":")
    found = KINDS.get(kind)
    if found is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", sides):
        raise ValueError(
            f"--topology={name!r}: expected kind:AxB or kind:AxBxC of TPUs, kind:N of GPUs; known:"
            f" {known}"
        )
    shape = tuple(int(side) for side in sides.split("x"))
    found.check(name, shape)
    return Topology(kind, shape)


def devices(topology: Topology) -> list[Any]:
    """The devices of a machine that is not there: programs can be compiled for them, nothing can
    run.

    Raises ValueError (one line) where the compiler is not installed, or does not know the machine.
    """
    found = KINDS[topology.kind].devices(topology.name, topology.shape)
    if len(found) != topology.devices:
        raise ValueError(
            f"--topology={topology.name}: the compiler gives it {len(found)} devices,"
            f" {topology.devices} expected"
        )
    return found
