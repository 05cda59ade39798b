r"""A process reward model for mathematics without step labels: Qwen2.5-Math-1.5B judges its own
steps by continuing them.

python -m scope_jax.supervise --config=configs/math/prm_monte_carlo.py --workdir=runs/math_prm

Not run with real weights here: a starting point, after Math-Shepherd (arXiv 2312.08935; 8
continuations of each step). Files as in scope_qwen2_5_math_1_5b.py. The labels are most of the
work: 6,000 problems x 4 rollouts, each failed one continued 8 times after every step up to its
first wrong one. They are kept in labels.jsonl, and a run that was stopped goes on there.

To measure it: python -m scope_jax.evaluate_prm --model=runs/math_prm --data=data/ProcessBench
"""

from scope_jax.supervise import default_config


def get_config():
    config = default_config()
    config.kind = "prm"
    config.steps = 700  # about two epochs
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
    config.rollouts.policy = "models/Qwen2.5-Math-1.5B"
    config.rollouts.problems = 6000
    config.rollouts.held_out = 256
    config.rollouts.group = 4
    config.rollouts.problems_at_once = 64
    config.rollouts.prompt_tokens = 512
    config.rollouts.new_tokens = 2048
    config.labels.kind = "monte_carlo"
    config.labels.continuations = 8
    config.labels.estimate = "hard"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 30
    config.optimizer.b2 = 0.95
    config.checkpoint.every = 100
    return config
