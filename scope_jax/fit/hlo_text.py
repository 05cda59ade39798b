"""Compiled programs as text: the operations of each computation, and the sizes of their shapes.

Compilers for TPUs and GPUs write the same language. A TPU's layouts say what lies on the chip
(memory space `S(..)`); a GPU's program starts operations on other streams (`fusion-start`,
`all-reduce-start`), with the operands in the shape of what is started, and calls libraries, with
their workspace in the shape of the result.
"""

import dataclasses
import math
import re

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
    "u64": 8,
}

_ARRAY = re.compile(r"\b(pred|bf16|f\d+\w*|[su]\d+)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
)
_WORKSPACE = re.compile(r"[su]8\[\d*\](\{[^}]*\})?$")


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

    @property
    def fused(self) -> str | None:
        """The computation of a fusion, or of what is started."""
        started = self.kind in ("fusion", "fusion-start", "async-start")
        return self.called("calls") if started else None

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        found = _BRANCHES.search(self.rest)
        if not found:
            return []
        return re.findall(r"[\w.\-]+", found[1]) if found[1] else [found[2], found[3]]

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if self.kind == "custom-call" and found else ""

    @property
    def is_library(self) -> bool:
        """Whether it calls cuBLAS or cuDNN."""
        return self.target.startswith(("__cublas", "__cudnn"))

    @property
    def result(self) -> str:
        """Shape of what it makes: without the operands of what is started, and without the
        workspace of a library, which it may use or not."""
        parts = parts_of(self.shape)
        if self.kind.endswith("-start") and len(parts) > 1:
            if self.kind == "copy-start":
                return parts[0]
            if parts[0].startswith("(") or self.kind in PAIRS:
                return parts[1]
        if self.is_library and len(parts) > 1 and _WORKSPACE.match(parts[-1]):
            return f"({', '.join(parts[:-1])})"
        return self.shape


# What is started with (operand, result, ...) as its shape.
PAIRS = ("all-gather-start", "collective-permute-start", "all-to-all-start", "reduce-scatter-start")


def read_program(text: str) -> tuple[dict[str, dict[str, Operation]], str]:
    """(the operations of each computation by their names, the name of the first computation)."""
    parts: dict[str, dict[str, Operation]] = {}
    part: dict[str, Operation] = {}
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            part = parts.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            operation = _read(found[2], found[3], bool(found[1]))
            part[operation.name] = operation
    return parts, entry


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


# ---- shapes


def in_hbm(shape: str) -> float:
    """Bytes of the arrays of a shape that are not in the chip's own memory."""
    return float(sum(elements_bytes(text) for text, layout in arrays(shape) if "S(" not in layout))


def elements_bytes(shape: str) -> float:
    """Bytes of all arrays of a shape."""
    return float(
        sum(
            SIZES.get(dtype, 1) * math.prod(int(n) for n in extents.split(",") if n)
            for dtype, extents, _ in _ARRAY.findall(shape)
        )
    )


def arrays(shape: str) -> list[tuple[str, str]]:
    """(type and extents, layout) of each array of a shape."""
    return [
        (f"{dtype}[{extents}]", layout or "") for dtype, extents, layout in _ARRAY.findall(shape)
    ]


def parts_of(shape: str) -> list[str]:
    """The parts of a tuple's shape; of another one, itself."""
    if not shape.startswith("("):
        return [shape]
    found, depth, start = [], 0, 1
    for place, sign in enumerate(shape):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(sign, 0)
        if (sign == "," and depth == 1) or (sign == ")" and depth == 0):
            found.append(re.sub(r"^\s*(/\*[^*]*\*/)?\s*", "", shape[start:place]))
            start = place + 1
    return found


# ---- collectives


def received(op: Operation) -> float:
    """Bytes that one device receives in a collective on a ring."""
    n = group_size(op.rest)
    size = elements_bytes(op.result)
    kind = op.kind.removesuffix("-start")
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
