"""A tiny decoder, its random weights and the meshes that several test files share.

The weights come from numpy's frozen RandomState stream, so that torch, in
`goldens/make_goldens.py`, and the tests see the same numbers whatever the versions of numpy and
jax. Biases and norm scales are random too: with the zeros and ones of a fresh model, a forgotten
bias would not be noticed.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import Mesh

from scope_jax import models
from scope_jax.devices.mesh import make_mesh
from scope_jax.models.weights import nest, weight_table

# Grouped queries, and a head size that is not hidden_size / num_heads.
TIED = models.ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    ffn_size=64,
    rope_theta=10000.0,
    norm_eps=1e-6,
    tied=True,
    max_positions=128,
    end_ids=(0,),
)
UNTIED = models.ModelConfig(
    vocab_size=40,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=1,
    head_size=16,
    ffn_size=48,
    rope_theta=1000000.0,
    norm_eps=1e-5,
    tied=False,
    max_positions=128,
    end_ids=(0, 7),
)
# The model of the rollout and update tests: every weight can be split in 4 and in 8.
TINY = models.ModelConfig(
    vocab_size=48,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    ffn_size=64,
    max_positions=128,
)
MESHES = {"1": (1, 1, 1), "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2)}
CHARACTERS = "\n 0123456789+-*=abcdefghijk"


def numpy_weights(config: models.ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """ "/"-joined path -> float32 array, of a size that makes attention and logits uneven without
    saturating them."""
    stream = np.random.RandomState(seed)
    flat = {}
    for path, weight in weight_table(config).items():
        drawn = stream.standard_normal(weight.shape)
        if weight.init == "ones":
            drawn = 1.0 + 0.2 * drawn
        elif weight.init == "zeros":
            drawn = 0.3 * drawn
        else:
            drawn *= 0.25 if path == "embed" else weight.shape[-2] ** -0.5
        flat[path] = drawn.astype(np.float32)
    return flat


def make_params(config: models.ModelConfig, seed: int) -> models.Params:
    """The same as device arrays in the parameter tree."""
    return nest({path: jax.numpy.asarray(x) for path, x in numpy_weights(config, seed).items()})


@functools.cache
def tiny_params() -> models.Params:
    return make_params(TINY, 3)


@functools.cache
def mesh_of(name: str) -> Mesh:
    shape = MESHES[name]
    return make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])


@contextmanager
def on_mesh(name: str) -> Iterator[models.Params]:
    """Enter the mesh; the tiny parameters, laid out on it."""
    mesh, params = mesh_of(name), tiny_params()
    with jax.set_mesh(mesh):
        yield jax.device_put(params, models.shardings(TINY, mesh))


def ragged_tokens(config: models.ModelConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32[3, 16], lengths 16, 9, 1); the padding holds tokens, which must not matter."""
    tokens = np.random.RandomState(seed).randint(0, config.vocab_size, (3, 16)).astype(np.int32)
    return tokens, np.array([16, 9, 1], np.int32)
