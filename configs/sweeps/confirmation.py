r"""What the ablations suggest, tried again on problems and seeds that nothing was chosen on: SCOPE without the standard deviation,
with the mean over tokens and without the band of the selection, beside SCOPE as shipped and GRPO. Twelve paired seeds per task.

python -m scope_jax.sweep --sweep=configs/sweeps/confirmation.py --jobs=2 \
    --workdir=runs/confirmation --records=benchmarks/results/confirmation
"""

import dataclasses

from configs.sweeps.common import DOMAINS, checkpoints, run

SEEDS = range(200, 212)
PROBLEMS = 3  # another draw than those of the search and of the table
PLAIN = {"advantage.std": False, "loss.normaliser": "token", "correction.select.rule": "all"}


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    runs = []
    for domain in DOMAINS:
        for seed in SEEDS:
            for method, name, overrides in (("scope", "scope", {}), ("scope", "scope_plain", PLAIN), ("grpo", "grpo", {})):
                one = run(domain, method, seed, overrides, name, problems=PROBLEMS)
                runs.append(dataclasses.replace(one, labels={**one.labels, "method": name}))
    return runs
