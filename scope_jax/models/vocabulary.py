"""A larger vocabulary for a model whose every row is taken."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from scope_jax.devices.mesh import sharding
from scope_jax.devices.shapes import round_up
from scope_jax.models.config import ModelConfig
from scope_jax.models.weights import weight_table

# Rows are added up to a multiple of this, so that any usual mesh can split them.
MULTIPLE = 128


def with_room_for(config: ModelConfig, token: int) -> ModelConfig:
    """The model with a vocabulary that has a row for the id `token`: as it is where it has one."""
    if token < config.vocab_size:
        return config
    return dataclasses.replace(config, vocab_size=round_up(token + 1, MULTIPLE))


def with_more_rows(embed_VD: jax.Array, config: ModelConfig, mesh: Mesh | None = None) -> jax.Array:
    """The embedding with `config.vocab_size` rows, laid out on `mesh`: the rows that it has, bit
    for bit, and behind them their mean, which is no token's and far from none. The same array where
    nothing is added."""
    more = config.vocab_size - embed_VD.shape[0]
    if more == 0:
        return embed_VD

    def append(embed_VD: jax.Array) -> jax.Array:
        mean_D = jnp.mean(embed_VD.astype(jnp.float32), axis=0).astype(embed_VD.dtype)
        return jnp.concatenate([embed_VD, jnp.tile(mean_D, (more, 1))])

    layout: Any = None
    if mesh is not None:
        weight = weight_table(config)["embed"]
        layout = sharding(mesh, weight.axes, weight.shape)
    return jax.jit(append, out_shardings=layout)(embed_VD)
