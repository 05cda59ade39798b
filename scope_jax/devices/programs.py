"""Jitted functions as the trainer runs them: called like a function, lowered for `fit`.

The one place that knows of a hazard on CPUs. There, programs that do not depend on each other run
at the same time, and where their collectives meet in a different order on another device (of this
process or of another one), all wait for ever. So on several CPU devices a program starts when its
arguments are there, and returns when its results are. Accelerators run their programs one after
the other, and nothing is waited for.

It is also where products of float32 arrays are told to be in float32 (`precision.py`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from scope_jax.devices.precision import asks_for_float32, in_float32


class Program:
    """`jax.jit(function, **options)` that is safe to call on several CPU devices, and whose
    float32 products are in float32 on accelerators."""

    def __init__(self, function: Callable[..., Any], **options: Any):
        # Two functions, because jit keeps what it traced by function.
        self._plain = jax.jit(function, **options)
        self._exact = jax.jit(in_float32(function), **options)
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        wait_on_cpu((arguments, keywords))
        return wait_on_cpu(self._jitted()(*arguments, **keywords))

    def lower(self, *arguments: Any, **keywords: Any) -> Any:
        """The program for arguments, or shapes, like these: `jax.stages.Lowered`."""
        return self._jitted().lower(*arguments, **keywords)

    def _jitted(self) -> Any:
        return self._exact if asks_for_float32() else self._plain


def program(function: Callable[..., Any], **options: Any) -> Program:
    """A jitted function; `options` are those of `jax.jit` (static and donated arguments). As a
    decorator: `@program` or `@functools.partial(program, static_argnames=...)`."""
    return Program(function, **options)


def wait_on_cpu(tree: Any) -> Any:
    """`tree`, on several CPU devices once its arrays are computed. For transfers between devices
    that no program makes, such as `jax.device_put`."""
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.block_until_ready([x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)])
    return tree
