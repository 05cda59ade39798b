"""The base policy of the embedded task: mixed orders, and a misconception about subtractions that
borrow.

python -m scope_jax.supervise --config=configs/arithmetic/base.py --workdir=cache/checkpoints/base

Measured (256 problems, 8 samples, temperature 1): pass@1 / pass@8 0.17 / 0.50 with 4 terms, 0.15 /
0.49 with 5, 0.07 / 0.32 with 6 and 7. About two minutes on 2 cores.
"""

from scope_jax.supervise import default_config


def get_config():
    config = default_config()
    config.steps = 600
    config.task.lengths = (2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7)
    config.demonstrations.misconception = 0.9
    return config
