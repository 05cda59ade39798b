r"""SCOPE in the paper's setting: Qwen2.5-Math-7B on MATH levels 3-5, group of 8, PRM
Qwen2.5-Math-PRM-7B, a 72B teacher.

python -m scope_jax.train --config=configs/math/scope_qwen2_5_math_7b.py --workdir=runs/math_7b

Not run with real weights here. The paper's body is not at hand (docs/method.md): steps, batch and
learning rate are those of its field. Files as in scope_qwen2_5_math_1_5b.py, with
models/Qwen2.5-Math-7B and models/Qwen2.5-Math-72B-Instruct.

On TPU slices (as in scope_qwen2_5_math_1_5b.py):

python -m scope_jax.fit --config=configs/math/scope_qwen2_5_math_7b.py --topology=v5p:4x4x4

    program  GiB of 95.73  seconds   x  bound
    decode_layout      30.8 (32%)     0.01   1  network
    rollout    29.9 (31%)     8.27   1  HBM
    PRM        26.9 (28%)     0.03  64  compute
    teacher    40.1 (42%)     8.94   1  compute
    tails      28.7 (30%)     5.21   1  HBM
    update     30.3 (32%)     6.64   1  compute
    rollout at most 380,425 tokens/s, update at most 75% of the peak, a step at least 31 s

python -m scope_jax.fit --config=configs/math/scope_qwen2_5_math_7b.py --topology=v6e:8x8 \
    --config.models.teacher=models/Qwen2.5-32B-Instruct

    program  GiB of 31.24  seconds   x  bound
    decode_layout      21.5 (69%)     0.03   1  network
    rollout    20.6 (66%)    12.32   1  HBM
    PRM        17.6 (56%)     0.05  64  network
    teacher    24.6 (79%)     6.26   1  HBM
    tails      19.9 (64%)     8.04   1  HBM
    update     20.9 (67%)     5.72   1  network
    rollout at most 255,386 tokens/s, update at most 44% of the peak, a step at least 36 s

With the 72B teacher v6e:8x8 is too small, or full to 98 % with parts parked: docs/scaling.md says
why.
"""

from scope_jax.configs.math import scope_qwen2_5_math_1_5b


def get_config():
    config = scope_qwen2_5_math_1_5b.get_config()
    config.models.policy = "models/Qwen2.5-Math-7B"
    config.models.teacher = "models/Qwen2.5-Math-72B-Instruct"
    # Four key and value heads; the teacher has eight.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 4, 4
    config.meshes.teacher.data, config.meshes.teacher.fsdp, config.meshes.teacher.tensor = -1, 1, 8
    config.rollout.prompts = 128
    config.rollout.slots = 0
    config.correction.rows = 0
    config.training.micro_batches = 16
    return config
