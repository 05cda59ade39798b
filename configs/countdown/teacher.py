"""The teacher of Countdown: no misconception, and a style of its own (sums first, large numbers
first).

python -m scope_jax.supervise --config=configs/countdown/teacher.py --workdir=cache/checkpoints/countdown/teacher

Measured (256 validation problems, 8 samples, temperature 1): pass@1 / pass@8 0.80 / 0.97 with 3
numbers, 0.53 / 0.92 with 4, 0.20 / 0.63 with 5; what remains are true lines that lose the target
(0.89 of the first errors with 4 numbers). 279 seconds of one core. A model of this size does not
get further in a few minutes; a teacher without errors is the domain's program: `teacher.kind =
"program"`, `teacher.style = "same_numbers"`.
"""

from scope_jax.supervise import default_config


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
