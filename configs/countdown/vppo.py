"""VPPO (arXiv 2601.18984) on Countdown, as configs/arithmetic/vppo.py sets it.

python -m scope_jax.train --config=configs/countdown/vppo.py --workdir=runs/countdown_vppo
"""

from scope_jax.configs.arithmetic import vppo
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(vppo.get_config())
