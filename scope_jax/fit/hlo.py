"""Reading a compiled program: bytes between HBM and the chip, bytes over the network, and forms of
code that are slow.

The compiler's own `cost_analysis()` counts the body of a loop once and mixes on-chip with HBM
traffic, so the optimised HLO text is read instead. Counted are operands and results of each
operation that do not live on the chip (memory space `S(..)`), a slice as the slice, an update in
place as the update, a loop's body as often as it runs. A loop that ends on data (decoding) has no
number of trips: it is reported by itself, per trip. Padding of tiles is not counted.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that move nothing, or are counted at their other half.
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
        "copy-done",
        "slice-done",
        "async-done",
        "async-update",
        "all-gather-done",
        "all-reduce-done",
        "collective-permute-done",
        "domain",
    ]
)
SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
}

_ARRAY = re.compile(r"\b(pred|bf16|f\d+\w*|[su]\d+)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One line of a computation. shape: its text. rest: what follows the operands."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self, role: str) -> str | None:
        return next((name for key, name in _CALLED.findall(self.rest) if key == role), None)


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
    """A loop of a program. trips: None where it ends on data. path: the trips of the loops around
    it. traffic: of one trip, without the loops that end on data inside; around_open: whether there
    are any."""

    body: str
    trips: int | None
    path: tuple[int | None, ...]
    traffic: Traffic
    around_open: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class HloReport:
    """total: the program without its open loops. loops: all of them, outer ones first."""

    total: Traffic
    loops: list[Loop]

    @property
    def decode(self) -> Loop | None:
        """The loop that ends on data and has no such loop inside, with the most traffic in a trip:
        a token for every row."""
        inner = [
            loop
            for loop in self.loops
            if loop.trips is None and loop.traffic.hbm and not loop.around_open
        ]
        return max(inner, key=lambda loop: loop.traffic.hbm, default=None)


class HloProgram:
    """A compiled program, read from its text."""

    def __init__(self, text: str):
        self.parts: dict[str, dict[str, Operation]] = {}
        self.entry = ""
        part: dict[str, Operation] = {}
        for line in text.splitlines():
            if head := _HEAD.match(line):
                part = self.parts.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif found := _LINE.match(line):
                operation = _read(found[2], found[3], bool(found[1]))
                part[operation.name] = operation

    # ---- what moves

    def report(self) -> HloReport:
        loops: list[Loop] = []
        return HloReport(self._walk(self.entry, (), loops), loops)

    def _walk(self, name: str, path: tuple[int | None, ...], loops: list[Loop]) -> Traffic:
        total = Traffic()
        for op in self.parts[name].values():
            if op.kind == "while":
                body, trips = op.called("body") or "", self.trips(op)
                place = len(loops)
                inside = self._walk(body, (*path, trips), loops)
                around_open = any(loop.trips is None for loop in loops[place:])
                loops.insert(place, Loop(body, trips, path, inside, around_open))
                if trips is not None:
                    total.add(inside, trips)
            elif op.kind == "conditional":
                branches = [self._walk(branch, path, loops) for branch in _branches(op)]
                total.add(max(branches, key=lambda traffic: traffic.hbm, default=Traffic()))
            elif op.kind == "call":
                total.add(
                    self._walk(op.called("to_apply") or op.called("calls") or "", path, loops)
                )
            else:
                total.add(self.cost(op, name))
        return total

    def cost(self, op: Operation, part: str) -> Traffic:
        """Of one operation of a computation, without loops and calls."""
        if op.kind in FREE or op.name.startswith("async-collective-done"):
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
        elif op.kind in ("fusion", "async-start") and (inner := op.called("calls")):
            starts = not op.name.startswith("async-collective-done")
            for held in self.parts.get(inner, {}).values():
                going_on = "chain_id" in held.rest and "async-collective-start" not in op.name
                if held.kind.removesuffix("-start") in COLLECTIVES and starts and not going_on:
                    yield held

    def _hbm(self, op: Operation, part: str) -> float:
        shapes = [self._shape(part, name) for name in op.operands]
        if op.kind in ("fusion", "async-start") and (inner := op.called("calls")) in self.parts:
            read = sum(
                min(in_hbm(shape), self._read_of(inner or "", n, shape))
                for n, shape in enumerate(shapes)
            )
            return read + self._written(inner or "", op.shape)
        if op.kind == "copy-start":
            return in_hbm(op.shape)
        if op.kind == "slice-start":
            # ((operand), result, ...)
            result = op.shape[_closing(op.shape[1:], 0) + 2 :]
            return elements_bytes(result) + in_hbm(result)
        if op.kind in ("dynamic-slice", "slice"):
            size = min([elements_bytes(op.shape), *(in_hbm(shape) for shape in shapes[:1])])
            return size + min(in_hbm(op.shape), size)
        if op.kind == "dynamic-update-slice":
            update = elements_bytes(shapes[1]) if len(shapes) > 1 else 0
            return min(in_hbm(shapes[1]), update) + min(in_hbm(op.shape), update)
        if op.kind == "gather":
            return min(in_hbm(shapes[0]), elements_bytes(op.shape)) + in_hbm(op.shape)
        return sum(in_hbm(shape) for shape in shapes) + in_hbm(op.shape)

    def _shape(self, part: str, name: str) -> str:
        found = self.parts[part].get(name)
        return found.shape if found else ""

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

    def _written(self, part: str, shape: str) -> float:
        """How much of its results a fused computation writes to HBM: of one that is its parameter,
        updated in place, the update; of one that is its parameter, handed on, nothing."""
        root = next((op for op in self.parts[part].values() if op.root), None)
        results = [f"{text}{layout}" for text, layout in _arrays(shape)]
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
        inner = op.called("calls")
        return (
            self._written(inner, op.shape)
            if op.kind == "fusion" and inner in self.parts
            else elements_bytes(op.shape)
        )

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

    def operations(self, body: str) -> Iterator[Operation]:
        """Those of a computation, with those of the loops with a known end inside."""
        for op in self.parts[body].values():
            yield op
            if op.kind == "while" and self.trips(op) is not None:
                yield from self.operations(op.called("body") or "")


def received(op: Operation) -> float:
    """Bytes that one device receives in a collective on a ring."""
    n = group_size(op.rest)
    size = elements_bytes(op.shape)
    kind = op.kind.removesuffix("-start")
    if op.kind.endswith("-start"):
        # (operand, result, ...): the larger half.
        size = max((elements_bytes(part[0]) for part in _arrays(op.shape)), default=0)
    if kind == "collective-permute":
        return size
    if n <= 1:
        return 0.0
    share = (n - 1) / n
    return {
        "all-gather": share,
        "all-reduce": 2 * share,
        "reduce-scatter": n - 1.0,
        "all-to-all": share,
    }[kind] * size


def group_size(text: str) -> int:
    """Devices of one group of a collective: `{{0,1},{2,3}}`, `[4,2]<=[8]` or `mesh['a'=4,'b'=2]
    {'b'}`."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return 1


