"""The methods of configs/arithmetic on Countdown: another task, other checkpoints, nothing else.

Each file beside it is one method. By itself, policy gradient with a token mean and no standard
deviation:

python -m scope_jax.train --config=configs/countdown/common.py --workdir=runs/countdown
"""

from scope_jax.configs.arithmetic import common

CHECKPOINTS = "cache/checkpoints/countdown"


def on_countdown(config):
    """A config of signed terms, moved to Countdown."""
    config.task.name = "countdown"
    config.task.options = {
        "lengths": (4,),
        "ood_lengths": (5,),
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = f"{CHECKPOINTS}/base"
    if config.models.teacher:
        config.models.teacher = f"{CHECKPOINTS}/teacher"
    if config.models.prm:
        config.models.prm = f"{CHECKPOINTS}/prm"
    config.teacher.style = "same_numbers"
    config.rollout.prompt_tokens = 15
    config.rollout.new_tokens = 40
    config.correction.step_tokens = 16
    config.evaluation.prompt_tokens = 18
    config.evaluation.new_tokens = 59
    return config


def get_config():
    return on_countdown(common.get_config())
