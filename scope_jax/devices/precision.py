"""Products of float32 arrays in float32.

Left to themselves, accelerators multiply float32 matrices in less: NVIDIA GPUs in TF32 (10 bits of
mantissa), TPUs in one pass of bfloat16 (7 bits). Results are then off by some 1e-3 where float32
has 1e-6, enough to tell the log-probs of the sampler from those of the trainer. So the programs of
this package (`devices/programs.py`) ask for float32 in each such product, of the gradient too.
Products with a bfloat16 operand are as they were. On CPUs float32 is float32: nothing is asked.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core.primitives import dot_general_p

from scope_jax.devices.current import platform

# float32: what it says. tf32: what the device takes for float32 products by itself, which is TF32
# on NVIDIA GPUs and one pass of bfloat16 on TPUs.
MatmulPrecision = Literal["float32", "tf32"]

_precision: MatmulPrecision = "float32"
# Products of experts, whose third operand is how many rows each has.
_RAGGED = "ragged_dot_general"
# Kernels choose how they multiply themselves.
_KERNELS = ("pallas_call",)


@contextlib.contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Within it, programs that run on accelerators multiply float32 arrays like this; outside,
    in float32. For entry points: it is one value for all threads of the process."""
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before


def asks_for_float32() -> bool:
    """Whether a program that is called now must ask for float32 products. False inside jit: the
    program around it does."""
    try:
        return _precision == "float32" and platform() != "cpu"
    except ValueError:  # the mesh is not to be asked for inside jit
        return False


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, for `jax.jit`, with every product of float32 arrays that does not name a
    precision itself at the highest one."""

    @functools.wraps(function)
    def traced(*arguments: Any, **keywords: Any) -> Any:
        leaves, tree = jax.tree.flatten((arguments, keywords))
        # What jit was told to be static is no tracer.
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, jax.core.Tracer)]

        def of_arrays(*arrays: Any) -> Any:
            filled = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            positional, named = jax.tree.unflatten(tree, filled)
            return function(*positional, **named)

        arrays = [leaves[place] for place in places]
        closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        results = core.jaxpr_as_fun(_closed_in_float32(closed))(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return traced


def _closed_in_float32(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    return core.ClosedJaxpr(_jaxpr_in_float32(closed.jaxpr), closed.consts)


def _jaxpr_in_float32(jaxpr: core.Jaxpr) -> core.Jaxpr:
    return jaxpr.replace(eqns=[_equation_in_float32(equation) for equation in jaxpr.eqns])


def _equation_in_float32(equation: core.JaxprEqn) -> core.JaxprEqn:
    """The equation, or the same with its precision; with those of its loops, branches and calls."""
    if equation.primitive is dot_general_p or equation.primitive.name == _RAGGED:
        if equation.params["precision"] is not None:
            return equation
        if any(jnp.result_type(x.aval) != jnp.float32 for x in equation.invars[:2]):
            return equation
        highest = jax.lax.Precision.HIGHEST
        return equation.replace(params={**equation.params, "precision": (highest, highest)})
    if equation.primitive.name in _KERNELS:
        return equation
    return equation.replace(
        params={name: _value_in_float32(value) for name, value in equation.params.items()}
    )


def _value_in_float32(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return _closed_in_float32(value)
    if isinstance(value, core.Jaxpr):
        return _jaxpr_in_float32(value)
    if type(value) is tuple:
        return tuple(_value_in_float32(part) for part in value)
    return value
