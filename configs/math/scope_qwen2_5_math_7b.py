r"""SCOPE in the paper's setting: Qwen2.5-Math-7B on MATH levels 3-5, group of 8, PRM Qwen2.5-Math-PRM-7B, a 72B teacher.

python -m scope_jax.train --config=configs/math/scope_qwen2_5_math_7b.py --workdir=runs/math_7b

Not run with real weights here. The paper's body is not at hand (docs/method.md): steps, batch and learning rate are those
of its field. Files as in scope_qwen2_5_math_1_5b.py, with models/Qwen2.5-Math-7B and models/Qwen2.5-Math-72B-Instruct.

Memory (bfloat16 parameters, float32 moments): about 90 GB for the policy, 145 GB for the teacher, 15 GB for the PRM, all
split over `mesh.fsdp` devices; a slice of 32 TPU v5e (512 GB) or 8 GPUs of 80 GB leave room for activations.
"""

from configs.math import scope_qwen2_5_math_1_5b


def get_config():
    config = scope_qwen2_5_math_1_5b.get_config()
    config.models.policy = "models/Qwen2.5-Math-7B"
    config.models.teacher = "models/Qwen2.5-Math-72B-Instruct"
    config.training.micro_batches = 64
    return config
