"""Metrics of a run: one JSON line and one TensorBoard event per step; wall seconds per phase; a
progress bar."""

import collections
import contextlib
import contextvars
import json
import math
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from scope_jax.devices.hosts import is_main
from scope_jax.run.failures import in_short, quiet_threads
from scope_jax.run.workdir import write_atomically

METRICS = "metrics.jsonl"
_SHOWN = 10  # runs of steps in a warning


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard event files in `workdir/tb/`.

    `resume_step` is the first step that will be written (0 for a new run): lines at or past it,
    and a last line that a kill left torn, are dropped from `metrics.jsonl` at once, atomically;
    TensorBoard is told to drop its own points from there on. The steps before it should have one
    line each, in order: of several the last one stays, and what is missing, doubled or out of
    order is named in a warning. `tell_from`: the first step of which TensorBoard is told again,
    from the lines that are there (see `take_back`). Of several processes the first one writes, the
    writers of the others do nothing. No TensorFlow is needed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int = 0,
        tell_from: int | None = None,
    ):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = pathlib.Path(workdir)
        self.path = folder / METRICS
        self._writes = is_main()
        if not self._writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept: list[dict[str, Any]] = []
        if self.path.exists() or resume_step:
            kept = _kept_lines(self.path, resume_step)
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        # Without a buffer: what a full disk did not take is not tried again at the end of the
        # process.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  Closed by close().
        quiet_threads()
        self._events = EventFileWriter(str(folder / "tb"), flush_secs=10)
        # A START record makes readers drop what an earlier, killed process wrote at or past this
        # step.
        first = resume_step if tell_from is None else min(tell_from, resume_step)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.add_event(
            event_pb2.Event(wall_time=time.time(), step=first, session_log=start)
        )
        for line in kept:
            if line["step"] >= first:
                self._tell(line["step"], {k: v for k, v in line.items() if k != "step"})

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes {flat name: number} as the line {"step": step, name: value, ...} and flushes it.

        Values are Python (True is 1), numpy or jax scalars. NaN and infinities are `null` in the
        JSON line (JSON has no such numbers) and go to TensorBoard as they are. Raises ValueError
        for a metric that is not a number.
        """
        if not self._writes:
            return
        numbers = numbers_of(step, metrics)
        line = {"step": int(step)} | {
            k: v if math.isfinite(v) else None for k, v in numbers.items()
        }
        rest = memoryview(f"{json.dumps(line)}\n".encode())
        while rest:
            rest = rest[self._file.write(rest) :]
        self._tell(int(step), numbers)

    def close(self) -> None:
        """Flushes and closes both files. Raises what was kept from them: a full disk, for one. A
        second call does nothing."""
        if self._writes and not self._file.closed:
            self._file.close()
            # Raises what happened to its thread; `close` alone would not.
            self._events.flush()
            self._events.close()

    def _tell(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """An event for TensorBoard; a None is NaN there."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=math.nan if value is None else value)
            for name, value in numbers.items()
        ]
        summary = summary_pb2.Summary(value=values)
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def numbers_of(step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a step as Python numbers. Raises ValueError for one that is no number."""
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            numbers[name] = int(value) if isinstance(value, int) else float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"step {step}: metric {name} must be one number, not {type(value).__name__}"
            ) from None
    return numbers


def take_back(path: pathlib.Path, copy: Any, until: int) -> int | None:
    """Put the lines of steps before `until` that only `copy` (a path, of a bucket for one) has
    into the `metrics.jsonl` at `path`, atomically, and return the first of these steps; None where
    there are none, or no copy. A copy that cannot be read is a warning, and is written anew with
    the next checkpoint."""
    try:
        copied = read_metrics(copy)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"the copy of the metrics is left out: {in_short(error)}", stacklevel=3)
        return None
    rows = read_metrics(path) if path.exists() else []
    here = {row["step"] for row in rows}
    taken = [row for row in copied if row["step"] < until and row["step"] not in here]
    if taken:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = sorted([*rows, *taken], key=lambda row: row["step"])
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in whole))
    return min((row["step"] for row in taken), default=None)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` in file order; a last line without its end, which a kill tore,
    is left out. A number that is not finite (NaN, 1e999) is None, as `write` has it.

    Raises FileNotFoundError, and ValueError with file and line number for any other line that is
    not an object with a whole number, from 0, as its "step".
    """
    rows: list[dict[str, Any]] = []
    # Of bytes, at "\n" alone: to `str.splitlines` a wrong bit in a comma (0x0c) ends a line too.
    file = path if hasattr(path, "read_bytes") else pathlib.Path(path)
    *lines, _ = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(
                line.decode(errors="replace"), parse_float=_finite, parse_constant=lambda _: None
            )
        except (ValueError, RecursionError):
            row = None
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(
                f'{path}:{number}: not a metrics line; an object with an integer "step" is'
                " expected: delete the line, the run can do without it"
            )
        rows.append(row)
    return rows


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _kept_lines(path: pathlib.Path, until: int) -> list[dict[str, Any]]:
    """One line for each of the first `until` steps, in order, as far as there are any."""
    rows = read_metrics(path) if path.exists() else []
    rows = [row for row in rows if row["step"] < until]
    steps = [row["step"] for row in rows]
    # Of several lines the last one: a run writes a step again only on its way to a later one.
    line_of = {row["step"]: row for row in rows}
    trouble = []
    if missing := [step for step in range(until) if step not in line_of]:
        trouble.append(f"no line of {_in_words(missing)}: these metrics are lost, the run is not")
    if doubled := [step for step, count in collections.Counter(steps).items() if count > 1]:
        trouble.append(f"more than one line of {_in_words(sorted(doubled))}: the last one is kept")
    elif steps != sorted(steps):
        trouble.append("lines out of order: they are put in order")
    if trouble:
        warnings.warn(f"{path}: {'; '.join(trouble)}", stacklevel=3)
    return [line_of[step] for step in sorted(line_of)]


def _in_words(steps: Sequence[int]) -> str:
    """Rising numbers of steps with runs of them drawn together: "steps 0-3, 7"."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:_SHOWN]]
    more = f" and others, {len(steps)} in all" if len(runs) > _SHOWN else ""
    return f"{'step' if len(steps) == 1 else 'steps'} {', '.join(shown)}{more}"


class PhaseTimer:
    """Wall seconds by phase, accumulated: `with timer("rollout"): ...`, then `timer.pop()`.

    JAX returns before the device is done: a phase that ends on a device must block on its result
    inside the `with`. A trace (`--profile_steps`) shows the phases by these names.
    """

    def __init__(self):
        self._seconds: dict[str, float] = {}
        # Told the name of each phase as it begins.
        self.begins: Callable[[str], None] = lambda phase: None

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the wall time of the `with` body to `phase`, also where the body raises."""
        self.begins(phase)
        start = time.perf_counter()
        try:
            with jax.profiler.TraceAnnotation(phase):
                yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """{"time/<phase>": seconds} since the last `pop`, and starts again from zero."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{phase}": value for phase, value in seconds.items()}


_transient = contextvars.ContextVar("transient", default=False)


@contextlib.contextmanager
def transient_progress() -> Iterator[None]:
    """Inside, the bars of a terminal vanish when they are done."""
    token = _transient.set(True)
    try:
        yield
    finally:
        _transient.reset(token)


def progress(total: int, initial: int = 0, desc: str = "") -> Any:
    """A tqdm bar on stderr for `total` steps of which `initial` are done; in a log, one line per
    10 s at most. A bar inside another one takes its line until it is done."""
    from tqdm import tqdm

    if not is_main():
        return tqdm(disable=True)

    if _redraws():
        return tqdm(
            total=total,
            initial=initial,
            desc=desc,
            dynamic_ncols=True,
            position=0,
            leave=not _transient.get(),
        )
    return tqdm(
        total=total,
        initial=initial,
        desc=desc,
        ncols=100,
        ascii=True,
        mininterval=10,
        maxinterval=10,
        position=0,
        file=_Lines(),
    )


def say_phase(bar: Any, phase: str, before: str = "") -> None:
    """Show on a terminal's bar what its step is doing, and `before`, what it said of the last one.
    A log gets no line for it."""
    if not bar.disable and _redraws():
        bar.set_postfix_str(f"{phase} ... {before}".rstrip(), refresh=True)


def _redraws() -> bool:
    """Whether standard error is a place where a line can be drawn again."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def in_colour() -> bool:
    """Whether what is said on standard error may be coloured (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return _redraws() and not plain


def say_beside_bars(line: str) -> None:
    """Print a line (or several) on stderr, above the bars that are drawn there; process 0 alone
    does."""
    from tqdm import tqdm

    if is_main():
        tqdm.write(line, file=sys.stderr)


class _Lines:
    """The file a bar draws on where a carriage return does not move back (a log): each drawing
    becomes a line."""

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
