"""Forms of code that are slow on a TPU, found in the compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator

from scope_jax.fit import hlo

MB = 1e6
# Smaller collectives in a decode step are latency, not traffic; gathers of a loss are looked at
# from larger ones on.
SMALL, LARGE = 1 * MB, 64 * MB
# Share of a program's traffic from which on a loop that is not over layers or micro-batches is
# named.
MUCH = 0.25
# A copy outside of loops is worth a word from here on: it holds memory while it is there.
COPY = 512 * MB


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is compared with. layer_cache: bytes of one layer's keys (or values) on a device. rows:
    decoded on a device at once. layers, passes: trips of the loops that an update is meant to
    have. state: bytes that are to be written over in place; aliased: bytes that are."""

    layer_cache: float = 0.0
    rows: int = 0
    layers: int = 0
    passes: int = 0
    state: float = 0.0
    aliased: float = 0.0


def lint(program: hlo.HloProgram, report: hlo.HloReport, facts: Facts) -> list[str]:
    """One line for each finding, the same ones together."""
    found = [*_entry(program), *_decode(program, report, facts), *_loops(program, report, facts)]
    if facts.aliased < 0.9 * facts.state:
        found.append(
            f"only {facts.aliased / MB:,.0f} of {facts.state / MB:,.0f} MB of the state are updated"
            " in place"
        )
    return [
        f"{text} ({found.count(text)} times)" if found.count(text) > 1 else text
        for text in dict.fromkeys(found)
    ]


def _entry(program: hlo.HloProgram) -> Iterator[str]:
    for op in program.parts[program.entry].values():
        if op.kind == "copy" and hlo.in_hbm(op.shape) > COPY:
            yield (
                f"once a run: a copy of {hlo.in_hbm(op.shape) / MB:,.0f} MB into another layout for"
                f" {_where(op)}"
            )


def _decode(program: hlo.HloProgram, report: hlo.HloReport, facts: Facts) -> Iterator[str]:
    loop = report.decode
    if loop is None:
        return
    for op in program.operations(loop.body):
        for held in program.collectives_of(op):
            if held.kind.startswith(("all-gather", "all-to-all")) and hlo.received(held) > SMALL:
                yield (
                    f"every token: {held.kind.removesuffix('-start')} of"
                    f" {hlo.received(held) / MB:,.1f} MB in {_where(held)}"
                )
        if op.kind == "copy" and facts.layer_cache and hlo.in_hbm(op.shape) >= facts.layer_cache:
            yield f"every token: a copy of {hlo.in_hbm(op.shape) / MB:,.0f} MB in {_where(op)}"
        if (
            op.kind == "while"
            and program.trips(op) == facts.rows
            and facts.rows not in (0, facts.layers)
        ):
            yield f"every token: a loop over the {facts.rows} rows of a device in {_where(op)}"


def _loops(program: hlo.HloProgram, report: hlo.HloReport, facts: Facts) -> Iterator[str]:
    for loop in report.loops:
        if loop.trips is None or not facts.passes:
            continue
        runs = math.prod(trips or 1 for trips in loop.path) * loop.trips
        share = runs * loop.traffic.hbm / report.total.hbm if report.total.hbm else 0.0
        if share > MUCH and loop.trips not in (facts.layers, facts.passes):
            around = _heaviest(program, loop)
            yield (
                f"{share:.0%} of the HBM traffic is in a loop of {loop.trips} trips, {runs:,} in"
                f" all, around {around}"
            )
        for op in program.parts[loop.body].values():
            for held in program.collectives_of(op):
                size, kind = hlo.received(held), held.kind.removesuffix("-start")
                if (
                    kind == "all-gather"
                    and size > LARGE
                    and loop.trips not in (facts.layers, facts.passes)
                ):
                    yield (
                        f"{loop.trips} times in a pass: all-gather of {size / MB:,.0f} MB in"
                        f" {_where(held)}"
                    )
                if kind == "collective-permute" and size > SMALL:
                    yield (
                        f"a ring of {loop.trips} permutes of {size / MB:,.1f} MB around a product"
                        f" in {_where(held)}"
                    )


def _heaviest(program: hlo.HloProgram, loop: hlo.Loop) -> str:
    """Where the heaviest operation of a loop's body comes from, of those that say it."""
    named = [
        op
        for op in program.parts[loop.body].values()
        if "op_name=" in op.rest and op.kind not in ("while", *hlo.FREE)
    ]
    return (
        _where(max(named, key=lambda op: program.cost(op, loop.body).hbm)) if named else loop.body
    )


def _where(op: hlo.Operation) -> str:
    name = re.search(r'op_name="([^"]*)"', op.rest)
    return "/".join(name[1].split("/")[-2:]) if name else op.name
