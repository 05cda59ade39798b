"""The teacher of the embedded task: no misconception, and a style of its own (terms in the order of the prompt).

python -m scope_jax.supervised --config=configs/arithmetic/teacher.py --workdir=cache/checkpoints/teacher
"""

from scope_jax.supervised import default_config


def get_config():
    config = default_config()
    config.seed = 1
    config.steps = 350
    config.task.lengths = (2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)
    config.task.seed = 2
    config.demonstrations.style = "sorted"
    config.demonstrations.anyones_prefix = True
    config.start = "cache/checkpoints/base"
    config.optimizer.learning_rate = 2e-3
    return config
