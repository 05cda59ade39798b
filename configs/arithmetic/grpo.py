"""GRPO (arXiv 2402.03300) on the embedded task: advantages over the group's standard deviation,
loss averaged per row.

python -m scope_jax.train --config=configs/arithmetic/grpo.py --workdir=runs/grpo

Measured (`make demo`: seeds 0, 1, 2; 1,000 problems): pass@1 0.607 +- 0.010, pass@8 0.995,
distinct paths 4.33; longer problems 0.440 / 0.974. The base: 0.113 / 0.430 and 0.048 / 0.279.
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.get_config()
    config.advantage.std = True
    config.loss.normaliser = "sequence"
    config.loss.clip_high = 0.2
    return config
