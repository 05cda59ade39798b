"""The largest micro-batch and number of seats that fit."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from scope_jax.configuration import train_config
from scope_jax.devices.mesh import row_devices
from scope_jax.fit.measure import Measured, measure
from scope_jax.fit.programs import Models, mesh_of, plan
from scope_jax.fit.topology import Topology

# Times the config's own batch.
MORE = (2, 4, 8, 16)


def find_largest(
    config: ConfigDict,
    found: Models,
    slice_devices: list[Any],
    topology: Topology,
    lines: Sequence[Measured],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """{program: {rows, setting, needed}} for the update's micro-batch and the rollout's seats: the
    peak is taken to grow in a line with the rows, through two compiled sizes; what comes out is
    compiled, and made smaller until it fits. All compiles are of the full depth: layers are
    scanned, so that fewer of them would not compile faster. With `training.remat` auto the
    micro-batch is that of `layer`."""
    answer: dict[str, Any] = {}
    for name in ("update", "rollout"):
        line = next((line for line in lines if line.program == name), None)
        if line is None:
            continue
        sizes = choices(config, name, slice_devices)
        compiled: dict[int, float] = {} if line.error else {line.rows: line.needed}
        if name == "update" and config.training.remat == "auto":
            # What more rows end with; a line goes through sizes of one kind only.
            compiled = {}

        def needed(rows: int, name: str = name, compiled: dict[int, float] = compiled) -> float:
            if rows not in compiled:
                changed = resized(config, name, rows)
                if changed.training.remat == "auto":
                    changed.training.remat = "layer"
                settings = train_config(changed)
                made = plan(settings, found, slice_devices, topology.chip.hbm)
                say(f"compiling {name} with {rows} rows")
                compiled[rows] = measure(
                    next(p for p in made.programs if p.name == name), made, topology
                ).needed
            return compiled[rows]

        answer[name] = search(sizes, line.rows, topology.limit, needed)
    return answer


def choices(config: ConfigDict, name: str, slice_devices: list[Any]) -> list[int]:
    """Rows of a micro-batch, or seats, that every device has the same number of: shares of the
    config's batch, and its multiples with as many times the prompts."""
    parts = row_devices(mesh_of(train_config(config), slice_devices))
    whole = _whole(config, name)
    shares = [size for size in range(parts, whole + 1, parts) if whole % size == 0]
    return shares + [whole * times for times in MORE if whole % parts == 0]


def _whole(config: ConfigDict, name: str) -> int:
    """The most rows that the config's batch gives a micro-batch (those of a length bucket), or
    seats."""
    if name == "rollout":
        return config.rollout.prompts * config.rollout.group
    rows = config.rollout.prompts * train_config(config).rows_per_group
    rows //= config.training.mini_batches
    return rows // config.training.length_buckets


def resized(config: ConfigDict, name: str, rows: int) -> ConfigDict:
    """The config with `rows` rows in a micro-batch, or `rows` seats; with more prompts where they
    are too few."""
    changed = config.copy_and_resolve_references()
    changed.rollout.prompts *= max(rows // _whole(config, name), 1)
    if name == "rollout":
        changed.rollout.seats = rows
    else:
        changed.training.micro_batches = config.training.length_buckets * max(
            _whole(config, name) // rows, 1
        )
    return changed


def search(
    sizes: Sequence[int], now: int, limit: float, needed: Callable[[int], float]
) -> dict[str, Any]:
    """{rows, needed, compiled}: the largest of `sizes` for which `needed` stays within `limit`
    (rows 0: none does). `needed` is asked seldom: first at `now` and its neighbour below, then
    where a line through the two says that the limit lies."""
    if not sizes:
        return {"rows": 0, "needed": None}
    first = now if now in sizes else max([size for size in sizes if size <= now], default=sizes[0])
    place = sizes.index(first)
    other = sizes[place - 1] if place else sizes[min(1, len(sizes) - 1)]
    slope = (needed(first) - needed(other)) / (first - other) if first != other else 0.0
    slope = slope if math.isfinite(slope) else 0.0
    reach = (
        [size for size in sizes if needed(first) + slope * (size - first) <= limit]
        if slope > 0
        else list(sizes)
    )
    for size in sorted(reach or sizes[:1], reverse=True):
        if needed(size) <= limit:
            return {"rows": size, "needed": needed(size)}
    return {"rows": 0, "needed": needed(sizes[0])}
