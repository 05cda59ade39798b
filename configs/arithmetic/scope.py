"""SCOPE on the embedded task: GRPO's settings, and failures rescued at their first wrong step.

python -m scope_jax.train --config=configs/arithmetic/scope.py --workdir=runs/scope
"""

from configs.arithmetic import grpo


def get_config():
    config = grpo.get_config()
    config.models.teacher = "cache/checkpoints/teacher"
    config.models.prm = "cache/checkpoints/prm"
    config.correction.enabled = True
    config.correction.step_tokens = 8
    config.loss.teacher_weight = 1.0
    config.loss.teacher_schedule = "linear"
    return config
