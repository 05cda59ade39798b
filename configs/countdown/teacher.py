"""The teacher of Countdown: no misconception, and a style of its own (sums first, large numbers first).

python -m scope_jax.supervised --config=configs/countdown/teacher.py --workdir=cache/checkpoints/countdown/teacher

MEASURED
"""

from scope_jax.supervised import default_config


def get_config():
    config = default_config()
    config.seed = 1
    config.steps = 1200
    config.task.name = "countdown"
    config.task.lengths = (3, 3, 4, 4, 4, 4, 4, 5)
    config.task.seed = 2
    config.demonstrations.style = "sorted"
    config.demonstrations.anyones_prefix = True
    config.start = "cache/checkpoints/countdown/base"
    config.optimizer.learning_rate = 3e-3
    return config
