"""A config of a model that is small enough to be compiled in a test of `fit`."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from scope_jax.configuration import default_config

# Two layers whose key and value heads can be split in two, of a size that a cache is more than a
# few tiles.
SMALL = {
    "model_type": "qwen2",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 512,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def small_config(directory: Path) -> ConfigDict:
    """A config whose policy and teacher are `SMALL`, written into `directory`."""
    (directory / "config.json").write_text(json.dumps(SMALL))
    config = default_config("scope")
    config.dtype = "bfloat16"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 4, 2
    config.task.name, config.task.data = "math", "data"
    config.task.train = {"some": {"path": "x", "fields": {"prompt": "p"}, "answer_from": "boxed"}}
    config.models.policy = config.models.teacher = str(directory)
    config.localiser.kind = "oracle"
    config.rollout.prompts, config.rollout.group, config.rollout.seats = 16, 4, None
    config.rollout.prompt_tokens, config.rollout.new_tokens = 64, 192
    config.training.micro_batches, config.training.remat = 4, "layer"
    return config
