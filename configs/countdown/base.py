"""The base policy of Countdown: any right line, and a misconception about subtractions.

python -m scope_jax.supervise --config=configs/countdown/base.py --workdir=cache/checkpoints/countdown/base

Measured (256 validation problems, 8 samples, temperature 1): pass@1 / pass@8 0.22 / 0.77 with 3
numbers, 0.10 / 0.56 with 4, 0.02 / 0.13 with 5. Of the first errors with 4 numbers 0.55 are in the
arithmetic and 0.44 are true lines that lose the target. 167 seconds of one core.
"""

from scope_jax.supervise import default_config


def get_config():
    config = default_config()
    config.steps = 700
    config.task.name = "countdown"
    config.task.lengths = (3, 3, 4, 4, 4, 4, 4, 5)
    config.demonstrations.misconception = 0.4
    config.demonstrations.misconception_kind = "slip"
    return config
