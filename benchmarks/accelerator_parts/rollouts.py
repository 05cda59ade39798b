"""Rollouts by the library's own generator: fixed lengths, lengths as in training, much room."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lengths import varied_lengths

from accelerator_parts import limits
from accelerator_parts.device import model_config
from accelerator_parts.plan import Part, long_lengths
from accelerator_parts.work import Skip, Work, clocked
from scope_jax import models, rollout
from scope_jax.devices.current import current_mesh
from scope_jax.types import Rollout

PROBE = 32  # tokens by which the time of a long rollout is foretold


def generator(work: Work) -> rollout.Generator:
    """A model of random weights of this part's shape, kept for the next part."""
    shape, name = work.shape, f"generator {work.shape.name}"
    work.only(name)
    if name not in work.kept:
        config = model_config(shape)
        params = models.init(config, jax.random.key(0), work.size.dtype, current_mesh())
        work.kept[name] = rollout.Generator(params, config)
    return work.kept[name]


def run(part: Part, work: Work) -> None:
    size, shape = work.size, work.shape
    rows = size.prompts * size.group
    budget = size.long_tokens if part.kind == "long" else size.new_tokens
    seats = {"varied": size.varied_seats, "long": size.long_seats}.get(part.kind, rows)
    lengths = {
        "fixed": lambda: [budget] * rows,
        "varied": lambda: varied_lengths(rows, budget),
        "long": lambda: long_lengths(rows, budget, size.long_mean),
    }[part.kind]()
    cache = seats * (size.prompt_tokens + budget) * limits.position_bytes(shape, size.dtype)
    held = limits.weights(shape) * limits.BYTES[size.dtype]
    kept = f"generator {shape.name}" in work.kept
    work.need_memory(1.2 * cache + (0.1 if kept else 1.1) * held)
    call = rollout_call(work, budget, seats)

    # No row is to write more than its first token: the loop of decode steps is compiled, not run.
    first, _ = clocked(lambda: call([1] * rows))
    work.say(f"compiled in {first:.1f} s")
    prefill, _ = clocked(lambda: call([1] * rows))
    probe, _ = clocked(lambda: call([min(PROBE, n) for n in lengths]))
    lengths, cut = fitted(lengths, seats, max(probe - prefill, 0.0), work.left - prefill)
    written: list[Rollout] = []

    def again() -> None:
        written[:] = [call(lengths)]

    found = work.timed(again) | {"compile_seconds": first}
    check(written[0], size.prompt_tokens, lengths)
    tokens = sum(lengths)
    least = limits.rollout_seconds(
        shape, size.dtype, size.prompts, size.prompt_tokens, lengths, seats, work.peaks
    )
    steps = limits.decode_steps(lengths, seats)
    work.add(
        f"{shape.name}: {size.prompts} x {size.group}, {size.prompt_tokens} + {budget}"
        + ("" if seats == rows else f", {seats} seats"),
        **found,
        rate=tokens / found["seconds"],
        rate_unit="tok/s",
        share=least / found["seconds"],
        of="memory",
        tokens=tokens,
        least_steps=steps,
        step_seconds=found["seconds"] / steps,
        note=f"{tokens / rows:,.0f} tokens a row, {1e3 * found['seconds'] / steps:.3g} ms a step"
        + cut,
    )


def rollout_call(work: Work, budget: int, seats: int) -> Any:
    """A function from the new tokens of each row to rows of that length; blocks. It looks for no
    end token, and one compiled program serves all lengths."""
    size, model = work.size, generator(work)
    stream = np.random.default_rng(0)
    prompts = stream.integers(1, work.shape.vocab, (size.prompts, size.prompt_tokens)).tolist()
    rows = rollout.from_prompts(prompts, size.group, size.prompt_tokens + budget)
    spec = rollout.SampleSpec(max_new_tokens=budget, seats=seats, prefix_tokens=size.prompt_tokens)
    calls = iter(range(10**6))

    def call(lengths: Sequence[int]) -> Rollout:
        limit = rows.prompt_length_B + jnp.asarray(lengths, jnp.int32)
        key = jax.random.key(next(calls))
        return jax.block_until_ready(
            model.extend(rows, key, spec, shared_prefix=size.group, limit_B=limit)
        )

    return call


def fitted(lengths: Sequence[int], seats: int, probe: float, left: float) -> tuple[list[int], str]:
    """(lengths that the time left is enough for, words where they were cut), from the seconds that
    the decode steps of rows of up to `PROBE` tokens took. Raises Skip where a tenth would be too
    much."""
    short = limits.decode_steps([min(PROBE, n) for n in lengths], seats)
    # Later steps read more keys than those of the probe.
    foretold = 1.5 * probe * limits.decode_steps(lengths, seats) / max(short, 1)
    room = 0.8 * left
    if foretold <= room:
        return list(lengths), ""
    share = room / foretold
    if share < 0.1:
        raise Skip(f"{left:.0f} s left, needs about {foretold:.0f}")
    return [max(1, int(n * share)) for n in lengths], f"; lengths cut to {share:.0%} for time"


def check(rows: Rollout, prompt_tokens: int, lengths: Sequence[int]) -> None:
    """Raises ValueError where rows are not as long as they were to be, or a log-prob is none."""
    found, logp = jax.device_get((rows.length_B, rows.logp_BT))
    if (found - prompt_tokens).tolist() != list(lengths):
        raise ValueError(f"rows of {found[:8]} tokens ..., not {prompt_tokens} + {lengths[:8]} ...")
    if not np.isfinite(logp).all() or (logp > 1e-3).any():
        raise ValueError("log-probs of the sampler that are above 0 or not finite")
