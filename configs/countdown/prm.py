"""The process reward model of Countdown: labelled rollouts of the base policy, trunk of the teacher.

python -m scope_jax.supervised --config=configs/countdown/prm.py --workdir=cache/checkpoints/countdown/prm

MEASURED
"""

from scope_jax.supervised import default_config


def get_config():
    config = default_config()
    config.kind = "prm"
    config.steps = 250
    config.task.name = "countdown"
    config.start = "cache/checkpoints/countdown/teacher"
    config.rollouts.policy = "cache/checkpoints/countdown/base"
    config.rollouts.problems = 2048
    config.rollouts.lengths = (4,)
    config.optimizer.learning_rate = 1e-3
    return config
