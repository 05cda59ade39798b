"""TPU slices that programs can be compiled for without having one, and what their makers publish
about them."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a kind (half a chip for tpu7x). hbm: bytes that the compiler allows a program,
    as libtpu 0.0.42 refuses larger ones. flops: bfloat16, per second. hbm_rate, link_rate: bytes
    per second, the latter of one link in one direction. dimensions: of the torus. wraps: the sides
    of a slice from which on its ends are joined. shapes: some slices, for messages."""

    hbm: int
    flops: float
    hbm_rate: float
    link_rate: float
    dimensions: int
    wraps: int
    shapes: tuple[str, ...]


# Published peaks per chip, bfloat16 | HBM | interconnect in one direction over all its ports (4 on
# a 2-D, 6 on a 3-D torus):
#   v5e    197 TFLOP/s |  819 GB/s | 1600 Gbit/s   cloud.google.com/tpu/docs/v5e
#   v5p    459 TFLOP/s | 2765 GB/s | 4800 Gbit/s   cloud.google.com/tpu/docs/v5p
#   v6e    918 TFLOP/s | 1638 GB/s | 3200 Gbit/s   cloud.google.com/tpu/docs/v6e and tpu7x
#   tpu7x 2307 TFLOP/s | 7380 GB/s | 4800 Gbit/s   cloud.google.com/tpu/docs/tpu7x
#                                                  (two devices a chip)
# v4 and older ones have other rules for their two cores and are left out.
CHIPS = {
    "v5e": Chip(
        int(15.75 * GIB),
        197e12,
        819e9,
        1600e9 / 8 / 4,
        2,
        16,
        ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    ),
    "v5p": Chip(
        int(95.73 * GIB),
        459e12,
        2765e9,
        4800e9 / 8 / 6,
        3,
        4,
        ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8", "8x8x8"),
    ),
    "v6e": Chip(
        int(31.24 * GIB),
        918e12,
        1638e9,
        3200e9 / 8 / 4,
        2,
        16,
        ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    ),
    "tpu7x": Chip(
        int(94.74 * GIB),
        2307e12 / 2,
        7380e9 / 2,
        4800e9 / 8 / 6,
        3,
        4,
        ("2x2x1", "2x2x2", "2x2x4", "4x4x4"),
    ),
}
# What libtpu asks its surroundings for, answered, so that it starts where there is no TPU.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `kind:AxB[xC]`."""

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * (2 if self.kind == "tpu7x" else 1)

    @property
    def axis_rate(self) -> float:
        """Bytes per second that a device receives in a collective along one side of the torus:
        over both of its links; over one where no side is long enough to be a ring."""
        return self.chip.link_rate * (2 if max(self.shape) >= self.chip.wraps else 1)


def parse_topology(name: str) -> Topology:
    """Topology of `kind:AxB[xC]`. Raises ValueError (one line, with what is known) for any other
    text."""
    known = "; ".join(f"{kind}:{', '.join(chip.shapes)}" for kind, chip in CHIPS.items())
    kind, _, sides = name.strip().lower().partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides):
        raise ValueError(f"--topology={name!r}: expected kind:AxB or kind:AxBxC; known: {known}")
    shape = tuple(int(side) for side in sides.split("x"))
    if len(shape) != chip.dimensions:
        raise ValueError(
            f"--topology={name}: {kind} is a torus of {chip.dimensions} dimensions; some of its"
            f" slices: {', '.join(chip.shapes)}"
        )
    single = math.prod(shape) == 1
    if not single and any(side % 2 for side in shape[:2]):
        raise ValueError(
            f"--topology={name}: the first two sides are even (a host holds 2 x 2); some:"
            f" {', '.join(chip.shapes)}"
        )
    return Topology(kind, shape)


def devices(topology: Topology) -> list[Any]:
    """The devices of a slice that is not there: programs can be compiled for them, nothing can
    run. Sets libtpu's environment.

    Raises ValueError where libtpu is not installed, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            'libtpu is not installed, and it holds the compiler: pip install "scope_jax[fit]" (or:'
            " make fit)"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    more = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(topology.shape) == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more)
    except Exception as error:  # whatever libtpu raises
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--topology={topology.name}: libtpu does not know this slice ({reason[:200]})"
        ) from error
    if len(found.devices) != topology.devices:
        raise ValueError(
            f"--topology={topology.name}: libtpu gives it {len(found.devices)} devices,"
            f" {topology.devices} expected"
        )
    return list(found.devices)
