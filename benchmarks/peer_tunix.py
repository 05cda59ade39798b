"""Times Tunix's sampler and GRPO learner on the CPU; prints one JSON line as `benchmarks/speed.py`
does.

Runs under Python 3.12 or later with google-tunix (`requirements-tunix.txt`), on the same
checkpoint directory:

    python benchmarks/peer_tunix.py rollout|step --model=DIR --prompts=8 --group=8
        --prompt-length=64 --new-tokens=128
"""

import importlib.metadata
import itertools
import json
import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transformers
from lengths import alternating_rewards, prompt_texts
from peer_cli import parse_args, report, row_lengths
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import rl_cluster as cluster_lib
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

NO_END = [-1]  # an end token that is never sampled: every row runs to its budget


def load_model(directory: str, mesh: jax.sharding.Mesh) -> qwen2.Qwen2:
    """The checkpoint in float32; its sizes are read from config.json."""
    raw = json.loads((Path(directory) / "config.json").read_text())
    config = qwen2.ModelConfig(
        num_layers=raw["num_hidden_layers"],
        vocab_size=raw["vocab_size"],
        embed_dim=raw["hidden_size"],
        hidden_dim=raw["intermediate_size"],
        num_heads=raw["num_attention_heads"],
        head_dim=raw["hidden_size"] // raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
        use_tied_embedding=raw["tie_word_embeddings"],
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    return qwen2_params.create_model_from_safe_tensors(directory, config, mesh, dtype=jnp.float32)


def one_device_mesh() -> jax.sharding.Mesh:
    """The CPU as a mesh with the axis names that Tunix's shardings mention."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


def rollout(args: Namespace) -> dict:
    """Seconds of the sampler over all rows, in batches of `seats`; varied lengths: or in one
    batch, if faster.

    The sampler knows no length of single rows. Its loop ends when all rows of a batch have, so a
    batch of rows that end early costs exactly the steps of its longest row: that is the budget it
    is called with.
    """
    mesh = one_device_mesh()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    texts = [
        text
        for text in prompt_texts(args.prompts, args.prompt_length, args.seed)
        for _ in range(args.group)
    ]
    lengths = row_lengths(args)
    with mesh:
        model = load_model(args.model, mesh)
        sampler = sampler_lib.Sampler(
            model,
            tokenizer,
            sampler_lib.CacheConfig(
                cache_size=args.prompt_length + args.new_tokens,
                num_layers=model.config.num_layers,
                num_kv_heads=model.config.num_kv_heads,
                head_dim=model.config.head_dim,
            ),
        )

        def run(batch: int, seed: int) -> float:
            start = time.perf_counter()
            for at in range(0, len(lengths), batch):
                budget = max(lengths[at : at + batch])
                out = sampler(
                    texts[at : at + batch],
                    max_generation_steps=budget,
                    max_prompt_length=args.prompt_length,
                    eos_tokens=NO_END,
                    temperature=1.0,
                    top_p=1.0,  # with no top_k the whole vocabulary, without sorting
                    seed=seed,
                )
                if any(len(tokens) != budget for tokens in out.tokens):
                    raise RuntimeError(
                        f"the sampler wrote {len(out.tokens[0])} tokens, not {budget}"
                    )
            return time.perf_counter() - start

        batches = sorted(
            {min(args.seats, len(lengths)), len(lengths)}
            if args.lengths == "varied"
            else {args.seats}
        )
        first = {batch: run(batch, 0) for batch in batches}
        # Compilation hides the speed of the first call: a second one decides.
        second = {batch: run(batch, 1) for batch in batches} if len(batches) > 1 else first
        best = min(second, key=lambda batch: second[batch])
        seconds = [run(best, seed) for seed in range(2, 2 + args.steps)]
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "tokens": sum(lengths),
        "compile_seconds": max(0.0, first[best] - statistics.median(seconds)),
        "batch": best,
        "second_seconds_by_batch": second,
    }


def step(args: Namespace) -> dict:
    """Seconds between the reward calls of successive GRPO steps: one update and one generation,
    each awaited."""
    mesh = one_device_mesh()
    rows, micro = args.prompts * args.group, args.micro_batch or args.prompts * args.group
    warmup = (
        2  # the first step compiles, the second once more for parameters that come from the update
    )
    steps = warmup + args.steps
    texts = prompt_texts(args.prompts * steps, args.prompt_length, args.seed)
    batches = [
        {"prompts": np.array(texts[at : at + args.prompts])}
        for at in range(0, len(texts), args.prompts)
    ]
    calls: list[float] = [time.perf_counter()]

    def reward(prompts: list[str], completions: list[str], **kwargs) -> list[float]:
        calls.append(time.perf_counter())
        return alternating_rewards(len(completions))

    with mesh:
        roles = (cluster_lib.Role.ACTOR, cluster_lib.Role.ROLLOUT, cluster_lib.Role.REFERENCE)
        cluster = cluster_lib.RLCluster(
            actor=load_model(args.model, mesh),
            tokenizer=transformers.AutoTokenizer.from_pretrained(args.model),
            cluster_config=cluster_lib.ClusterConfig(
                role_to_mesh=dict.fromkeys(roles, mesh),
                rollout_engine="vanilla",
                training_config=cluster_lib.RLTrainingConfig(
                    actor_optimizer=optax.adamw(1e-6),
                    eval_every_n_steps=10**9,
                    max_steps=steps,
                    mini_batch_size=args.prompts,
                    train_micro_batch_size=micro // args.group,
                    rollout_micro_batch_size=args.prompts,
                    compute_logps_micro_batch_size=args.prompts,
                ),
                rollout_config=base_rollout.RolloutConfig(
                    max_tokens_to_generate=args.new_tokens,
                    max_prompt_length=args.prompt_length,
                    kv_cache_size=args.prompt_length + args.new_tokens,
                    temperature=1.0,
                    top_p=1.0,
                    eos_tokens=NO_END,
                ),
            ),
        )
        learner = grpo_learner.GRPOLearner(
            rl_cluster=cluster,
            algo_config=grpo_learner.GRPOConfig(
                num_generations=args.group, num_iterations=1, beta=0.0
            ),
            reward_fns=reward,
        )
        learner.train(batches)
    spans = [end - start for start, end in itertools.pairwise(calls)]
    if len(spans) != steps:
        raise RuntimeError(f"the learner called the reward {len(spans)} times in {steps} steps")
    return {
        "seconds": statistics.median(spans[warmup:]),
        "all_seconds": spans[warmup:],
        "tokens": rows * args.new_tokens,
        "compile_seconds": max(
            0.0, sum(spans[:warmup]) - warmup * statistics.median(spans[warmup:])
        ),
        "micro_batch": micro,
        "first_seconds": spans[:warmup],
    }


def main() -> None:
    args = parse_args("Tunix's sampler and GRPO learner")
    result = rollout(args) if args.mode == "rollout" else step(args)
    versions = {name: importlib.metadata.version(name) for name in ("google-tunix", "jax", "flax")}
    report("tunix", args, result | {"versions": versions})


if __name__ == "__main__":
    sys.exit(main())
