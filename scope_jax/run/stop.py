"""Asking a run to stop: after SIGTERM (a pre-emption notice) or Ctrl-C it ends where nothing is
lost."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

# Exit code of a program that stopped because it was asked to: the same command goes on
# (sysexits.h: a failure that passes).
STOPPED = 75


class Stopped(Exception):
    """The run was asked to stop and has stopped. Not an error: its one line says where the same
    command goes on."""


class StopSignal:
    """Whether this process was told to stop, while the `with` block lasts.

    SIGTERM and SIGINT only set a flag, which the run reads where it can stop. A second Ctrl-C ends
    the process at once (in a notebook: interrupts the cell). A signal that was ignored before stays
    ignored. Outside of the main thread Python allows no handlers, so nothing is noticed there.

    agree: with several processes, combines their flags, since all must stop at the same place. All
    processes must then call `requested` equally often.
    """

    def __init__(self, agree: Callable[[bool], bool] | None = None):
        self.name = ""  # of the signal that came first
        self._agree = agree
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether to stop now."""
        told = bool(self.name)
        return told if self._agree is None else self._agree(told)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        while self._before:
            number, before = self._before.popitem()
            # None: the handler was not one of Python's, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if not self.name:
            self.name = signal.Signals(number).name
            again = "; again to stop at once" if number == signal.SIGINT else ""
            # Not print: the signal may have come in the middle of one.
            os.write(
                2, f"{self.name}: the run stops as soon as it can be gone on with{again}\n".encode()
            )
        if number == signal.SIGINT:
            # The system's own handler also ends a process that is inside a long computation.
            signal.signal(
                number, self._before[number] if "ipykernel" in sys.modules else signal.SIG_DFL
            )
