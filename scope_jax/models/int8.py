"""8-bit weights of models that are not trained: what is stored, and how it is made.

A weight w[.., in, out] is kept as int8 with one float32 scale for each output channel:

    scale[.., out] = max over `in` of |w| x 1/127        (1 where all of them are 0)
    q[.., in, out] = round(w / scale), half to even    |q| <= 127, |w - q scale| <= scale / 2

and is used as (x @ q) * scale (`layers.dense`). The scale of a channel comes from the whole of it,
so that the numbers do not depend on how the weights are split over devices. Which weights are kept
so: `weights._with_scales`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import constrain
from scope_jax.devices.programs import program
from scope_jax.models.config import ModelConfig
from scope_jax.models.weights import Params, flatten, nest, weight_table

# Of the largest value to one of 127 parts of it: an int8 without -128 is symmetric. A product with
# this number is the same on every device; a quotient by 127 is not.
STEP = np.float32(1 / 127)


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 of the same shape, float32 scale of each row) of an array [out, in] on the host: rows
    of a weight as Hugging Face's files hold it."""
    rows = rows.astype(np.float32)
    most = np.abs(rows).max(axis=-1, initial=0.0)
    scale = np.where(most > 0, most * STEP, np.float32(1))
    return np.rint(rows / scale[:, None]).astype(np.int8), scale


def in_int8(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """(the config of the same model with 8-bit weights, its parameters in their layout), of
    parameters that are on the devices. A directory is loaded so by `load(..., weights="int8")`,
    which never has the full weights there."""
    int8 = dataclasses.replace(config, weights="int8")
    return int8, _quantised(params, int8)


def full_weights(config: ModelConfig, params: Params, dtype: Any) -> Params:
    """The weights that 8-bit ones stand for, in `dtype`: of the same model with weights "auto"."""
    flat, full = flatten(params), {}
    for path, weight in weight_table(config).items():
        if weight.dtype == "int8":
            scale = flat[f"{path}_scale"]
            scale = scale[:, None] if path == "embed" else jnp.expand_dims(scale, -2)
            full[path] = (flat[path].astype(jnp.float32) * scale).astype(dtype)
        elif weight.hf:
            full[path] = flat[path].astype(dtype)
    return nest(full)


@functools.partial(program, static_argnames="int8")
def _quantised(params: Params, int8: ModelConfig) -> Params:
    flat = flatten(params)
    made: dict[str, jax.Array] = {}
    table = weight_table(int8)
    for path, weight in table.items():
        if weight.dtype == "int8":
            w = flat[path].astype(jnp.float32)
            summed = -1 if path == "embed" else -2
            most = jnp.max(jnp.abs(w), axis=summed)
            scale = jnp.where(most > 0, most * STEP, 1.0)
            made[path] = jnp.round(w / jnp.expand_dims(scale, summed)).astype(jnp.int8)
            made[f"{path}_scale"] = scale
        elif weight.hf:
            made[path] = flat[path]
    return nest({path: constrain(w, *table[path].axes) for path, w in made.items()})
