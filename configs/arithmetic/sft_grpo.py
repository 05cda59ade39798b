"""Supervised steps first, GRPO after, on the embedded task.

python -m scope_jax.train --config=configs/arithmetic/sft_grpo.py --workdir=runs/sft_grpo
"""

from scope_jax.configs.arithmetic import common, grpo


def get_config():
    config = common.with_teacher(grpo.get_config())
    config.demonstrations.supervised_steps = 10
    config.demonstrations.rows = 32
    config.demonstrations.verified = True
    return config
