"""Self-correction on Countdown, as configs/arithmetic/self_correction.py sets it.

python -m scope_jax.train --config=configs/countdown/self_correction.py --workdir=runs/countdown_self_correction
"""

from scope_jax.configs.arithmetic import self_correction
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(self_correction.get_config())
