"""Log-probs of tokens that are there already, under the weights at hand."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scope_jax.devices.programs import Program, program
from scope_jax.learning.packing import PackSizes, pack, split_rows, unpack
from scope_jax.models import ModelConfig, Params, completion_logprobs, for_device
from scope_jax.types import Rollout


def make_logprobs(
    config: ModelConfig, *, temperature: float, micro_batches: int = 1
) -> Callable[..., jax.Array]:
    """`logprobs(params, rollout, group, sizes=None) -> float32[B, T]`: log-probs of the written
    tokens under `params` (old or reference log-probs of an update), 0 elsewhere. As many rows go
    through the model at once as in an update with these micro-batches; `sizes`: see `pack`."""
    run = logprobs_program(for_device(config), temperature, micro_batches)

    def logprobs(
        params: Params, rollout: Rollout, group: int, sizes: PackSizes | None = None
    ) -> jax.Array:
        return unpack(rollout, run(params, pack(rollout, {}, group, micro_batches, sizes)))

    return logprobs


# Programs are kept beyond a run: several runs of one process (a sweep) share those that are equal.
@functools.lru_cache(maxsize=16)
def logprobs_program(config: ModelConfig, temperature: float, micro_batches: int) -> Program:
    """The compiled part of `make_logprobs`: `run(params, batch) -> float32[B, C]`, of a batch from
    `pack`. `config`: from `models.for_device`."""

    @program
    def run(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        def part(rows: dict[str, jax.Array]) -> jax.Array:
            logp, _ = completion_logprobs(
                params,
                config,
                rows["prompt"],
                rows["prompt_length"],
                rows["completion"],
                temperature=temperature,
            )
            return logp

        if micro_batches == 1:
            return part(batch)
        units = len(batch["prompt"])
        out = jax.lax.map(
            part, {name: split_rows(x, units, micro_batches) for name, x in batch.items()}
        )
        B, C = batch["completion"].shape
        return jnp.swapaxes(
            out.reshape(micro_batches, units // micro_batches, -1, C), 0, 1
        ).reshape(B, C)

    return run
