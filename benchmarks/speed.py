"""Steady-state speed of the programs that a training step is made of.

    python benchmarks/speed.py rollout|update|step --model=DIR
        [--prompts=8 --group=8 --prompt-length=64 --new-tokens=128]
        [--seats=64 --lengths=varied --lengths-file=F] [--steps=5] [--json] [--profile=DIR]
        [--remat=layer --moments=bfloat16 --length-buckets=4 --cache=int8]

rollout: tokens written per second. update: tokens (prompt and completion) trained per second.
step: one GRPO iteration (rollouts, verdicts, advantages, update). Compilation is timed apart.
`--lengths-file` holds a JSON list of completion lengths, one per row: rows end there, as if an end
token had been drawn. `--profile` writes a trace of one call, and the compiled text of every
program, into a directory.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import learning, models, rollout
from scope_jax.cli import weights_of
from scope_jax.devices.mesh import make_mesh, use_cpu_cores
from scope_jax.devices.shapes import fine_width
from scope_jax.learning.optimizer import MOMENTS
from scope_jax.training.figures import peak_memory
from scope_jax.types import Rollout


def parse(argv: list[str]) -> argparse.Namespace:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/speed.py",
        description="Steady-state speed of rollouts, updates, steps.",
    )
    parser.add_argument("mode", choices=("rollout", "update", "step"))
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="rollouts per prompt")
    parser.add_argument("--prompt-length", type=int, default=64, help="tokens of each prompt")
    parser.add_argument(
        "--new-tokens", type=int, default=128, help="tokens written per row (the budget)"
    )
    parser.add_argument("--seats", type=int, default=0, help="rows decoded at once; 0: all")
    parser.add_argument("--lengths", choices=("fixed", "varied"), default="fixed")
    parser.add_argument(
        "--lengths-file", help="JSON list of completion lengths, one per row (for --lengths=varied)"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed calls")
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        help="rows per micro-batch of the update; 0: 8 per device",
    )
    parser.add_argument(
        "--remat",
        choices=tuple(models.REMAT),
        default="none",
        help="what is recomputed in the backward pass",
    )
    parser.add_argument("--moments", choices=MOMENTS, default="float32", help="of the optimiser")
    parser.add_argument(
        "--length-buckets",
        type=int,
        default=1,
        help="parts of like length that an update is packed in",
    )
    parser.add_argument(
        "--cache", choices=("auto", "int8"), default="auto", help="keys and values while decoding"
    )
    parser.add_argument("--dtype", default="float32", help="of the parameters")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--profile", help="directory for a trace and the programs")
    return parser.parse_args(argv)


def measure(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """{"seconds": median, "all_seconds": each, "cpu_seconds": median of what all threads of the
    process computed, "compile_seconds": first call less the median}; `call` must block. Other work
    on the machine lengthens seconds, not those of the CPU."""
    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    seconds, computed = [], []
    for _ in range(repeats):
        begin, cpu = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - begin)
        computed.append(time.process_time() - cpu)
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "all_seconds": seconds,
        "cpu_seconds": statistics.median(computed),
        "compile_seconds": max(first - median, 0.0),
    }


def rollout_call(
    params: models.Params,
    config: models.ModelConfig,
    prompts: list[list[int]],
    group: int,
    new_tokens: int,
    seats: int,
    lengths: Any,
    cache: str = "auto",
) -> Callable[[int], Rollout]:
    """A function of a seed that makes one batch of rollouts. No end token is looked for, so that
    lengths are as asked."""
    buffer = max(len(p) for p in prompts) + new_tokens
    spec = rollout.SampleSpec(max_new_tokens=new_tokens, cache=cache, seats=seats or None)
    generator = rollout.Generator(params, config)

    def call(seed: int) -> Rollout:
        rows = rollout.from_prompts(prompts, group, buffer)
        limit = None if lengths is None else rows.prompt_length_B + jnp.asarray(lengths, jnp.int32)
        rows = generator.extend(
            rows, jax.random.key(seed), spec, shared_prefix=group, limit_B=limit
        )
        return jax.block_until_ready(rows)

    return call


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure as the settings say; returns the record that is printed."""
    with jax.set_mesh(make_mesh()):
        begin = time.perf_counter()
        config, params = models.load(args.model, dtype=args.dtype)
        jax.block_until_ready(params)
        load_seconds = time.perf_counter() - begin
        rng = np.random.default_rng(0)
        prompts = rng.integers(1, config.vocab_size, (args.prompts, args.prompt_length)).tolist()
        rows = args.prompts * args.group
        lengths = None
        if args.lengths == "varied":
            if not args.lengths_file:
                raise ValueError(
                    "--lengths=varied needs --lengths-file, a JSON list with one completion length"
                    " per row"
                )
            lengths = json.loads(Path(args.lengths_file).read_text())
            if len(lengths) != rows or not all(1 <= n <= args.new_tokens for n in lengths):
                raise ValueError(
                    f"{args.lengths_file}: {len(lengths)} lengths; {rows} from 1 to"
                    f" {args.new_tokens} are needed"
                )
        make = rollout_call(
            params, config, prompts, args.group, args.new_tokens, args.seats, lengths, args.cache
        )
        seeds = iter(range(10**9))
        micro_batch = args.micro_batch or math.gcd(8 * jax.device_count(), rows)
        if rows % micro_batch:
            raise ValueError(f"--micro-batch={micro_batch} does not divide {rows} rows")
        buckets = args.length_buckets
        passes = max(rows // micro_batch // buckets, 1)
        if args.prompts % buckets or rows // buckets % passes:
            raise ValueError(
                f"--length-buckets={buckets} must divide {args.prompts} prompts and their"
                " micro-batches"
            )
        spec = learning.LossSpec(max_new_tokens=args.new_tokens)
        optimizer = learning.make_optimizer(
            learning.OptimizerSpec(learning_rate=1e-6, moments=args.moments)
        )
        objective = learning.policy_objective(
            dataclasses.replace(config, remat=args.remat), spec, temperature=1.0, entropy=False
        )
        update = learning.make_update(objective, optimizer, config, passes, dtype=args.dtype)
        state, positions = learning.init_state(params, optimizer, "float32"), 0
        shares = {fine_width(-(-args.new_tokens * n // buckets)) for n in range(1, buckets + 1)}
        sizes = learning.PackSizes((fine_width(args.prompt_length),), tuple(sorted(shares)))

        def train_on(batch: Rollout) -> None:
            nonlocal state, positions
            written = rollout.completion_ids(batch)
            reward = np.array([sum(ids) % 2 for ids in written], np.float32)
            advantage = learning.group_advantages(jnp.asarray(reward), args.group)
            on, off = learning.token_weights(batch, spec)
            arrays = {"advantage": advantage, "on": on, "off": off, "old_logp": batch.logp_BT}
            parts, unit = [(batch, arrays)], args.group
            if buckets > 1:
                order = learning.length_order(batch, unit, buckets)
                parts = [
                    jax.tree.map(lambda x, index=index: jnp.asarray(x)[index], parts[0])
                    for index in order
                ]
            packed = [learning.pack(*part, unit, passes, sizes) for part in parts]
            positions = sum(batch["prompt"].size + batch["completion"].size for batch in packed)
            state, stats = update(state, packed, {"teacher_weight": jnp.float32(0.0)})
            jax.block_until_ready((state, stats))

        written = rows * args.new_tokens if lengths is None else sum(lengths)
        call: Callable[[], Any]
        if args.mode == "rollout":
            call, tokens = (lambda: make(next(seeds))), written
        elif args.mode == "update":
            fixed = make(0)
            call, tokens = (lambda: train_on(fixed)), written + rows * args.prompt_length
        else:
            call, tokens = (lambda: train_on(make(next(seeds)))), written
        record = measure(call, args.steps)
        if args.profile:
            with jax.profiler.trace(args.profile):
                call()
    settings = {
        "model": args.model,
        "prompts": args.prompts,
        "group": args.group,
        "prompt_length": args.prompt_length,
        "new_tokens": args.new_tokens,
        "seats": args.seats or rows,
        "micro_batch": micro_batch,
        "dtype": args.dtype,
        "remat": args.remat,
        "moments": args.moments,
        "length_buckets": buckets,
        "cache": args.cache,
        "update_positions": positions,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    return {
        "mode": args.mode,
        "tokens": int(tokens),
        "tokens_per_s": tokens / record["seconds"],
        **record,
        "load_seconds": load_seconds,
        "peak_gb": next(iter(peak_memory().values())),
        **settings,
    }


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.profile:
        # Read once, when the first device is asked for.
        folder = Path(args.profile) / "programs"
        dump = (
            f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
            " --xla_dump_hlo_module_re=jit_(generate_program|update)"
        )
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}"
    use_cpu_cores(weights_of(args.model))
    try:
        record = bench(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(record))
    else:
        speed = f"{record['seconds']:.3f} s, {record['tokens_per_s']:.0f} tokens/s"
        rest = (
            f"{record['cpu_seconds']:.3f} s of the CPU, compile {record['compile_seconds']:.1f} s,"
            f" load {record['load_seconds']:.1f} s, peak {record['peak_gb']:.2f} GB"
        )
        print(f"{record['mode']}: {speed} ({rest})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
