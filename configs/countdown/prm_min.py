"""PURE's min-form of PRM rewards (arXiv 2504.15275) beside the outcome, on Countdown, as
configs/arithmetic/prm_min.py sets it.

python -m scope_jax.train --config=configs/countdown/prm_min.py --workdir=runs/countdown_prm_min
"""

from scope_jax.configs.arithmetic import prm_min
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(prm_min.get_config())
