"""Step scores of the PRM as dense rewards beside the outcome, on the embedded task: the baseline
that SCOPE argues against.

python -m scope_jax.train --config=configs/arithmetic/prm_reward.py --workdir=runs/prm_reward

Scores are normalised over the group and summed to go (process supervision of arXiv 2402.03300).
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.with_prm(common.get_config())
    config.advantage.process = "sum"
    return config
