"""The process reward model of the embedded task: labelled rollouts of the base policy, trunk of
the teacher.

python -m scope_jax.supervise --config=configs/arithmetic/prm.py --workdir=cache/checkpoints/prm

Measured on held-out rollouts of the base (899 failed, 125 right), threshold 0.5: first error exact
0.90, not later 0.91, later 0.06, none found 0.03; right rollouts left alone 0.84. About one minute
on 2 cores.
"""

from scope_jax.supervise import default_config


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
