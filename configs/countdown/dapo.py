"""DAPO (arXiv 2503.14476) on Countdown, as configs/arithmetic/dapo.py sets it.

python -m scope_jax.train --config=configs/countdown/dapo.py --workdir=runs/countdown_dapo
"""

from scope_jax.configs.arithmetic import dapo
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(dapo.get_config())
