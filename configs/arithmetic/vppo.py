"""VPPO (arXiv 2601.18984) on the embedded task: the tokens before a failed row's first error get
half a reward.

python -m scope_jax.train --config=configs/arithmetic/vppo.py --workdir=runs/vppo
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.with_prm(common.get_config())
    config.advantage.process = "prefix"
    return config
