"""One run in its folder: taken up where it stopped, kept while it goes, ended where asked to.

The loop of a program knows only this:

    with Session(workdir, keeping, stop) as session:
        session.restore(learner, progress, shapes_of_the_state)
        for step in session.steps():
            session.record(step, metrics_of_the_step, skipped=...)

A step that was begun when the run is asked to stop is given up at the next `safe_point` and done
again when the run goes on; nothing that happened in it is kept.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import jax

from scope_jax.devices.hosts import from_main, is_main
from scope_jax.devices.mesh import to_device_memory
from scope_jax.run import failures
from scope_jax.run.checkpoints import Checkpoints
from scope_jax.run.compiles import Compiles
from scope_jax.run.metrics import (
    METRICS,
    MetricsWriter,
    PhaseTimer,
    progress,
    read_metrics,
    say_phase,
    take_back,
)
from scope_jax.run.profile import Profile
from scope_jax.run.stop import Stopped, StopSignal
from scope_jax.run.trackers import Trackers
from scope_jax.run.workdir import write_atomically

# What a run that goes on may find in its checkpoint: the metrics of a step whose evaluation the
# stop did not wait for.
PENDING = "before_evaluation"


class Trained(Protocol):
    """What learns: a `learning.TrainState`, replaced at every update."""

    @property
    def state(self) -> Any: ...

    def restore(self, state: Any) -> None:
        """Take up a state that was saved."""


class Progressing(Protocol):
    """Where a run stands beside its state: in its problems, draws, and what it collects."""

    def to_json(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `to_json` made."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How a run of `steps` steps is kept."""

    steps: int
    every: int | None  # steps between checkpoints; None: only where the run is asked to stop
    keep: int = 2  # newest checkpoints that stay
    directory: str | Path | None = None  # of the checkpoints; None: in the run's folder
    stop_after_skipped: int = 5  # updates in a row that were not finite, before the run gives up
    evaluate_every: int | None = None  # steps; None: after the last only
    at_end: bool = True  # a checkpoint after the last step, whatever `every` says


@dataclasses.dataclass(frozen=True)
class _Point:
    """Where a run stood after the last step of which an update was taken."""

    done: int  # steps
    place: dict[str, Any]
    updates: int
    skipped: int

    @classmethod
    def of(cls, done: int, trained: Trained, place: Progressing) -> "_Point":
        updates, skipped = jax.device_get((trained.state.updates, trained.state.skipped))
        return cls(done, place.to_json(), int(updates), int(skipped))


