"""Supervised steps on the teacher's whole solutions, on Countdown, as configs/arithmetic/sft.py
sets it.

python -m scope_jax.train --config=configs/countdown/sft.py --workdir=runs/countdown_sft
"""

from scope_jax.configs.arithmetic import sft
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(sft.get_config())
