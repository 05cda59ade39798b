"""LUFFY (arXiv 2504.14945) on Countdown, as configs/arithmetic/luffy.py sets it.

python -m scope_jax.train --config=configs/countdown/luffy.py --workdir=runs/countdown_luffy
"""

from scope_jax.configs.arithmetic import luffy
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(luffy.get_config())
