"""Counting compilations: a program that keeps compiling has a shape that is not fixed.

A program that lies compiled in the cache on disk (`compile_cache.py`) counts like one that is
compiled, as it is one shape more; `from_cache` says how many of them there were.
"""

import collections
import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


class Compiles:
    """How many programs were compiled, or taken from the cache, since this object was made."""

    def __init__(self) -> None:
        self.count = 0
        self.from_cache = 0  # of these: found compiled on disk
        self.seconds = 0.0  # that their compilation, or reading them, took
        self.of: collections.Counter[str] = collections.Counter()  # those that do not count
        self._what: str | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._hit)

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
            self.seconds += duration_secs
        else:
            self.of[self._what] += 1

    def _hit(self, event: str, **_: str | int) -> None:
        if event == _FROM_CACHE and self._what is None:
            self.from_cache += 1
