"""PURE's min-form of PRM rewards (arXiv 2504.15275) beside the outcome, on the embedded task.

python -m scope_jax.train --config=configs/arithmetic/prm_min.py --workdir=runs/prm_min
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.with_prm(common.get_config())
    config.advantage.process = "min"
    return config
