"""GRPO and SCOPE from the same base, compared: make demo, make real.

    python -m scope_jax.demo [--seeds=0,1,2] [--workdir=runs/demo] [--steps=N]
    python -m scope_jax.demo --real [--model=DIR] [--seeds=0] [--workdir=runs/real]

Without `--real`: a tiny policy on the embedded task, minutes. With it: SmolLM2-135M-Instruct, or
the model of `--model`, on word problems, an hour on two cores. Everything that was finished before
is kept: checkpoints in `cache/checkpoints`, finished runs in the workdir; what was stopped goes on.

In: nothing, or a model. Out: two runs for each seed, a table, a page.
"""
