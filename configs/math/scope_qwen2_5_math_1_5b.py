r"""SCOPE on MATH levels 3-5 with Qwen2.5-Math-1.5B: group of 8, PRM Qwen2.5-Math-PRM-7B, a 7B teacher.

python -m scope_jax.train --config=configs/math/scope_qwen2_5_math_1_5b.py --workdir=runs/math_1_5b

Not run with real weights here: a starting point, written from the papers' settings and the published files. What stands
where (any other place by --config.models.policy=... and so on; docs/data.md):

    models/Qwen2.5-Math-1.5B            the policy, a base model with 4,096 positions
    models/Qwen2.5-Math-7B-Instruct     the teacher
    models/Qwen2.5-Math-PRM-7B          the process reward model
    data/MATH-lighteval                 problem, level, type, solution; README.md or data/train-00000-of-00001.parquet
    data/MATH-500                       problem, solution, answer, subject, level, unique_id

Memory (bfloat16 parameters, float32 moments): about 18 GB for the policy, 15 GB each for teacher and PRM, split over
`mesh.fsdp` devices.
"""

from scope_jax.configuration import default_config


def get_config():
    config = default_config()
    config.steps = 500
    config.dtype = "bfloat16"
    config.mesh.data, config.mesh.fsdp = 1, -1
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
        "test": {"path": "MATH-500", "split": "test", "fields": {"id": "unique_id", "prompt": "problem"}},
    }
    config.task.decontaminate = "remove"
    config.models.policy = "models/Qwen2.5-Math-1.5B"
    config.models.teacher = "models/Qwen2.5-Math-7B-Instruct"
    config.models.prm = "models/Qwen2.5-Math-PRM-7B"
    config.rollout.prompts = 128
    config.rollout.group = 8
    config.rollout.prompt_tokens = 512
    config.rollout.new_tokens = 3072
    config.rollout.slots = 256
    config.rollout.chat = True
    config.correction.enabled = True
    config.correction.threshold = 0.8
    config.correction.step_tokens = 512
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.training.micro_batches = 32
    config.training.remat = True
    config.evaluation.every = 50
    config.evaluation.problems = 500
    config.evaluation.samples = 4
    config.evaluation.temperature = 0.6
    config.evaluation.rows = 256
    return config
