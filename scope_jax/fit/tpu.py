"""TPU slices, compiled for with libtpu."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from scope_jax.devices.chips import Chip, chip

# What libtpu asks its surroundings for, answered, so that it starts where there is no TPU.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class TpuKind:
    """A torus of TPUs, `kind:AxB` or `kind:AxBxC`. limit: bytes that the compiler allows a program
    on a device (half a chip for tpu7x), as libtpu 0.0.42 refuses larger ones. link_rate: bytes per
    second of one link in one direction. dimensions: of the torus. wraps: the sides from which on
    its ends are joined. examples: some slices, for messages."""

    chip: Chip
    limit: float
    link_rate: float
    dimensions: int
    wraps: int
    examples: tuple[str, ...]
    limit_is: str = "what the compiler allows a program"

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a shape that no slice has."""
        some = ", ".join(self.examples)
        if len(shape) != self.dimensions:
            raise ValueError(
                f"--topology={name}: {self.chip.name} is a torus of {self.dimensions} dimensions;"
                f" expected kind:{'x'.join('ABC'[: self.dimensions])}, some of its slices: {some}"
            )
        if math.prod(shape) > 1 and any(side % 2 for side in shape[:2]):
            raise ValueError(
                f"--topology={name}: the first two sides are even (a host holds 2 x 2); some:"
                f" {some}"
            )

    def count(self, shape: tuple[int, ...]) -> int:
        """Devices: two a chip on tpu7x."""
        return math.prod(shape) * (2 if self.chip.name == "tpu7x" else 1)

    def axis_rate(self, shape: tuple[int, ...]) -> float:
        """Along one side of the torus: over both of a device's links; over one where no side is
        long enough to be a ring."""
        return self.link_rate * (2 if max(shape) >= self.wraps else 1)

    def devices(self, name: str, shape: tuple[int, ...]) -> list[Any]:
        """Sets libtpu's environment. Raises ValueError where libtpu is not installed, or does not
        know the slice."""
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(
                'libtpu is not installed, and it holds the compiler: pip install "scope_jax[fit]"'
                " (or: make fit)"
            )
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from jax.experimental import topologies

        more = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(shape) == 1 else {}
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
        except Exception as error:  # whatever libtpu raises
            reason = " ".join(str(error).split())
            raise ValueError(
                f"--topology={name}: libtpu does not know this slice ({reason[:200]})"
            ) from error
        return list(found.devices)


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Interconnect in one direction, published over all ports of a chip (4 on a 2-D, 6 on a 3-D torus):
# v5e 1600, v6e 3200, v5p and tpu7x 4800 Gbit/s (cloud.google.com/tpu/docs/ v5e, v6e, v5p, tpu7x).
# v4 and older ones have other rules for their two cores and are left out.
KINDS = {
    "v5e": TpuKind(chip("v5e"), int(15.75 * GIB), 1600e9 / 8 / 4, 2, 16, _FLAT),
    "v5p": TpuKind(
        chip("v5p"),
        int(95.73 * GIB),
        4800e9 / 8 / 6,
        3,
        4,
        ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8", "8x8x8"),
    ),
    "v6e": TpuKind(chip("v6e"), int(31.24 * GIB), 3200e9 / 8 / 4, 2, 16, _FLAT),
    "tpu7x": TpuKind(
        chip("tpu7x"),
        int(94.74 * GIB),
        4800e9 / 8 / 6,
        3,
        4,
        ("2x2x1", "2x2x2", "2x2x4", "4x4x4"),
    ),
}
