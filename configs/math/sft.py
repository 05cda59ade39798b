r"""Supervised fine-tuning of Qwen2.5-Math-1.5B on the solutions of MATH, written in steps that
SCOPE can divide.

python -m scope_jax.supervise --config=configs/math/sft.py --workdir=runs/math_sft

Not run with real weights here: a starting point. Files as in scope_qwen2_5_math_1_5b.py. Solutions
are divided by blank lines (`demonstrations.in_steps`), prompts go into the chat template, and
problems that overlap with MATH-500 are left out.

Memory (bfloat16 parameters, float32 moments): about 18 GB, split over `mesh.fsdp` devices.
"""

from scope_jax.supervise import default_config


def get_config():
    config = default_config()
    config.steps = 350  # three epochs of 7,500 problems
    config.batch = 64
    config.micro_batches = 16
    config.dtype = "bfloat16"
    config.remat = "layer"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.start = "models/Qwen2.5-Math-1.5B"
    config.chat = True
    config.task.name = "math"
    config.task.data = "data"
    config.task.train = {
        "math": {"path": "MATH-lighteval", "fields": {"prompt": "problem"}, "answer_from": "boxed"}
    }
    config.task.evaluation = {
        "test": {
            "path": "MATH-500",
            "split": "test",
            "fields": {"id": "unique_id", "prompt": "problem"},
        },
    }
    config.task.decontaminate = "remove"
    config.demonstrations.in_steps = True
    config.demonstrations.max_tokens = 2048
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.95
    config.checkpoint.every = 100
    return config
