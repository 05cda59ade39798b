"""The base policy of Countdown: any right line, and a misconception about subtractions.

python -m scope_jax.supervised --config=configs/countdown/base.py --workdir=cache/checkpoints/countdown/base

MEASURED
"""

from scope_jax.supervised import default_config


def get_config():
    config = default_config()
    config.steps = 600
    config.task.name = "countdown"
    config.task.lengths = (2, 3, 3, 4, 4, 4, 4, 5)
    config.demonstrations.misconception = 0.9
    config.demonstrations.misconception_kind = "slip"
    return config
