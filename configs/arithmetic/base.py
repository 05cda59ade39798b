"""The base policy of the embedded task: mixed orders, and a misconception about subtractions that borrow.

python -m scope_jax.supervised --config=configs/arithmetic/base.py --workdir=cache/checkpoints/base
"""

from scope_jax.supervised import default_config


def get_config():
    config = default_config()
    config.steps = 600
    config.task.lengths = (2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)
    config.demonstrations.misconception = 0.9
    return config
