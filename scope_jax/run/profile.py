"""Traces of some steps of a run, for TensorBoard (with its plugin xprof) or Perfetto.

The phases of a step stand in them by the names that `PhaseTimer` gives them, on the thread that
runs the loop, and each step by its number.
"""

import re
import sys
from pathlib import Path

import jax

from scope_jax.devices.hosts import is_main

HELP = "Trace steps A to B - 1 (A:B, counted from 0) into WORKDIR/profile, for TensorBoard or xprof"


def profiled_steps(text: str | None, steps: int) -> range:
    """The steps that `--profile_steps=text` asks for, of a run of `steps` steps; none for None.
    Raises ValueError for what is no such range."""
    if text is None:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]) <= steps:
        raise ValueError(
            f"--profile_steps={text}: expected A:B with 0 <= A < B <= {steps}, the steps of the"
            " run; A:B traces steps A to B - 1"
        )
    return range(int(found[1]), int(found[2]))


class Profile:
    """A trace of `steps` into `directory`, by process 0. Trouble with it does not end the run."""

    def __init__(self, steps: range, directory: Path):
        self.steps, self.directory = steps, directory
        self._running = False
        self._step: jax.profiler.StepTraceAnnotation | None = None

    def begin(self, step: int) -> None:
        """Step number `step` is about to be done."""
        if step in self.steps and not self._running and is_main():
            self._start()
        self._step = jax.profiler.StepTraceAnnotation("step", step_num=step)
        self._step.__enter__()

    def end(self, step: int) -> None:
        """It is done."""
        self._leave_step()
        if self._running and step + 1 not in self.steps:
            self._stop()

    def close(self) -> None:
        """Nothing follows, whether or not a step was begun."""
        self._leave_step()
        if self._running:
            self._stop()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # Each Python call would be an event: far more than there is to see.
        options.python_tracer_level = 0
        try:
            jax.profiler.start_trace(self.directory, profiler_options=options)
            self._running = True
        except Exception as error:
            self._say(f"is not made ({error})")

    def _stop(self) -> None:
        self._running = False
        try:
            jax.profiler.stop_trace()
            self._say(f"is in {self.directory}; tensorboard --logdir={self.directory}")
        except Exception as error:
            self._say(f"was not written ({error})")

    def _say(self, what: str) -> None:
        asked = f"{self.steps.start}:{self.steps.stop}"
        print(f"the trace of steps {asked} {what}", file=sys.stderr, flush=True)

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
