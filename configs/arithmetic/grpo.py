"""GRPO (arXiv 2402.03300) on the embedded task: advantages over the group's standard deviation, loss averaged per row.

python -m scope_jax.train --config=configs/arithmetic/grpo.py --workdir=runs/grpo
"""

from configs.arithmetic import common


def get_config():
    config = common.get_config()
    config.advantage.std = True
    config.loss.normaliser = "sequence"
    config.loss.clip_high = 0.2
    return config
