r"""SCOPE on MATH levels 3-5 with Qwen2.5-Math-1.5B: group of 8, PRM Qwen2.5-Math-PRM-7B, a 7B
teacher.

python -m scope_jax.train --config=configs/math/scope_qwen2_5_math_1_5b.py --workdir=runs/math_1_5b

Not run with real weights here: a starting point, written from the papers' settings and the
published files. What stands where (any other place by --config.models.policy=... and so on;
docs/data.md):

    models/Qwen2.5-Math-1.5B            the policy, a base model with 4,096 positions
    models/Qwen2.5-Math-7B-Instruct     the teacher
    models/Qwen2.5-Math-PRM-7B          the process reward model
    data/MATH-lighteval                 problem, level, type, solution; README.md or data/train-00000-of-00001.parquet
    data/MATH-500                       problem, solution, answer, subject, level, unique_id

On TPU slices (`python -m scope_jax.fit`, compiled and not run; seconds are floors where every row
is as long as it may be; docs/scaling.md):

python -m scope_jax.fit --config=configs/math/scope_qwen2_5_math_1_5b.py --topology=v5e:2x4

    program  GiB of 15.75  seconds   x  bound
    decode_layout      10.6 (67%)     0.02   1  network
    rollout    13.4 (85%)    34.61   1  HBM
    PRM         9.7 (62%)     0.58  32  compute
    teacher    13.0 (82%)     5.07   2  HBM
    tails      10.4 (66%)     8.45   2  HBM
    update     12.5 (79%)    13.95   1  compute
    rollout at most 45,449 tokens/s, update at most 75% of the peak, a step at least 94 s

python -m scope_jax.fit --config=configs/math/scope_qwen2_5_math_1_5b.py --topology=v6e:2x4

    program  GiB of 31.24  seconds   x  bound
    decode_layout      10.6 (34%)     0.01   1  network
    rollout    13.4 (43%)    17.30   1  HBM
    PRM         9.7 (31%)     0.17  32  HBM
    teacher    14.0 (45%)     2.34   2  HBM
    tails      10.9 (35%)     4.24   2  HBM
    update     12.2 (39%)     3.97   1  HBM
    rollout at most 90,923 tokens/s, update at most 57% of the peak, a step at least 40 s
"""

from scope_jax.config import default_config


def get_config():
    config = default_config()
    config.steps = 500
    config.dtype = "bfloat16"
    # Two key and value heads: the policy's cache can be split in two. The teacher has four.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, 2
    config.meshes.teacher.data, config.meshes.teacher.fsdp, config.meshes.teacher.tensor = -1, 1, 4
    config.task.name = "math"
    config.task.data = "data"
    config.task.train = {
        "math": {
            "path": "MATH-lighteval",
            "fields": {"prompt": "problem"},
            "where": {"level": ("Level 3", "Level 4", "Level 5")},
            "answer_from": "boxed",
        }
    }
    config.task.evaluation = {
        "test": {
            "path": "MATH-500",
            "split": "test",
            "fields": {"id": "unique_id", "prompt": "problem"},
        },
    }
    config.task.decontaminate = "remove"
    config.models.policy = "models/Qwen2.5-Math-1.5B"
    config.models.teacher = "models/Qwen2.5-Math-7B-Instruct"
    config.models.prm = "models/Qwen2.5-Math-PRM-7B"
    config.rollout.prompts = 64
    config.rollout.group = 8
    config.rollout.prompt_tokens = 512
    config.rollout.new_tokens = 3072
    config.rollout.slots = 256
    config.rollout.chat = True
    config.correction.enabled = True
    config.correction.threshold = 0.8
    config.correction.step_tokens = 512
    # Prefixes of up to 3,584 tokens: so many at a time, for the teacher's sake on the small chips
    # of v5e.
    config.correction.rows = 64
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.training.micro_batches = 16
    config.training.remat = "layer"
    # A notice of pre-emption is shorter than a rollout here, which a stop gives up: no more than
    # these steps are lost with it.
    config.checkpoint.every = 5
    config.evaluation.every = 50
    config.evaluation.problems = 500
    config.evaluation.samples = 4
    config.evaluation.temperature = 0.6
    config.evaluation.rows = 256
    return config
