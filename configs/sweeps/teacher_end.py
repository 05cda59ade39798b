r"""What if SCOPE stops cloning the teacher's line when half of the run is over? A hypothesis that
was written down before the first run (docs/results_appendix.md), on long signed terms with their
second base (`hypothesis.py`), with seeds and a draw of problems of their own.

python -m scope_jax.sweep --sweep=configs/sweeps/teacher_end.py --jobs=2 \
    --workdir=runs/teacher_end --records=docs/records/teacher_end

Measured with seeds 620 to 624: half of it holds. SCOPE with the loss ended is 25.6 +- 21.4 points
above GRPO on longer problems, ahead on each seed, and in distribution 1.9 +- 3.1 below SCOPE, which
is itself 31.0 +- 25.3 above GRPO on longer problems there (docs/results.md). The same command goes
on with the other seeds.
"""

import dataclasses

from scope_jax.configs.sweeps.common import TEACHER_END_PROBLEMS, checkpoints, run
from scope_jax.configs.sweeps.hypothesis import ARMS, EVALUATION, LONG

SEEDS = range(620, 640)
# name -> (method and batches as in hypothesis.py, what is set besides).
VARIANTS = {
    "grpo": ("grpo", {}),
    "scope": ("scope", {}),
    # The first half is the run that `hypothesis.py` calls early, to the last batch.
    "scope_half": ("scope", {"loss.teacher_steps": 43}),
}


def prepare():
    return checkpoints(LONG)


def sweep():
    runs = []
    for seed in SEEDS:
        for name, (like, change) in VARIANTS.items():
            method, own = ARMS[like]
            overrides = EVALUATION | own[LONG] | change
            one = run(LONG, method, seed, overrides, name, TEACHER_END_PROBLEMS)
            runs.append(
                dataclasses.replace(
                    one, labels={**one.labels, "method": name, "domain": f"{LONG}_again"}
                )
            )
    return runs
