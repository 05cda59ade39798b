"""What a part is given to do its work with: sizes, what was found before, a clock, a place to put
figures. No package beside Python's own."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from accelerator_parts.plan import Part, Shape, Size
from accelerator_parts.table import not_finite

GB = 1e9
LONG = 8.0  # seconds of timed calls after which there is no further one


class Skip(Exception):
    """A part cannot be measured here; the words say why."""


class Work:
    """Of one worker process: lives as long as it does.

    found: records of the parts that have ended, by name. kept: what one part leaves to the next,
    such as weights on the device; `only` drops the rest.
    """

    def __init__(self, size: Size, send: Callable[[dict[str, Any]], None]):
        self.size, self.send = size, send
        self.found: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}
        self.free_bytes: Callable[[], float | None] = lambda: None
        self.peak_bytes: Callable[[], float | None] = lambda: None
        self.pretend_large = False
        self._part: Part | None = None
        self._end, self._peak = 0.0, 0.0

    def begin(self, part: Part, allowed: float, found: dict[str, Any]) -> None:
        """Before a part: it may take `allowed` seconds."""
        self._part, self._end, self.found = part, time.monotonic() + allowed, found
        self._peak = self.peak_bytes() or 0.0

    def fresh_peak(self) -> None:
        """The peak of memory counts from zero again."""
        self._peak = 0.0

    @property
    def shape(self) -> Shape:
        """Of the model of this part."""
        assert self._part is not None
        return self.size.small if self._part.small else self.size.large

    @property
    def left(self) -> float:
        """Seconds that this part may still take."""
        return self._end - time.monotonic()

    @property
    def peaks(self) -> dict[str, Any]:
        """`flops` and `hbm_rate` per second, and `source`, from the part "device"."""
        return self.found["device"]["about"]["peaks"]

    def say(self, text: str) -> None:
        self.send({"say": text})

    def add(self, case: str, **figures: Any) -> None:
        """One line of the table, kept even if the part breaks off later. Raises ValueError for a
        number that is not finite."""
        row = {"case": case} | figures
        if wrong := not_finite(row):
            raise ValueError(f"{case}: {wrong[0]} is {row[wrong[0]]}, which no measurement gives")
        peak = self.peak_bytes()
        if peak and "peak_bytes" not in row:
            row |= {"peak_bytes": float(peak), "peak_is_own": peak > self._peak}
        self.send({"row": row})

    def only(self, *names: str) -> None:
        """Drop what earlier parts have kept, but for these."""
        self.kept = {name: value for name, value in self.kept.items() if name in names}

    def need_memory(self, needed: float) -> None:
        """Raises Skip where `needed` bytes are not free, as far as that is known."""
        needed = 1e18 if self.pretend_large else needed
        free = self.free_bytes()
        if free is not None and needed > free:
            raise Skip(f"needs {needed / GB:,.1f} GB, {free / GB:,.1f} free")

    def timed(
        self, call: Callable[[], Any], most: int = 3, first: float | None = None
    ) -> dict[str, Any]:
        """{"seconds": median, "all_seconds", "compile_seconds" where `first`, the seconds of the
        call that compiled, is given}: up to `most` calls, one at least, fewer where they are long
        or there is no time. `call` must block."""
        all_seconds: list[float] = []

        def another() -> bool:
            room = self.left > 1.5 * max(all_seconds) + 5
            return len(all_seconds) < most and sum(all_seconds) < LONG and room

        while not all_seconds or another():
            all_seconds.append(clocked(call)[0])
        median = statistics.median(all_seconds)
        found = {"seconds": median, "all_seconds": all_seconds}
        return found if first is None else found | {"compile_seconds": max(first - median, 0.0)}


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of a call that blocks."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def one_line(error: BaseException, most: int = 240) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:most]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
