"""Reading a compiled program: bytes between HBM and the chip, and bytes over the network.

The compiler's own `cost_analysis()` counts the body of a loop once and mixes on-chip with HBM
traffic (and says nothing at all for GPUs), so the optimised HLO text is read instead. Counted are
operands and results of each operation that do not live on the chip (memory space `S(..)`), a slice
as the slice, an update in place as the update, a loop's body as often as it runs. A loop that ends
on data (decoding) has no number of trips: it is reported by itself, per trip, and so is one that
stands inside it (attention over the positions that are filled). Padding of tiles is not counted.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from scope_jax.fit.hlo_text import (
    Operation,
    arrays,
    elements_bytes,
    in_hbm,
    read_program,
    received,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that move nothing, or are counted where they start.
FREE = frozenset(
    [
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "opt-barrier",
        "domain",
    ]
)


@dataclasses.dataclass
class Traffic:
    """Bytes of one device: `hbm` read and written, `network` received; `collectives`: how many
    run."""

    hbm: float = 0.0
    network: float = 0.0
    collectives: float = 0.0

    def add(self, other: "Traffic", times: float = 1.0) -> None:
        self.hbm += other.hbm * times
        self.network += other.network * times
        self.collectives += other.collectives * times


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A loop of a program. trips: None where it ends on data (an open loop). path: the trips of the
    loops around it. traffic: of one trip, without the open loops inside. parts: (loop, how often
    one trip comes to it) for open loops that are a part of the trip's work, such as a layer's
    attention. around_open: whether there are other open loops inside."""

    body: str
    trips: int | None
    path: tuple[int | None, ...]
    traffic: Traffic
    parts: tuple[tuple["Loop", float], ...] = ()
    around_open: bool = False

    def trip(self, trips: Callable[["Loop"], float]) -> Traffic:
        """Of one trip, with `trips(part)` trips of each part whenever it is come to."""
        total = dataclasses.replace(self.traffic)
        for part, times in self.parts:
            total.add(part.trip(trips), times * trips(part))
        return total


@dataclasses.dataclass(frozen=True, eq=False)
class HloReport:
    """total: the program without its open loops. loops: all of them, outer ones first."""

    total: Traffic
    loops: list[Loop]

    @property
    def decode(self) -> Loop | None:
        """The open loop that makes a token for every row: the one with the most traffic in a trip,
        of those that have no open loop inside but parts of their own, and are no parts."""
        parts = {part.body for loop in self.loops for part, _ in loop.parts}
        inner = [
            loop
            for loop in self.loops
            if loop.trips is None
            and loop.traffic.hbm
            and not loop.around_open
            and loop.body not in parts
        ]
        return max(inner, key=lambda loop: loop.traffic.hbm, default=None)


class Kernel(NamedTuple):
    """A custom call: how often it runs, bytes of one run with all of its operands, and of its
    largest operand."""

    op: Operation
    times: int
    size: float
    largest: float


# Open loops inside a computation, and how often it comes to each.
_Open = list[tuple[Loop, float]]


