"""Counting compilations: a program that keeps compiling has a shape that is not fixed."""

from collections.abc import Callable

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


def count_compiles() -> Callable[[], int]:
    """A function that returns how many programs were compiled since this call."""
    seen = [0]

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        seen[0] += event == _EVENT

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: seen[0]
