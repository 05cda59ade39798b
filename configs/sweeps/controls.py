r"""The first comparisons once more, on another base, on fresh seeds and another draw of problems,
with SCOPE's defaults; and what LUFFY's entropy bonus and a lower learning rate do.
Five paired seeds, signed terms.

python -m scope_jax.sweep --sweep=configs/sweeps/controls.py --jobs=2 \
    --workdir=runs/controls --records=docs/records/controls

The base is one that was trained on another machine than that of the tables: the same program and
seed do not give the same weights on every processor.
"""

import dataclasses

from scope_jax.configs.sweeps.common import CONTROL_PROBLEMS, STRONG, checkpoints, run

SEEDS = range(300, 305)
WEAK = {
    "loss.entropy_bonus": 2e-5
}  # what the script's 0.001 comes to under our normaliser: the config file's
VARIANTS = {
    "scope": ("scope", {}),
    "grpo": ("grpo", {}),
    "luffy": ("luffy", WEAK),
    "luffy, entropy bonus of the table": ("luffy", STRONG),
    "luffy at 7.5e-5": ("luffy", {**WEAK, "optimizer.learning_rate": 7.5e-5}),
    "luffy_nll": ("luffy_nll", WEAK),
}


def prepare():
    return checkpoints("arithmetic")


def sweep():
    runs = []
    for seed in SEEDS:
        for name, (method, overrides) in VARIANTS.items():
            label = name.replace(",", "").replace(" ", "_")
            one = run("arithmetic", method, seed, overrides, label, CONTROL_PROBLEMS)
            runs.append(dataclasses.replace(one, labels={**one.labels, "method": name}))
    return runs
