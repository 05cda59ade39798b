r"""What the ablations suggested, tried again on seeds and a draw of problems of their own: SCOPE
without the standard deviation, with the mean over tokens and without the band of the selection
(its defaults), beside SCOPE with them (`scope_first`) and GRPO. Twelve paired seeds per task.

python -m scope_jax.sweep --sweep=configs/sweeps/confirmation.py --jobs=2 \
    --workdir=runs/confirmation --records=docs/records/confirmation
"""

from scope_jax.configs.sweeps.common import CONFIRMATION_PROBLEMS, DOMAINS, checkpoints, run

SEEDS = range(200, 212)
METHODS = ("scope", "scope_first", "grpo")


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    return [
        run(domain, method, seed, problems=CONFIRMATION_PROBLEMS)
        for domain in DOMAINS
        for seed in SEEDS
        for method in METHODS
    ]