class Session:
    """The keeping of one run in `workdir`. `metrics`: whether it has metrics.jsonl and TensorBoard
    events. `evaluate()`: metrics of an evaluation, which go into those of the step before it.
    `profiled`: steps whose trace goes into its folder `profile`. `trackers`: where the metrics go
    besides."""

    def __init__(
        self,
        workdir: Path,
        keeping: Keeping,
        stop: StopSignal,
        *,
        metrics: bool = True,
        evaluate: Callable[[], dict[str, float]] | None = None,
        profiled: range = range(0),
        trackers: Trackers | None = None,
    ):
        self.workdir, self.keeping, self.stop = workdir, keeping, stop
        self.timer, self.compiles = PhaseTimer(), Compiles()
        self._profile = Profile(profiled, workdir / "profile")
        self.start = 0  # steps that were done before this process
        self.last: dict[str, Any] = {}  # metrics of the last step
        self._with_metrics, self._evaluate, self._trackers = metrics, evaluate, trackers
        self._opened = contextlib.ExitStack()
        self._checkpoints: Checkpoints | None = None
        self._metrics: MetricsWriter
        self._trained: Trained
        self._place: Progressing
        self._tell_from: int | None = None  # the first step whose line this machine lacked
        self._shown = ""
        self._pending: dict[str, float] | None = None
        self._done, self._due = 0, False
        self._good: _Point
        self._before: dict[str, Any] = {}  # where the run stood before the step that was begun

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._profile.close()
        self._opened.__exit__(kind, error, trace)

    # ---- going on

    def restore(self, trained: Trained, place: Progressing, like: Any) -> None:
        """Take the run up from its newest readable checkpoint, if there is one. `like`: the
        state's shapes and shardings. Raises ValueError where it is past the steps of this run."""
        self._trained, self._place = trained, place
        if self.keeping.every or from_main((self.workdir / "checkpoints").is_dir()):
            restored = self.checkpoints.restore(like)
            if restored is not None:
                self.start, state, saved = restored
                if self.start > self.keeping.steps:
                    raise ValueError(
                        f"{self.workdir}: has {self.start} steps behind it, more than config.steps"
                        f" = {self.keeping.steps}; raise that"
                    )
                trained.restore(state)
                place.restore(saved)
                self._tell_from = self._taken_back(self.start)
                self._pending = saved.get(PENDING)
                print(f"resuming {self.workdir} at step {self.start}", flush=True)
            elif self._with_metrics and is_main():
                self._taken_back(sys.maxsize)
                _archive_orphan_metrics(self.workdir, self.keeping.every or self.keeping.steps)
        self._done = self.start
        self._good = _Point.of(self.start, trained, place)

    def _taken_back(self, until: int) -> int | None:
        """The first step before `until` whose line of metrics only the copy beside checkpoints
        elsewhere had; they are here now too."""
        if not (self._with_metrics and self.keeping.directory and is_main()):
            return None
        return take_back(self.workdir / METRICS, self.checkpoints.folder / METRICS, until)

    @property
    def checkpoints(self) -> Checkpoints:
        """Opened when they are first asked for."""
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self._where, keep=self.keeping.keep)
            self._opened.enter_context(self._checkpoints)
        return self._checkpoints

    @property
    def _where(self) -> str | Path:
        return self.keeping.directory or self.workdir / "checkpoints"

    # ---- the loop

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are left; each is to be given to `record` when it is done.
        A run that is asked to stop ends here or at a `safe_point`, with Stopped."""
        keeping = self.keeping
        self._open_metrics()
        failures.begun()
        bar = self._opened.enter_context(
            progress(keeping.steps, initial=self.start, desc=self.workdir.name)
        )
        self.timer.begins = lambda phase: say_phase(bar, phase, self._shown)
        if self._pending is not None:
            self.last = self._evaluated(self.start, self._pending)
            self._write(self.start - 1, self.last)
        for step in range(self.start, keeping.steps):
            self._before = self._place.to_json()
            self.safe_point()
            self._profile.begin(step)
            yield step
            self._profile.end(step)
            bar.set_postfix_str(self._shown, refresh=False)
            bar.update(1)
        bar.close()
        if self._checkpoints is not None:
            self._checkpoints.wait()
        if self._with_metrics:
            self._metrics.close()

    def safe_point(self) -> None:
        """End the run if it was asked to stop, with a checkpoint of what was done before the step
        that was begun. Raises Stopped. All processes come by."""
        if self.stop.requested():
            self._stop_at(self._done, self._before)

    def record(self, step: int, metrics: dict[str, Any], *, skipped: bool, shown: str = "") -> None:
        """Keep a finished step: evaluate where that is due, write `metrics`, save a checkpoint
        where one is due. `skipped`: an update of it was left out; of a step without any that was
        taken there is no checkpoint. `shown`: what the progress bar says.

        Raises RuntimeError where too many updates in a row were skipped."""
        keeping, state = self.keeping, self._trained.state
        if int(jax.device_get(state.skipped_in_row)) >= keeping.stop_after_skipped:
            saved = self._checkpoints is not None and self._checkpoints.steps()
            last_good = f"the last good checkpoint is in {self._where}; " if saved else ""
            raise RuntimeError(
                f"step {step}: {keeping.stop_after_skipped} updates in a row were not finite and"
                f" were skipped; {last_good}lower optimizer.learning_rate"
            )
        done = self._done = step + 1
        now, self._shown = _Point.of(done, self._trained, self._place), shown
        if not skipped or now.updates > self._good.updates:
            self._good = now
        if self._with_metrics:
            every = keeping.evaluate_every
            if self._evaluate and (done == keeping.steps or (every and done % every == 0)):
                metrics = self._evaluated(done, metrics)
            self._write(step, metrics)
            self.last = metrics
        # Never a checkpoint of a skipped update: the last good one must stay the last.
        if keeping.every is not None:
            self._due = self._due or done % keeping.every == 0
            self._due = self._due or (keeping.at_end and done == keeping.steps)
            if self._due and self._good.done == done:
                with self.compiles.apart("checkpoint"):
                    self._save(done, state, self._place.to_json())
                self._due = False

    # ---- parts

    def _open_metrics(self) -> None:
        if not self._with_metrics:
            return
        resume = self.start if self._pending is None else self.start - 1
        self._metrics = self._opened.enter_context(
            MetricsWriter(self.workdir, resume_step=resume, tell_from=self._tell_from)
        )
        if self._trackers is not None:
            self._trackers.begin(resume)
        if self.start == self.keeping.steps and is_main():
            # Stopped between its last checkpoint and its summary: the figures are on disk.
            for row in read_metrics(self._metrics.path)[-1:]:
                if row["step"] == self.start - 1:
                    self.last = {name: value for name, value in row.items() if name != "step"}

    def _write(self, step: int, metrics: dict[str, Any]) -> None:
        self._metrics.write(step, metrics)
        if self._trackers is not None:
            self._trackers.write(step, metrics)

    def _evaluated(self, done: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """`metrics` of the last of `done` steps with those of its evaluation and its seconds. A
        stop does not wait for it: the checkpoint says that it is pending."""
        assert self._evaluate is not None
        plain = {name: v if isinstance(v, int) else float(v) for name, v in metrics.items()}
        saved = self._place.to_json() | {PENDING: plain}
        if self.stop.requested():
            self._stop_at(done, saved)
        with self.timer("evaluate"), self.compiles.apart("evaluation"):
            figures = self._evaluate()
        if self.stop.requested():
            self._stop_at(done, saved)
        return metrics | figures | self.timer.pop()

    def _save(self, done: int, state: Any, saved: dict[str, Any]) -> None:
        """A checkpoint. One that lies elsewhere may outlive this machine and its folder: the
        metrics of its steps are beside it before it is there."""
        if self._with_metrics and self.keeping.directory and is_main():
            text = (self.workdir / METRICS).read_text(encoding="utf-8")
            self.checkpoints.write_beside(METRICS, text)
        self.checkpoints.save(done, state, saved)

    def _stop_at(self, done: int, saved: dict[str, Any]) -> None:
        state, good = self._trained.state, self._good
        if good.done < done:
            # The updates since then were left out, and have changed nothing but their counters.
            done, saved = good.done, good.place
            counted = to_device_memory((state.skipped, state.skipped_in_row))
            since = int(jax.device_get(counted[0])) - good.skipped
            state = dataclasses.replace(
                state, skipped=counted[0] - since, skipped_in_row=counted[1] * 0
            )
        if done > self.start:
            self._save(done, state, saved)
        self.checkpoints.wait()
        newest = max(self.checkpoints.steps(), default=0)
        name = self.stop.name or "another process was"
        raise Stopped(
            f"{self.workdir}: {name} asked to stop; the same command goes on at step {newest}"
        )


def write_summary(workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Write `summary.json`, which says that the run is finished, and return it; numbers that are
    not finite are None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(v) for name, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    summary = plain(summary)
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


# What a summary holds, among other things; of a training more.
FINISHED: Mapping[str, type] = {"steps": int}
TRAINED: Mapping[str, type] = {"steps": int, "updates": int, "skipped": int, "final": dict}


def finished_summary(
    workdir: Path,
    holds: Callable[[], bool] = lambda: True,
    needed: Mapping[str, type] = FINISHED,
) -> dict[str, Any] | None:
    """The summary of a run that is finished (and for which `holds()`), None where there is none.
    A file that is no summary, or lacks a `needed` value, says nothing of the run: a warning, and
    the run goes on. What lies in the folder is for process 0 to say: others may have no such
    folder."""
    path, summary = workdir / "summary.json", None
    if is_main() and path.is_file() and holds():
        try:
            summary = read_summary(path, needed)
        except ValueError as error:
            warnings.warn(f"{error}; the run counts as not finished", stacklevel=2)
    return from_main(summary)


def read_summary(path: Path, needed: Mapping[str, type]) -> dict[str, Any]:
    """The object in a `summary.json`. Raises ValueError, with the file's name, where it holds
    none or one without the `needed` values."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = failures.in_short(error) if path.stat().st_size else "empty"
        raise ValueError(f"{path}: not the summary of a run ({what})") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: not the summary of a run (an object is expected)")
    for name, kind in needed.items():
        value = summary.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{path}: not the summary of a run ({name!r} of type {kind.__name__} is expected)"
            )
    return summary


def _archive_orphan_metrics(workdir: Path, every: int) -> None:
    """Put aside the metrics of steps that no checkpoint is left of, where there should be one: the
    run begins anew. Those that were put aside before stay."""
    path = workdir / "metrics.jsonl"
    steps = len({row["step"] for row in read_metrics(path)}) if path.is_file() else 0
    if steps >= every:
        more = (f"metrics_before_{number}.jsonl" for number in itertools.count(2))
        names = itertools.chain(["metrics_before.jsonl"], more)
        aside = next(workdir / name for name in names if not (workdir / name).exists())
        path.replace(aside)
        warnings.warn(
            f"{workdir}: {steps} steps were done and no checkpoint of them is left; the run begins"
            f" anew, their metrics are in {aside.name}",
            stacklevel=2,
        )