def in_hbm(shape: str) -> float:
    """Bytes of the arrays of a shape that are not in the chip's own memory."""
    return float(sum(elements_bytes(text) for text, layout in _arrays(shape) if "S(" not in layout))


def elements_bytes(shape: str) -> float:
    """Bytes of all arrays of a shape."""
    return float(
        sum(
            SIZES.get(dtype, 1) * math.prod(int(n) for n in extents.split(",") if n)
            for dtype, extents, _ in _ARRAY.findall(shape)
        )
    )


def _arrays(shape: str) -> list[tuple[str, str]]:
    return [
        (f"{dtype}[{extents}]", layout or "") for dtype, extents, layout in _ARRAY.findall(shape)
    ]


def _read(name: str, text: str, root: bool) -> Operation:
    """`SHAPE kind(operands), rest`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    kind, _, text = text.partition("(")
    end = _closing("(" + text, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", text[:end]))
    # A constant's value and a parameter's number stand where operands do.
    rest = text if kind in ("constant", "parameter") else text[end + 1 :]
    return Operation(name, shape, kind, operands, rest, root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _branches(op: Operation) -> list[str]:
    found = _BRANCHES.search(op.rest)
    if not found:
        return []
    return re.findall(r"[\w.\-]+", found[1]) if found[1] else [found[2], found[3]]
