r"""GRPO (Dr.GRPO's normaliser, no std) on GSM8K with Qwen2.5-0.5B-Instruct: the SCOPE program with
the correction off.

python -m scope_jax.train --config=configs/gsm8k/grpo.py --workdir=runs/gsm8k_grpo

Not run with real weights here. The data set is read from TFDS, without TensorFlow; this makes it
once, from the published files that it downloads:

    from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k
    Gsm8k(data_dir="data", file_format="array_record").download_and_prepare(file_format="array_record")

The repository openai/gsm8k on disk does as well: --config.task.train.gsm8k.path=DIR (config
"main"), likewise for `evaluation.test`. docs/data.md has both.
"""

from scope_jax.config import default_config


def get_config():
    config = default_config()
    config.steps = 300
    config.dtype = "bfloat16"
    config.task.name = "math"
    config.task.data = "data"
    source = {
        "path": "gsm8k",
        "config": "main",
        "fields": {"prompt": "question", "solution": "answer"},
        "answer_from": "hash",
    }
    config.task.train = {"gsm8k": {**source, "split": "train"}}
    config.task.evaluation = {"test": {**source, "split": "test"}}
    config.task.decontaminate = "report"
    config.models.policy = "models/Qwen2.5-0.5B-Instruct"
    config.rollout.prompts = 64
    config.rollout.group = 8
    config.rollout.prompt_tokens = 256
    config.rollout.new_tokens = 512
    config.rollout.chat = True
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.training.micro_batches = 8
    config.training.remat = "layer"
    config.evaluation.every = 50
    config.evaluation.problems = 1319
    config.evaluation.samples = 4
    config.evaluation.rows = 512
    return config
