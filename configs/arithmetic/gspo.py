"""GSPO (arXiv 2507.18071) on the embedded task: one ratio per row, clipped in a narrow band.

python -m scope_jax.train --config=configs/arithmetic/gspo.py --workdir=runs/gspo
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.get_config()
    config.advantage.std = True
    config.loss.ratio = "sequence"
    config.loss.normaliser = "sequence"
    config.loss.clip_low, config.loss.clip_high = 3e-4, 4e-4
    return config
