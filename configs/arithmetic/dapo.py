"""DAPO (arXiv 2503.14476) on the embedded task: clip-higher, dynamic sampling, token mean, soft
overlong punishment.

python -m scope_jax.train --config=configs/arithmetic/dapo.py --workdir=runs/dapo

Dynamic sampling rolls out up to three batches of prompts for one update: `rollout/batches` says
how many.
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.get_config()
    config.rollout.resample = 2
    config.advantage.std = True
    config.advantage.overlong_tokens = 4
    config.loss.normaliser = "token"
    config.loss.clip_low, config.loss.clip_high = 0.2, 0.28
    return config
