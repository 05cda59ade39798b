"""One program, compiled and looked at: its memory, its roofline, its oddities."""

import dataclasses
import math
import re
import time
from pathlib import Path
from typing import Any

import jax

from scope_jax.fit import hlo, lint
from scope_jax.fit.programs import Plan, Planned
from scope_jax.fit.topology import Topology
from scope_jax.run import write_atomically

# More than this share of the limit is flagged: the runtime needs some too.
TIGHT = 0.95


@dataclasses.dataclass
class Measured:
    """One program. Bytes are of one device; `needed` = its own peak and what else is resident.
    seconds: of one run; the program runs `runs` times in a step (0: outside of steps). error: why
    it could not be compiled."""

    program: str
    fits: bool
    needed: float
    limit: float
    resident: float
    arguments: float = 0.0
    temporaries: float = 0.0
    flops: float = 0.0
    hbm: float = 0.0
    network: float = 0.0
    seconds: float = 0.0
    bound: str = ""
    runs: float = 1.0
    rows: int = 0
    decode_step: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens_per_s: float = 0.0
    mfu: float = 0.0
    compile_s: float = 0.0
    warnings: list[str] = dataclasses.field(default_factory=list)
    error: str = ""


def measure(
    program: Planned, made: Plan, topology: Topology, texts: Path | None = None
) -> Measured:
    """Compile one program and look at what came out."""
    limit = topology.limit
    resident = sum(
        size for name, size in made.held.items() if name not in program.uses | program.gone
    )
    line = Measured(program.name, False, 0.0, limit, resident, runs=program.runs, rows=program.rows)
    begun = time.monotonic()
    with jax.set_mesh(program.mesh):
        lowered = program.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = refused(str(error))
            if needed is None:
                raise
            line.needed, line.error = (
                needed + resident,
                "refused by the compiler: too large by itself",
            )
            line.compile_s = time.monotonic() - begun
            return line
    line.compile_s = time.monotonic() - begun
    memory = compiled.memory_analysis()
    line.arguments, line.temporaries = (
        float(memory.argument_size_in_bytes),
        float(memory.temp_size_in_bytes),
    )
    line.needed = float(memory.peak_memory_in_bytes) + resident
    line.fits = line.needed <= limit
    if texts is not None:
        texts.mkdir(parents=True, exist_ok=True)
        write_atomically(texts / f"{program.name}.txt", compiled.as_text())
    text = hlo.HloProgram(compiled.as_text())
    traffic = text.report()
    _time(line, program, text, traffic, topology)
    line.warnings = lint.lint(text, traffic, facts(program, made, memory))
    if line.fits and line.needed > TIGHT * limit:
        line.warnings.append(f"uses {line.needed / limit:.0%} of the limit ({topology.limit_is})")
    return line


def _time(
    line: Measured,
    program: Planned,
    text: hlo.HloProgram,
    traffic: hlo.HloReport,
    topology: Topology,
) -> None:
    """Fill in the roofline."""
    work, total = program.work, traffic.total
    line.seconds, line.bound = roofline(work.flops, total.hbm, total.network, topology)
    line.flops, line.hbm, line.network = work.flops, total.hbm, total.network
    if traffic.decode is not None and work.steps:
        line.decode_step = decode_step(program, text, traffic.decode, topology)
        step = line.decode_step["seconds"]
        line.flops += work.steps * work.step_flops
        line.hbm += work.steps * line.decode_step["hbm"]
        line.network += work.steps * line.decode_step["network"]
        if work.steps * step > line.seconds:
            line.bound = line.decode_step["bound"]
        line.seconds += work.steps * step
        line.tokens_per_s = work.tokens / line.seconds
    if work.useful and line.seconds:
        line.mfu = work.useful / (line.seconds * topology.devices * topology.chip.flops)


def decode_step(
    program: Planned, text: hlo.HloProgram, loop: hlo.Loop, topology: Topology
) -> dict[str, Any]:
    """One token for every row, where rows hold what they hold in the mean. hbm, network,
    collectives: with `parts`, the loops inside that end on data: {times: how often a step comes to
    it, trips: as many as read the live keys and values of all layers once, hbm: bytes of one trip}.
    kernels: {name of a custom call: {times, hbm}}, its runs in a step and their bytes; of one that
    is told how long rows are, and takes a layer's cache, the live part of that; of one that takes
    the experts of all layers, one layer's."""
    facts = program.facts
    stack = facts.layers * facts.experts
    cache, at_once = 2 * facts.layer_cache, sum(n * part.traffic.hbm for part, n in loop.parts)

    def trips(part: hlo.Loop) -> float:
        return max(facts.layers * facts.live * cache / at_once, 1.0) if at_once else 1.0

    moved = loop.trip(trips)
    kernels: dict[str, dict[str, float]] = {}
    for op, times, size, largest in text.kernels(loop.body):
        unread = 0.0
        if stack and largest == stack:
            unread = stack - facts.experts
        elif cache and size >= cache:
            unread = (1 - facts.live) * cache
        moved.hbm -= times * unread
        found = kernels.setdefault(op.target, {"times": 0, "hbm": 0.0})
        found["times"] += times
        found["hbm"] += times * (size - unread)
    seconds, bound = roofline(program.work.step_flops, moved.hbm, moved.network, topology)
    return {
        "seconds": seconds,
        "bound": bound,
        "steps": program.work.steps,
        "flops": program.work.step_flops,
        **dataclasses.asdict(moved),
        "parts": [
            {"times": times, "trips": trips(part), "hbm": part.traffic.hbm}
            for part, times in loop.parts
        ],
        "kernels": {name: found for name, found in kernels.items() if found["hbm"] > lint.SMALL},
    }


def facts(program: Planned, made: Plan, memory: Any) -> lint.Facts:
    """What the forms of a program are compared with."""
    state = made.held["weights"] + made.held["moments"] if program.aliased else 0.0
    return dataclasses.replace(
        program.facts, state=state, aliased=float(memory.alias_size_in_bytes)
    )


def refused(message: str) -> float | None:
    """Bytes that a program needs by the compiler's refusal, None where the message is about
    something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return max((float(number) * units[unit] for number, unit in sizes), default=math.inf)


def roofline(flops: float, hbm: float, network: float, topology: Topology) -> tuple[float, str]:
    """(seconds, what they are spent on) of `flops` on all devices, and `hbm` and `network` bytes
    on each."""
    parts = {
        "compute": flops / topology.devices / topology.chip.flops,
        "HBM": hbm / topology.chip.hbm_rate,
        "network": network / topology.axis_rate,
    }
    bound = max(parts, key=lambda name: parts[name])
    return parts[bound], bound
