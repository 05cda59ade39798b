"""The teacher of the embedded task: no misconception, and a style of its own (terms in the order
of the prompt).

python -m scope_jax.supervise --config=configs/arithmetic/teacher.py --workdir=cache/checkpoints/teacher

Measured (256 problems, 8 samples, temperature 1): pass@1 0.99 with 4 and 5 terms, 0.985 with 6 and
7. About one minute on 2 cores.
"""

from scope_jax.supervise import default_config


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
