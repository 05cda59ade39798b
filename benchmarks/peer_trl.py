"""Times transformers `generate` and TRL's GRPOTrainer on the CPU; prints one JSON line as
`benchmarks/speed.py` does.

Runs under an interpreter with torch, transformers and trl (`requirements-trl.txt`):

    python benchmarks/peer_trl.py rollout|step --model=DIR --prompts=8 --group=8
        --prompt-length=64 --new-tokens=128
"""

import importlib.metadata
import itertools
import statistics
import sys
import tempfile
import time
from argparse import Namespace

import torch
import transformers
from lengths import alternating_rewards, prompt_texts
from peer_cli import parse_args, report, row_lengths


class EndAtLength(transformers.StoppingCriteria):
    """Ends row b once it holds `prompt_length + lengths[b]` tokens; the batch runs on until its
    longest row ends."""

    def __init__(self, prompt_length: int, lengths: list[int]):
        self.last_B = prompt_length + torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return input_ids.shape[1] >= self.last_B


def load_model(directory: str) -> transformers.PreTrainedModel:
    """The checkpoint in float32, in evaluation mode."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def rollout(args: Namespace) -> dict:
    """Seconds of `generate` over all rows, in batches of `seats`; varied lengths: or in one batch,
    if faster."""
    model = load_model(args.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    texts = [
        text
        for text in prompt_texts(args.prompts, args.prompt_length, args.seed)
        for _ in range(args.group)
    ]
    ids_BT = tokenizer(texts, return_tensors="pt").input_ids
    if ids_BT.shape != (args.prompts * args.group, args.prompt_length):
        raise ValueError(
            f"{args.model}: prompts of shape {tuple(ids_BT.shape)}; needs {args.prompt_length}"
            " tokens each"
        )
    lengths = row_lengths(args)
    # Plain sampling at temperature 1 without an end token: every row lasts as long as it is told
    # to.
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=args.new_tokens if args.lengths == "fixed" else None,
        max_new_tokens=args.new_tokens,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model.generation_config = config

    @torch.inference_mode()
    def run(batch: int) -> float:
        start = time.perf_counter()
        for at in range(0, len(lengths), batch):
            part_B, rows = lengths[at : at + batch], ids_BT[at : at + batch]
            stop = [] if args.lengths == "fixed" else [EndAtLength(args.prompt_length, part_B)]
            out_BT = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                generation_config=config,
                stopping_criteria=stop,
            )
            if out_BT.shape[1] != args.prompt_length + max(part_B):
                raise RuntimeError(
                    f"generate wrote {out_BT.shape[1] - args.prompt_length} tokens, not"
                    f" {max(part_B)}"
                )
        return time.perf_counter() - start

    batches = sorted(
        {min(args.seats, len(lengths)), len(lengths)} if args.lengths == "varied" else {args.seats}
    )
    first = {batch: run(batch) for batch in batches}
    best = min(first, key=lambda batch: first[batch])
    seconds = [run(best) for _ in range(args.steps)]
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "tokens": sum(lengths),
        "compile_seconds": max(0.0, first[best] - statistics.median(seconds)),
        "batch": best,
        "first_seconds_by_batch": first,
    }


class StepClock(transformers.TrainerCallback):
    """Times of the ends of optimiser steps."""

    def __init__(self):
        self.ends = [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def step(args: Namespace) -> dict:
    """Seconds between the ends of successive GRPOTrainer steps (generation, reward, update), the
    first left out."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model = load_model(args.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    steps = args.steps + 1
    texts = prompt_texts(args.prompts * steps, args.prompt_length, args.seed)
    rows = args.prompts * args.group
    micro = args.micro_batch or rows
    clock = StepClock()
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            num_generations=args.group,
            max_completion_length=args.new_tokens,
            generation_kwargs={"min_new_tokens": args.new_tokens},
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            num_iterations=1,
            max_steps=steps,
            learning_rate=1e-6,
            gradient_checkpointing=False,
            bf16=False,
            fp16=False,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            shuffle_dataset=False,
            seed=args.seed,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **kwargs: alternating_rewards(len(completions)),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
        log = trainer.state.log_history[-1]
    if log["completions/min_length"] != args.new_tokens or not log["reward_std"] > 0:
        raise RuntimeError(
            f"GRPOTrainer: completions must have {args.new_tokens} tokens and rewards a spread:"
            f" {log}"
        )
    spans = [end - start for start, end in itertools.pairwise(clock.ends)]
    return {
        "seconds": statistics.median(spans[1:]),
        "all_seconds": spans[1:],
        "tokens": rows * args.new_tokens,
        "compile_seconds": max(0.0, spans[0] - statistics.median(spans[1:])),
        "micro_batch": micro,
    }


def main() -> None:
    args = parse_args("transformers generate and TRL GRPOTrainer")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(args.seed)
    result = rollout(args) if args.mode == "rollout" else step(args)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
    report("trl", args, result | {"versions": versions})


if __name__ == "__main__":
    sys.exit(main())
