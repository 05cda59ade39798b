"""GSPO (arXiv 2507.18071) on Countdown, as configs/arithmetic/gspo.py sets it.

python -m scope_jax.train --config=configs/countdown/gspo.py --workdir=runs/countdown_gspo
"""

from scope_jax.configs.arithmetic import gspo
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(gspo.get_config())
