"""GRPO and SCOPE from the same base, compared.

    python -m scope_jax.demo [--seeds=0,1,2] [--workdir=runs/demo] [--steps=N]
    python -m scope_jax.demo --real [--model=DIR] [--localiser=prm] [--seeds=0]
                             [--workdir=runs/real]

Without `--real`: a tiny policy on the embedded task, minutes. With it: SmolLM2-135M-Instruct, or
the model of `--model`, on word problems, an hour on two cores. Everything that was finished before
is kept: checkpoints in `cache/checkpoints`, finished runs in the workdir; what was stopped goes on.
"""

import dataclasses
from pathlib import Path
from typing import Any

from absl import logging

from scope_jax import cli
from scope_jax.demo.play import play
from scope_jax.demo.settings import EMBEDDED, FINDERS, REAL
from scope_jax.demo.smollm2 import smollm2
from scope_jax.devices.mesh import use_cpu_cores

FLAGS = (
    cli.Flag(
        "real", "a language model on word problems, in place of the embedded task", False, bool
    ),
    cli.Flag(
        "model", "with --real: Hugging Face directory to start from (default: SmolLM2)", None, Path
    ),
    cli.Flag(
        "localiser",
        "with --real: who finds first errors, likelihood (the teacher's) or prm (one is trained)",
        None,
        str,
    ),
    cli.Flag("seeds", "of the runs (default: 0,1,2; with --real 0)", None, list),
    cli.Flag(
        "workdir",
        "directory of the runs and the report (default: runs/demo, runs/real, runs/real-MODEL)",
        None,
        Path,
    ),
    cli.Flag(
        "cache", "directory of models, checkpoints, data and compiled programs", "cache", Path
    ),
    cli.Flag("steps", "batches of each run (default: 25; with --real 16)", None, int),
)


def command(args: Any) -> None:
    """The command line's `demo`."""
    shown = REAL if args.real else EMBEDDED
    seeds = shown.seeds if args.seeds is None else args.seeds
    numbers = [int(seed) for seed in seeds if seed.isdecimal() and len(seed) < 10]
    if not numbers or len({*numbers}) < len(seeds):
        raise ValueError(f"--seeds={','.join(seeds)}: expected different numbers, as in 0,1,2")
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps={args.steps} must be at least 1")
    if args.model is not None and not args.real:
        raise ValueError("--model is for --real; the embedded task makes its own")
    if args.localiser not in (None, *FINDERS):
        raise ValueError(f"--localiser={args.localiser}: expected one of {', '.join(FINDERS)}")
    if args.localiser is not None and not args.real:
        raise ValueError("--localiser is for --real; the embedded task has a process reward model")
    if args.localiser not in (None, shown.localiser):
        workdir = f"{shown.workdir}-{args.localiser}"
        shown = dataclasses.replace(shown, localiser=args.localiser, workdir=workdir)
    logging.set_verbosity(logging.ERROR)  # TFDS warns of a data set of one's own
    model = None
    if args.model is not None:
        name = args.model.resolve().name  # what is made from one model is not taken for another's
        shown = dataclasses.replace(
            shown, checkpoints=f"{shown.checkpoints}-{name}", workdir=f"{shown.workdir}-{name}"
        )
    if args.real:
        model = args.model or smollm2(args.cache / "models" / "SmolLM2-135M-Instruct")
    use_cpu_cores(cli.weights_of(model))
    play(
        shown,
        numbers,
        args.workdir or Path(shown.workdir),
        args.cache,
        steps=args.steps,
        model=model,
    )


if __name__ == "__main__":
    # Both arms and all seeds run the same programs.
    cli.program(command, FLAGS, compiled=lambda values: values.cache / "xla")
