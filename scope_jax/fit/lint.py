"""Forms of code that are slow on a TPU or GPU, found in the compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterator

from scope_jax.fit import hlo
from scope_jax.fit.hlo_text import Operation, elements_bytes, in_hbm, received

MB = 1e6
# Smaller collectives in a decode step are latency, not traffic; gathers of a loss are looked at
# from larger ones on.
SMALL, LARGE = 1 * MB, 64 * MB
# Share of a program's traffic from which on a loop that is not over layers or micro-batches is
# named.
MUCH = 0.25
# A copy outside of loops is worth a word from here on: it holds memory while it is there.
COPY = 512 * MB
# What a computation that only moves its operands is made of.
MOVES = frozenset(
    [
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape"),
        *("copy", "transpose", "slice", "dynamic-slice", "gather", "concatenate", "pad"),
        *("dynamic-update-slice", "broadcast", "convert"),
    ]
)
# Those of them that move something by themselves, outside of a fusion. A copy that is started
# (`copy-start`) brings something to the chip or takes it away from there, except on GPUs.
ALONE = frozenset(
    [
        *("copy", "copy-start", "transpose", "slice", "dynamic-slice", "concatenate", "pad"),
        *("dynamic-update-slice", "convert"),
    ]
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is compared with. layer_cache: bytes of one layer's keys (or values) on a device; live:
    the share of them that a decode step reads, in the mean. layer_weights: bytes of a layer's
    largest matrix there; experts: of one of the three matrices of its experts. rows: decoded on a
    device at once. layers, passes: trips of the loops that an update is meant to have. state: bytes
    that are to be written over in place; aliased: bytes that are."""

    layer_cache: float = 0.0
    live: float = 1.0
    layer_weights: float = 0.0
    experts: float = 0.0
    rows: int = 0
    layers: int = 0
    passes: int = 0
    state: float = 0.0
    aliased: float = 0.0


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy in the decode loop: of `size` bytes, `times` times a token. where: the place in the
    code that it comes from."""

    size: float
    times: int
    where: str


def decode_copies(program: hlo.HloProgram, report: hlo.HloReport, at_least: float) -> list[Copy]:
    """What the decode loop writes to memory without having computed anything: copies, slices that
    are written out (a layer's weights or cache, taken out of the stack), casts, of `at_least`
    bytes or more. The texts of TPUs and GPUs are read alike; what is brought to the chip's own
    memory is no copy."""
    if report.decode is None:
        return []
    found = []
    for op, part, times in program.operations(report.decode.body):
        size = _moved(program, op, part, at_least)
        if size >= at_least:
            found.append(Copy(size, times, _where(op, program)))
    return found


def _moved(program: hlo.HloProgram, op: Operation, part: str, at_least: float) -> float:
    """Bytes that an operation writes to memory as it finds them elsewhere; 0 where it computes
    something of a hundredth of `at_least` or more."""
    if op.kind in ALONE:
        if op.kind == "dynamic-update-slice":
            update = program.parts[part].get(op.operands[1])
            return min(in_hbm(op.shape), elements_bytes(update.shape)) if update else 0.0
        if op.kind == "copy-start":
            return min(in_hbm(op.result), in_hbm(op.shape) - in_hbm(op.result))
        return in_hbm(op.result)
    held = program.parts.get(op.fused or "", {}).values()
    if not held or any(
        inner.kind not in MOVES and elements_bytes(inner.shape) > at_least / 100 for inner in held
    ):
        return 0.0
    # What is made of constants alone is no copy.
    return program.written(op) if program.read(op, part) > at_least / 100 else 0.0


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
        if op.kind == "copy" and in_hbm(op.shape) > COPY:
            yield (
                f"once a run: a copy of {in_hbm(op.shape) / MB:,.0f} MB into another layout for"
                f" {_where(op)}"
            )


def _decode(program: hlo.HloProgram, report: hlo.HloReport, facts: Facts) -> Iterator[str]:
    loop = report.decode
    if loop is None:
        return
    for op, _, _ in program.operations(loop.body):
        for held in program.collectives_of(op):
            if held.kind.startswith(("all-gather", "all-to-all")) and received(held) > SMALL:
                yield (
                    f"every token: {held.kind.removesuffix('-start')} of"
                    f" {received(held) / MB:,.1f} MB in {_where(held)}"
                )
        if (
            op.kind == "while"
            and program.trips(op) == facts.rows
            and facts.rows not in (0, facts.layers)
        ):
            yield f"every token: a loop over the {facts.rows} rows of a device in {_where(op)}"
    sizes = [size for size in (facts.layer_cache, facts.layer_weights) if size]
    for copy in decode_copies(program, report, max(min(sizes), SMALL)) if sizes else ():
        what = "a copy" if copy.times == 1 else f"{copy.times} copies"
        yield f"every token: {what} of {copy.size / MB:,.0f} MB in {copy.where}"


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
                size, kind = received(held), held.kind.removesuffix("-start")
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


def _where(op: Operation, program: hlo.HloProgram | None = None) -> str:
    """The end of the operation's place in the code; of a fusion that says none, of its result."""
    name = re.search(r'op_name="([^"]*)"', op.rest)
    if name is None and program is not None:
        held = program.parts.get(op.fused or "", {}).values()
        names = [re.search(r'op_name="([^"]*)"', inner.rest) for inner in held if inner.root]
        name = next((found for found in names if found), None)
    return "/".join(name[1].split("/")[-2:]) if name else op.name
