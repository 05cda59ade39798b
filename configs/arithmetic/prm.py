"""The process reward model of the embedded task: labelled rollouts of the base policy, trunk of the teacher.

python -m scope_jax.supervised --config=configs/arithmetic/prm.py --workdir=cache/checkpoints/prm
"""

from scope_jax.supervised import default_config


def get_config():
    config = default_config()
    config.kind = "prm"
    config.steps = 250
    config.start = "cache/checkpoints/teacher"
    config.rollouts.policy = "cache/checkpoints/base"
    config.rollouts.problems = 2048
    config.rollouts.lengths = (4, 5, 6)
    config.optimizer.learning_rate = 1e-3
    return config
