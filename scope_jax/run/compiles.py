"""Counting compilations: a program that keeps compiling has a shape that is not fixed."""

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compiles:
    """How many programs were compiled since this object was made."""

    def __init__(self) -> None:
        self.count = 0
        self.of_evaluation = 0  # not in `count`
        self._evaluating = False
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """What is compiled within it is counted apart."""
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT and self._evaluating:
            self.of_evaluation += 1
        elif event == _EVENT:
            self.count += 1
