"""The process reward model of Countdown: labelled rollouts of the base policy, trunk of the
teacher.

python -m scope_jax.supervise --config=configs/countdown/prm.py --workdir=cache/checkpoints/countdown/prm

A weak one. Measured on held-out rollouts of the base (951 failed, 73 right), threshold 0.5: first
error exact 0.60, not later 0.70, later 0.25, none found 0.05; right rollouts left alone 0.29.
Threshold 0.6: exact 0.67, not later 0.83, left alone 0.10. To call the first line wrong every time
is exact in 0.64. 174 seconds of one core.
"""

from scope_jax.supervise import default_config


def get_config():
    config = default_config()
    config.kind = "prm"
    config.steps = 1000
    config.task.name = "countdown"
    config.start = "cache/checkpoints/countdown/teacher"
    config.rollouts.policy = "cache/checkpoints/countdown/base"
    config.rollouts.problems = 4096
    config.rollouts.lengths = (4,)
    config.optimizer.learning_rate = 1e-3
    return config