class HloProgram:
    """A compiled program, read from its text."""

    def __init__(self, text: str):
        self.parts, self.entry = read_program(text)

    # ---- what moves

    def report(self) -> HloReport:
        loops: list[Loop] = []
        return HloReport(self._walk(self.entry, (), loops)[0], loops)

    def _walk(
        self, name: str, path: tuple[int | None, ...], loops: list[Loop]
    ) -> tuple[Traffic, _Open]:
        """(traffic of a computation without open loops, the open loops that it comes to)."""
        total, inside = Traffic(), _Open()
        for op in self.parts[name].values():
            moved, opened, times = Traffic(), _Open(), 1
            if op.kind == "while":
                moved, opened, times = self._loop(op, path, loops)
            elif op.kind == "conditional":
                branches = [self._walk(branch, path, loops) for branch in op.branches]
                moved, opened = max(branches, key=_weight, default=(Traffic(), _Open()))
            elif op.kind == "call":
                called = op.called("to_apply") or op.called("calls") or ""
                moved, opened = self._walk(called, path, loops)
            else:
                moved = self.cost(op, name)
            total.add(moved, times)
            inside += [(loop, often * times) for loop, often in opened]
        return total, inside

    def _loop(
        self, op: Operation, path: tuple[int | None, ...], loops: list[Loop]
    ) -> tuple[Traffic, _Open, int]:
        """(traffic of a trip, open loops that a trip comes to, trips) of a loop, as those around it
        see it; it is put into `loops`, before those inside."""
        body, trips = op.called("body") or "", self.trips(op)
        place = len(loops)
        inside, opened = self._walk(body, (*path, trips), loops)
        parts = tuple(_parts(opened)) if trips is None else ()
        loop = Loop(body, trips, path, inside, parts, around_open=len(parts) < len(opened))
        loops.insert(place, loop)
        if trips is None:
            return Traffic(), [(loop, 1)], 1
        return inside, opened, trips

    def cost(self, op: Operation, part: str) -> Traffic:
        """Of one operation of a computation, without loops and calls."""
        if (
            op.kind in FREE
            or op.kind.endswith(("-done", "-update"))
            or op.name.startswith("async-collective-done")
        ):
            return Traffic()
        moved = Traffic(hbm=self._hbm(op, part))
        for collective in self.collectives_of(op):
            moved.network += received(collective)
            moved.collectives += 1
        return moved

    def collectives_of(self, op: Operation) -> Iterator[Operation]:
        """The collectives that `op` is or holds, each where it starts. A chain of fusions goes on
        with one that was started."""
        if op.kind.removesuffix("-start") in COLLECTIVES:
            yield op
        elif inner := op.fused:
            starts = not op.name.startswith("async-collective-done")
            for held in self.parts.get(inner, {}).values():
                going_on = "chain_id" in held.rest and "async-collective-start" not in op.name
                if held.kind.removesuffix("-start") in COLLECTIVES and starts and not going_on:
                    yield held

    def _hbm(self, op: Operation, part: str) -> float:
        if op.fused in self.parts:
            return self.read(op, part) + self.written(op)
        shapes = [self._shape(part, name) for name in op.operands]
        if op.kind == "copy-start":
            return in_hbm(op.shape)
        if op.kind == "slice-start":
            return elements_bytes(op.result) + in_hbm(op.result)
        if op.kind in ("dynamic-slice", "slice"):
            size = min([elements_bytes(op.shape), *(in_hbm(shape) for shape in shapes[:1])])
            return size + min(in_hbm(op.shape), size)
        if op.kind == "dynamic-update-slice":
            update = elements_bytes(shapes[1]) if len(shapes) > 1 else 0
            return min(in_hbm(shapes[1]), update) + min(in_hbm(op.shape), update)
        if op.kind == "gather":
            return min(in_hbm(shapes[0]), elements_bytes(op.shape)) + in_hbm(op.shape)
        return sum(in_hbm(shape) for shape in shapes) + in_hbm(op.result)

    def _shape(self, part: str, name: str) -> str:
        found = self.parts[part].get(name)
        return found.shape if found else ""

    def read(self, op: Operation, part: str) -> float:
        """How much a fusion, or what it starts, reads from HBM."""
        shapes = [self._shape(part, name) for name in op.operands]
        return sum(
            min(in_hbm(shape), self._read_of(op.fused or "", n, shape))
            for n, shape in enumerate(shapes)
        )

    def _read_of(self, part: str, number: int, shape: str) -> float:
        """How much of its parameter `number` a fused computation reads: slices of it where that is
        all that it uses."""
        names = {
            op.name
            for op in self.parts[part].values()
            if op.kind == "parameter" and op.rest.startswith(f"{number})")
        }
        whole, some = elements_bytes(shape), 0.0
        for op in self.parts[part].values():
            used = [place for place, name in enumerate(op.operands) if name in names]
            if not used:
                continue
            if op.kind == "bitcast" or self._relaid(op):
                names.add(op.name)
            elif op.kind == "tuple":
                continue  # handed on as it is
            elif op.kind in ("dynamic-slice", "slice", "gather") and used == [0]:
                some += elements_bytes(op.shape)
            elif op.kind in ("dynamic-update-slice", "scatter") and used == [0]:
                continue  # updated in place
            elif op.kind == "fusion" and (inner := op.called("calls")) in self.parts:
                some += sum(self._read_of(inner or "", place, shape) for place in used)
            else:
                return whole
        return min(some, whole)

    def _relaid(self, op: Operation) -> bool:
        """Whether an operation in a fused computation only gives its operand other tiles, in place:
        so the compiler marks that 8-bit weights, whose tiles have 32 rows, are read as if they had
        8. Nothing is moved."""
        if op.kind != "fusion" or "output_to_operand_aliasing={{}: (0, {})}" not in op.rest:
            return False
        root = next((o for o in self.parts[op.called("calls") or ""].values() if o.root), None)
        return root is not None and root.kind == "copy"

    def written(self, op: Operation) -> float:
        """How much a fusion, or what it starts, writes to HBM: of a result that is its parameter,
        updated in place, the update; of one that is its parameter, handed on, nothing."""
        part, shape = op.fused or "", op.result
        root = next((op for op in self.parts[part].values() if op.root), None)
        results = [f"{text}{layout}" for text, layout in arrays(shape)]
        if root is None:
            return in_hbm(shape)
        if root.kind == "tuple" and len(results) == len(root.operands):
            return sum(
                min(in_hbm(result), self._made(part, name))
                for result, name in zip(results, root.operands, strict=True)
            )
        return min(in_hbm(shape), self._made(part, root.name))

    def _made(self, part: str, name: str) -> float:
        """Bytes of an operation's result that are new."""
        op = self.parts[part].get(name)
        while op is not None and op.kind in ("bitcast", "copy") and op.operands:
            op = self.parts[part].get(op.operands[0])
        if op is None:
            return math.inf
        if op.kind == "parameter":
            return 0.0
        if op.kind in ("dynamic-update-slice", "scatter"):
            return elements_bytes(
                self._shape(part, op.operands[1 if op.kind == "dynamic-update-slice" else -1])
            )
        if op.kind == "get-tuple-element" and (maker := self.parts[part].get(op.operands[0])):
            # The workspace of a library is none of its results.
            number = re.search(r"index=(\d+)", op.rest)
            made = len(arrays(maker.result))
            return 0.0 if number and int(number[1]) >= made else elements_bytes(op.shape)
        inner = op.fused
        return self.written(op) if inner in self.parts else elements_bytes(op.result)

    # ---- loops

    def trips(self, loop: Operation) -> int | None:
        """How often the body runs, None where that depends on data."""
        if known := re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(known[1])
        condition = self.parts.get(loop.called("condition") or "", {})
        root = next((op for op in condition.values() if op.root), None)
        if root is None or root.kind != "compare" or "direction=LT" not in root.rest:
            return None
        limit = condition.get(root.operands[1])
        number = (
            re.match(r"(\d+)\)", limit.rest)
            if limit is not None and limit.kind == "constant"
            else None
        )
        return int(number[1]) if number else None

    def operations(self, body: str, times: int = 1) -> Iterator[tuple[Operation, str, int]]:
        """(operation, the computation that it is in, how often it runs) of a computation, of the
        loops inside (open ones with one trip), of what it calls and may branch to."""
        for op in self.parts[body].values():
            yield op, body, times
            inside, trips = op.branches, 1
            if op.kind == "while":
                inside, trips = [op.called("body") or ""], self.trips(op) or 1
            elif op.kind == "call":
                inside = [op.called("to_apply") or op.called("calls") or ""]
            for name in inside:
                if name in self.parts:
                    yield from self.operations(name, times * trips)

    def kernels(self, body: str) -> Iterator[Kernel]:
        """Custom calls of a computation and the loops inside: kernels, and attention of a
        library. They are counted with all of their operands; one that is told how long rows are,
        or how many rows each matrix has, moves less."""
        for op, part, times in self.operations(body):
            if op.target and not op.target.startswith("__cublas"):
                sizes = [in_hbm(self._shape(part, name)) for name in op.operands]
                yield Kernel(op, times, self.cost(op, part).hbm, max(sizes, default=0.0))


def _weight(walked: tuple[Traffic, _Open]) -> float:
    """Bytes of a branch, with one trip of each open loop."""
    traffic, opened = walked
    return traffic.hbm + sum(loop.traffic.hbm * often for loop, often in opened)


def _parts(opened: _Open) -> Iterator[tuple[Loop, float]]:
    """Those of the open loops inside a trip that are a part of its work: a trip comes to them once
    a layer. With layers in a loop that is one loop, come to several times; else there is one for
    each layer, and they move the same bytes."""
    for loop, times in opened:
        alike = sum(
            math.isclose(loop.traffic.hbm, other.traffic.hbm, rel_tol=0.01) for other, _ in opened
        )
        if not loop.around_open and (times > 1 or alike > 1):
            yield loop, times
