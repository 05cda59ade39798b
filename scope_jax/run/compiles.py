"""Counting compilations: a program that keeps compiling has a shape that is not fixed."""

import collections
import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compiles:
    """How many programs were compiled since this object was made."""

    def __init__(self) -> None:
        self.count = 0
        self.of: collections.Counter[str] = collections.Counter()  # those that do not count
        self._what: str | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """What is compiled within it is counted in `of[what]` only."""
        before, self._what = self._what, what
        try:
            yield
        finally:
            self._what = before

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event != _EVENT:
            return
        if self._what is None:
            self.count += 1
        else:
            self.of[self._what] += 1
