"""Dr.GRPO (arXiv 2503.20783) on the embedded task: no standard deviation, loss over a constant
number of tokens.

python -m scope_jax.train --config=configs/arithmetic/dr_grpo.py --workdir=runs/dr_grpo
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.get_config()
    config.loss.normaliser = "constant"
    config.loss.clip_high = 0.2
    return config
