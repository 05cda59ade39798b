"""SCOPE on GSM8K: GRPO's settings, and failures rescued at their first wrong step.

python -m scope_jax.train --config=configs/gsm8k/scope.py --workdir=runs/gsm8k_scope

Not run with real weights here. Besides the files of grpo.py it needs models/Qwen2.5-1.5B-Instruct
(teacher) and models/Qwen2.5-Math-PRM-7B (process reward model).
"""

from scope_jax.configs.gsm8k import grpo


def get_config():
    config = grpo.get_config()
    config.models.teacher = "models/Qwen2.5-1.5B-Instruct"
    config.models.prm = "models/Qwen2.5-Math-PRM-7B"
    config.correction.enabled = True
    config.correction.threshold = 0.8
    config.correction.step_tokens = 128
    return config
