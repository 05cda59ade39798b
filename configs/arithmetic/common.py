"""What all methods share on the embedded task: problems, base policy, rollouts, optimiser, two
updates per batch, evaluation.

The files beside it set what is a method's own. By itself, policy gradient with a token mean and no
standard deviation:

python -m scope_jax.train --config=configs/arithmetic/common.py --workdir=runs/common
"""

from scope_jax.config import default_config


def get_config():
    config = default_config()
    config.steps = 25
    config.task.data = "cache/tfds"
    config.task.options = {
        "lengths": (5, 6),
        "ood_lengths": (7,),
        "start": "zero",
        "test_size": 1000,
        "test_ood_size": 1000,
    }
    config.models.policy = "cache/checkpoints/base"
    config.rollout.prompts = 16
    config.rollout.group = 8
    config.rollout.prompt_tokens = 13
    config.rollout.new_tokens = 34
    config.loss.normaliser = "token"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 5
    config.optimizer.b2 = 0.98
    config.training.mini_batches = config.training.micro_batches = 2
    config.evaluation.prompt_tokens = 15
    config.evaluation.new_tokens = 39
    return config


def with_teacher(config):
    """The teacher that demonstrates or corrects."""
    config.models.teacher = "cache/checkpoints/teacher"
    return config


def with_prm(config):
    """The process reward model that scores steps."""
    config.models.prm = "cache/checkpoints/prm"
    return config
