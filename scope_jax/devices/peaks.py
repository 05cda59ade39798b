"""How fast the devices of this process can be at most: as published, or measured where nothing is.

Measured once per process, on all of its devices at once, since the CPU devices of a machine share
its memory. It takes about 0.3 seconds and 128 MiB of memory for that long.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scope_jax.devices.chips import chip_of
from scope_jax.devices.hosts import is_main

COPIED = 128 << 20  # bytes of all devices together: more than most caches hold
MEASURED_FOR = 0.08  # seconds, of each of the two


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Of one device. flops: of products, a second; published: bfloat16, dense. memory_rate: bytes
    per second between its memory and it."""

    kind: str  # as JAX calls it
    flops: float
    memory_rate: float
    source: Literal["published", "measured"]

    def __str__(self) -> str:
        rates = f"{self.memory_rate / 1e9:,.0f} GB/s, {self.flops / 1e9:,.0f} GFLOP/s"
        return f"{self.kind}: {rates} a device ({self.source})"


@functools.cache
def peaks() -> Peaks:
    """Those of the devices of this process, which are taken to be alike; said once."""
    kind = jax.local_devices()[0].device_kind
    chip = chip_of(kind)
    if chip is None:
        found = measured_peaks()
    else:
        found = Peaks(kind, chip.flops, chip.hbm_rate, "published")
    if is_main():
        print(f"peaks of {found}", flush=True)
    return found


def measured_peaks() -> Peaks:
    """Peaks by a stream copy and a matrix product: float32 on CPUs, bfloat16 elsewhere. The best of
    the rounds counts."""
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    mesh = Mesh(np.array(devices), ("devices",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("devices"))

    def ones(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jax.jit(lambda: jnp.ones((len(devices), *shape), dtype), out_shardings=split)()

    with jax.set_mesh(mesh):
        elements = COPIED // 4 // len(devices)
        # In place: a copy into fresh memory measures how fast the system hands out pages.
        copy = jax.jit(lambda x: x * 1.0001, donate_argnums=0)
        seconds = _fastest(copy, ones(elements))
        memory_rate = 2 * 4 * elements / seconds
        size, dtype = (768, jnp.float32) if on_cpu else (4096, jnp.bfloat16)
        product = jax.jit(lambda x: jax.lax.batch_matmul(x, x) * (1 / size), donate_argnums=0)
        seconds = _fastest(product, ones(size, size, dtype=dtype))
    return Peaks(devices[0].device_kind, 2.0 * size**3 / seconds, memory_rate, "measured")


def _fastest(run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Seconds of the fastest of several calls, each on the result of the one before."""
    x = jax.block_until_ready(run(x))  # compiled
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < MEASURED_FOR:
        start = time.perf_counter()
        x = jax.block_until_ready(run(x))
        times.append(time.perf_counter() - start)
    return min(times)
