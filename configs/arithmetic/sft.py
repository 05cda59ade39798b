"""Supervised steps on the teacher's whole solutions, on the embedded task; no rollouts.

python -m scope_jax.train --config=configs/arithmetic/sft.py --workdir=runs/sft
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.with_teacher(common.get_config())
    config.demonstrations.supervised_steps = config.steps
    config.demonstrations.rows = 32
    config.demonstrations.verified = True
    return config
