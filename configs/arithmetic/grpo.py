"""GRPO (Dr.GRPO's normaliser, no std) on the embedded task: the SCOPE program with the correction off.

python -m scope_jax.train --config=configs/arithmetic/grpo.py --workdir=runs/grpo

Measured (seeds 0, 1, 2; 1,000 problems): pass@1 0.435 +- 0.015, pass@8 0.958, distinct paths 2.90; longer problems 0.292 /
0.892. The base: 0.117 / 0.449 and 0.052 / 0.284.
"""

from scope_jax.configuration import default_config


def get_config():
    config = default_config()
    config.steps = 25
    config.task.data = "cache/tfds"
    config.task.options = {"lengths": (5, 6), "ood_lengths": (7,), "start": "zero", "test_size": 1000, "test_ood_size": 1000}
    config.models.policy = "cache/checkpoints/base"
    config.rollout.prompts = 16
    config.rollout.group = 8
    config.rollout.prompt_tokens = 13
    config.rollout.new_tokens = 34
    config.loss.normaliser = "token"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 5
    config.optimizer.b2 = 0.98
    config.training.micro_batches = 4
    config.evaluation.prompt_tokens = 15
    config.evaluation.new_tokens = 39
    return config
